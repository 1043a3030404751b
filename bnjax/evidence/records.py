"""Records of runs: `record.json`, written before step 0, and the log `metrics.jsonl`.

A record names everything that its numbers depend on: configuration, versions, commit, backend,
data. It names no host and no path. A finished one ends with the log's digest, and all end with
their own; those of schema 1 have none.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

SCHEMA = 2
Json = Any


class RecordError(ValueError):
    """A run directory that does not fit, or cannot be read or written."""


@contextlib.contextmanager
def making_sense(what: Path, record: Mapping[str, Json] | None = None) -> Iterator[None]:
    """Turns errors inside into RecordError: `what` does not hold what a run writes.

    Args:
        what: the file that is made sense of.
        record: what it holds, if it is a record. With its own digest it is sound, and of other
            code.
    """
    try:
        yield
    except RecordError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
        if record is None or "sha256" not in record:
            raise _damaged(what, problem) from error
        raise _of_other_code(what, record, problem) from error


def tree_sha256(tree: Any) -> str:
    """Returns the digest of a tree of arrays: paths, dtypes, shapes and values.

    Example:
        >>> tree_sha256({"w": np.zeros(2)}) == tree_sha256({"w": np.ones(2)})
        False
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def number(value: Any) -> float | int:
    """Returns a scalar as the shortest JSON number that reads back as the same value."""
    value = np.asarray(value)[()]
    return int(value) if np.issubdtype(value.dtype, np.integer) else float(str(value))


class Run:
    """The directory of one run, with `record.json` and `metrics.jsonl`.

    Opening a directory that holds a run of the same configuration continues it.
    """

    def __init__(
        self,
        directory: Path,
        header: Mapping[str, Json],
        defaults: Mapping[str, Mapping[str, Json]] = MappingProxyType({}),
    ) -> None:
        """Writes the record, or checks the one that is there.

        Args:
            directory: made if it does not exist.
            header: JSON values; `identity` is what must not change when a run goes on.
            defaults: by which an identity that is older than some fields is `completed`.

        Raises:
            RecordError: if the directory holds a run of another identity, with the difference.
        """
        self.directory = directory
        self._metrics = directory / "metrics.jsonl"
        record = json.loads(json.dumps({"schema": SCHEMA, **header, "finished": False}))
        if not (directory / "record.json").exists():
            with _writing(directory):
                directory.mkdir(parents=True, exist_ok=True)
            self.record = record
            self._write()
            return
        check_identity(directory, record["identity"], defaults)
        self.record = read_record(directory)
        if not self.finished and self.record["environment"] != record["environment"]:
            self.record.setdefault("resumed_under", []).append(record["environment"])
            self._write()

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return bool(self.record["finished"])

    def rewind(self, step: int, logged: Iterable[int] = ()) -> None:
        """Drops what was logged after `step`; a negative step drops all.

        Args:
            step: that of the checkpoint to go on from.
            logged: steps that must have been logged until then.

        Raises:
            RecordError: if one is missing or twice, or the log is damaged; nothing is dropped
                then.
        """
        lines = _read_lines(self._metrics, torn=True) if self._metrics.exists() else []
        kept = [entry for entry in lines if entry["step"] <= step]
        missing = sorted(set(logged).difference(entry["step"] for entry in kept))
        if missing:
            raise RecordError(
                f"{self._metrics} lacks step {missing[0]}, which lies behind the checkpoint of "
                f"step {step}: put the whole file back, or remove the run's folder below "
                "`checkpoints`, too, and run again from the beginning."
            )
        steps = [entry["step"] for entry in kept]
        if steps != sorted(set(steps)):
            raise _damaged(self._metrics, "its steps do not grow")
        _replace(self._metrics, "".join(map(_line, kept)))

    def log(self, entry: Mapping[str, Json]) -> None:
        """Adds a line, on the disk before a later checkpoint; `entry["step"]` says when."""
        with _writing(self._metrics):
            with self._metrics.open("a") as file:
                file.write(_line(entry))
            sync(self._metrics)

    def finish(self, final: Mapping[str, Json]) -> None:
        """Writes the outcome into the record, and the digest of the log."""
        self.record["final"] = json.loads(json.dumps(dict(final)))
        self.record["finished"] = True
        with _writing(self._metrics):
            self._metrics.touch()  # a run may have had nothing to log
            self.record["log_sha256"] = _file_sha256(self._metrics)
        self._write()

    def _write(self) -> None:
        self.record.pop("sha256", None)
        self.record["sha256"] = _record_sha256(self.record)
        _replace(self.directory / "record.json", json.dumps(self.record, indent=1) + "\n")


