"""What the numbers of recorded runs depend on, compared whatever versions of the code made them."""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from bnjax.evidence.records import RecordError, completed, differences, making_sense
from experiments.harness import affects, found


def defaults(config: type, arm: type) -> dict[str, dict[str, Any]]:
    """Returns the defaults of a configuration and of an arm, by which an identity is completed."""
    parts = {"config": affects.defaults(config), "settings": affects.defaults(arm)}
    return json.loads(json.dumps(parts))


def identity_of(record: dict[str, Any]) -> dict[str, Any]:
    """Returns a recorded run's identity, with the defaults of fields that are newer than it.

    Of an arm that is not there any more, its settings are as recorded; of such an experiment, all.
    """
    return completed(record["identity"], _defaults(record.get("experiment"), record["arm"]))


@cache
def _defaults(experiment: Any, arm: str) -> dict[str, dict[str, Any]]:
    if experiment not in found.names():
        return {}
    of = found.experiment(experiment)
    arms = {each.name: type(each) for each in of.arms}
    whole = defaults(of.config, arms.get(arm, type(of.arms[0])))
    return whole if arm in arms else {"config": whole["config"]}


def refuse_unknown(names: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raises LookupError for a recorded name that this code does not know, `what` in its plural."""
    if unknown := sorted({*names}.difference(known)):
        raise LookupError(f"it has {what} that this code lacks: {', '.join(unknown)}")


def check_alike(runs: Iterable[tuple[Path, dict[str, Any]]], remedy: str) -> None:
    """Holds that an arm's runs differ by their seeds alone: they are averaged as one network's.

    Args:
        runs: folders and records.
        remedy: what to do about one that differs otherwise.

    Raises:
        RecordError: two differ in more, or are of one seed.
    """
    first: dict[str, tuple[Path, dict[str, Any]]] = {}
    seen: dict[tuple[str, int], Path] = {}
    for folder, record in runs:
        with making_sense(folder / "record.json", record):
            arm, seed, identity = record["arm"], record["seed"], identity_of(record)
        identity.pop("seed", None)
        other, expected = first.setdefault(arm, (folder, identity))
        if changed := differences(expected, identity):
            raise RecordError(
                f"{folder} is not {other} with another seed ({changed[0]}): {remedy}."
            )
        twin = seen.setdefault((arm, seed), folder)
        if twin != folder:
            raise RecordError(
                f"{folder} and {twin} are both of {arm}, seed {seed}, which would count twice: "
                "leave one of them out."
            )
