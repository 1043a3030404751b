"""Copies of finished runs whose records say something else, sound and sealed."""

import json
import shutil

from bnjax.evidence.records import Run, read_record


def resealed(run, to, **changes):
    """A copy of a finished run with changes of its identity, by path, as if it had been run so.

    `config__width=0.5` sets, and None removes.
    """
    record = read_record(run)
    for name in ("schema", "finished", "sha256", "log_sha256"):
        record.pop(name, None)
    came_to = record.pop("final")
    for path, value in changes.items():
        place = record["identity"]
        *parents, last = path.split("__")
        for parent in parents:
            place = place[parent]
        place.pop(last, None)
        if value is not None:
            place[last] = value
    record |= {name: record["identity"][name] for name in ("arm", "seed")}
    made = Run(to, json.loads(json.dumps(record)))
    shutil.copy(run / "metrics.jsonl", to)
    made.finish(came_to)
    return to