def completed(
    identity: Mapping[str, Json], defaults: Mapping[str, Mapping[str, Json]]
) -> dict[str, Json]:
    """Returns an identity with the defaults of fields that it lacks, since it is older than they.

    Example:
        >>> completed({"seed": 0, "config": {"width": 2}}, {"config": {"width": 1, "depth": 3}})
        {'seed': 0, 'config': {'width': 2, 'depth': 3}}
    """
    whole = dict(identity)
    for part, fields in defaults.items():
        stated = identity.get(part, {})
        if newer := {name: fields[name] for name in fields if name not in stated}:
            whole[part] = {**stated, **newer}
    return whole


def check_identity(
    directory: Path,
    identity: Json,
    defaults: Mapping[str, Mapping[str, Json]] = MappingProxyType({}),
) -> None:
    """Raises RecordError if the directory holds a run of another identity; changes nothing.

    Args:
        directory: of the run; one that holds none passes.
        identity: what the run is to be.
        defaults: by which an identity that is older than some fields is `completed`.
    """
    if not (directory / "record.json").exists():
        return
    record = read_record(directory)
    with making_sense(directory / "record.json", record):
        stored = completed(record["identity"], defaults)
    changed = differences(stored, json.loads(json.dumps(identity)))
    if changed:
        raise RecordError(
            f"{directory} holds a run of another configuration:\n  "
            + "\n  ".join(changed)
            + "\nChoose another --out, or remove that folder."
        )


def is_finished(directory: Path) -> bool:
    """Whether the directory holds a run that came to its end."""
    return (directory / "record.json").exists() and bool(read_record(directory)["finished"])


def check_data(record: Mapping[str, Json], name: str, sha256: str) -> None:
    """Raises RecordError if the data at hand, of this name and digest, is not that of a record."""
    recorded = record["data"]["sha256"]
    if sha256 != recorded:
        raise RecordError(
            f"the data set {name} at hand has SHA-256 {sha256}, the record {recorded}: "
            "point --data-dir or --data to the data that was used."
        )


def read_record(directory: Path) -> dict[str, Json]:
    """Returns the record of a run.

    Raises:
        RecordError: if there is none, or it is damaged or of another schema.
    """
    path = directory / "record.json"
    try:
        record = json.loads(path.read_text())
        if not isinstance(record, dict):
            raise ValueError(f"it is no JSON object but {record!r:.80}")
    except FileNotFoundError:
        raise _missing(directory) from None
    except OSError as error:
        raise RecordError(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from None
    schema = record.get("schema")
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise RecordError(
            f"{path} has schema {schema}, this bnjax reads {SCHEMA} and those before: "
            "use the version named in it."
        )
    if problem := _problem(record):
        raise _damaged(path, problem)
    return record


def _missing(directory: Path) -> RecordError:
    there = "holds no run: there is no record.json" if directory.exists() else "does not exist"
    near = [
        path.parent for at in (directory, directory.parent) for path in at.glob("*/record.json")
    ]
    hint = f"; one that does is {min(near)}" if near else ""
    return RecordError(f"{directory} {there}{hint}.")


def _damaged(what: Path, problem: str) -> RecordError:
    return RecordError(
        f"{what} is damaged ({problem}): put back a whole copy, or remove the folder and run again."
    )


def _of_other_code(what: Path, record: Mapping[str, Json], problem: str) -> RecordError:
    made_by = record["environment"]
    version = (made_by.get("versions") or {}).get("bnjax")
    commit = (made_by.get("git") or {}).get("commit")
    return RecordError(
        f"{what} is sound, but of other code than this ({problem}): it was made by bnjax {version} "
        f"at commit {commit}; keep it, and check that commit out to use it."
    )


def _problem(record: Mapping[str, Json]) -> str | None:
    """Returns what is wrong with a record of a known schema; None for a sound one."""
    for name, kind in {"identity": dict, "environment": dict, "finished": bool}.items():
        if not isinstance(record.get(name), kind):
            return f"{name} is {record.get(name)!r:.80}"
    if isinstance(record.get("final"), dict) != record["finished"]:
        return f"finished is {record['finished']}, final {record.get('final')!r:.80}"
    for name in ("arm", "seed", "learning_rate"):
        told, known = (part.get(name) for part in (record, record["identity"]))
        if None not in (told, known) and differences(told, known):
            return f"{name} is {told!r:.80}, in identity {known!r:.80}"
    if record["schema"] > 1 or "sha256" in record:
        unsealed = {name: value for name, value in record.items() if name != "sha256"}
        if record.get("sha256") != _record_sha256(unsealed):
            return "it differs from its own sha256"
    return None


def read_metrics(directory: Path, *, torn: bool = False) -> list[dict[str, Json]]:
    """Returns the entries of a run's `metrics.jsonl`, in order of steps.

    Args:
        directory: of the run.
        torn: whether to leave out a damaged last line, in which a run that goes on was stopped.

    Raises:
        RecordError: if there is no such file, or it is damaged.
    """
    return _read_lines(_log_in(directory), torn=torn)


def check_log_digest(directory: Path, record: Mapping[str, Json]) -> None:
    """Raises RecordError if a finished run's log is not what its record's digest says.

    Records of schema 1 have none, and pass.
    """
    if record["schema"] == 1 and "log_sha256" not in record:
        return
    path = _log_in(directory)
    if record.get("log_sha256") != _file_sha256(path):
        raise RecordError(
            f"{path} is not what the run wrote: it differs from log_sha256 in record.json; put "
            "back a whole copy, or remove the folder and run again."
        )


def _log_in(directory: Path) -> Path:
    path = directory / "metrics.jsonl"
    if not path.is_file():
        raise RecordError(f"{path} is missing: put it back, or remove the folder and run again.")
    return path


def differences(stored: Json, given: Json, path: str = "") -> list[str]:
    """Returns where two JSON values differ, a line each: name, stored value, given value.

    Example:
        >>> differences({"steps": 100, "seed": 0}, {"steps": 200, "seed": 0})
        ['steps: stored 100, given 200']
    """
    if isinstance(stored, list) and isinstance(given, list):
        stored, given = ({str(i): value for i, value in enumerate(v)} for v in (stored, given))
    if not (isinstance(stored, dict) and isinstance(given, dict)):
        same = json.dumps(stored) == json.dumps(given)  # as text: NaN differs from itself
        return [] if same else [f"{path}: stored {stored!r}, given {given!r}"]
    lines = []
    for key in {**stored, **given}:
        name = f"{path}.{key}" if path else key
        if key in stored and key in given:
            lines += differences(stored[key], given[key], name)
        else:
            old, new = (repr(side[key]) if key in side else "nothing" for side in (stored, given))
            lines.append(f"{name}: stored {old}, given {new}")
    return lines


def sync(path: Path) -> None:
    """Returns when a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_lines(path: Path, *, torn: bool = False) -> list[dict[str, Json]]:
    """Parses each line; `torn` forgives the last one, in which the process may have ended."""
    entries: list[dict[str, Json]] = []
    lines = path.read_bytes().splitlines()
    for position, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            if not (isinstance(entry, dict) and type(entry.get("step")) is int):
                raise ValueError("it is no entry of a log")
            entries.append(entry)
        except (ValueError, RecursionError):
            if torn and position == len(lines):
                break  # its step will be logged again
            raise RecordError(
                f"{path}, line {position} is damaged: {line[:80].decode(errors='replace')!r}; "
                "put back a whole copy, or remove the folder and run again."
            ) from None
    return entries


def _line(entry: Mapping[str, Json]) -> str:
    return json.dumps(entry, separators=(",", ":")) + "\n"


def _record_sha256(record: Mapping[str, Json]) -> str:
    """Returns the digest of a record's values, whatever its layout."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    with _writing(path):
        temporary.write_text(text)
        sync(temporary)  # or a power cut may leave an empty file under the name
        temporary.replace(path)
        sync(path.parent)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RecordError(
            f"{path} cannot be written ({error.strerror}): if its folder was moved or removed, "
            "put it back or give its new place; otherwise free space or mend its permissions. "
            "Then run the same command again."
        ) from error
