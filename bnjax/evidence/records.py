"""What a run writes and reads back: `record.json` before step 0, then `metrics.jsonl`.

A record names everything that its numbers depend on: configuration, versions, commit, backend,
data. It names no host and no path.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bnjax.version import __version__

SCHEMA = 1
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
_FOR_IMAGES = ("simplejpeg", "cykooz-resizer")  # in Pillow's stead, where they are installed

Json = Any


class RecordError(ValueError):
    """A run directory that does not fit, or cannot be read."""


def environment() -> dict[str, Json]:
    """Versions, commit, backend and numerical settings of this process.

    Starts JAX's backend.
    """
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "versions": {
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
            **_installed(_FOR_IMAGES),
            "bnjax": __version__,  # of the code that runs; another may be installed
        },
        "git": _git(),
        "backend": jax.default_backend(),
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
        "processor": _processor(),
        "matmul_precision": jax.config.values["jax_default_matmul_precision"],
        "xla_flags": re.sub(r"=/\S*", "=(path)", os.environ.get("XLA_FLAGS", "")),
    }


def _installed(names: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are there."""
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def require_commit(out: Path, results: Path) -> None:
    """Raises ValueError if `out` lies in the committed results and the checkout is dirty."""
    if not out.resolve().is_relative_to(results):
        return
    git = environment()["git"]
    if git is None or git["dirty"]:
        raise ValueError(
            f"{out} holds results to be cited, which must come from a commit: "
            "commit your changes first, or choose another --out."
        )


def tree_sha256(tree: Any) -> str:
    """Digest of a tree of arrays: paths, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def number(value: Any) -> float | int:
    """A scalar as the shortest JSON number that reads back as the same value."""
    value = np.asarray(value)[()]
    return int(value) if np.issubdtype(value.dtype, np.integer) else float(str(value))


class Run:
    """One run's directory, `record.json` and `metrics.jsonl`.

    Opening a directory that holds a run of the same configuration continues it.
    """

    def __init__(self, directory: Path, header: Mapping[str, Json]) -> None:
        """Writes the record, or checks the one that is there.

        Args:
            directory: made if it does not exist.
            header: JSON values; `identity` is what must not change when a run goes on.

        Raises:
            RecordError: if the directory holds a run of another identity, with the difference.
        """
        self.directory = directory
        self._metrics = directory / "metrics.jsonl"
        record = json.loads(json.dumps({"schema": SCHEMA, **header, "finished": False}))
        if not (directory / "record.json").exists():
            directory.mkdir(parents=True, exist_ok=True)
            self.record = record
            self._write()
            return
        check_identity(directory, record["identity"])
        self.record = read_record(directory)
        if not self.finished and self.record["environment"] != record["environment"]:
            self.record.setdefault("resumed_under", []).append(record["environment"])
            self._write()

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return bool(self.record["finished"])

    def rewind(self, step: int, logged: Collection[int] = ()) -> None:
        """Drops what was logged after `step`; a negative step drops all.

        Args:
            step: that of the checkpoint to go on from.
            logged: steps that must have been logged until then.

        Raises:
            RecordError: if one is missing, or the log is damaged; nothing is dropped then.
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
        _replace(self._metrics, "".join(map(_line, kept)))

    def log(self, entry: Mapping[str, Json]) -> None:
        """Adds a line; `entry["step"]` says when."""
        with self._metrics.open("a") as file:
            file.write(_line(entry))

    def finish(self, final: Mapping[str, Json]) -> None:
        """Writes the outcome into the record."""
        self.record["final"] = dict(final)
        self.record["finished"] = True
        self._write()

    def _write(self) -> None:
        _replace(self.directory / "record.json", json.dumps(self.record, indent=1) + "\n")


def check_identity(directory: Path, identity: Json) -> None:
    """Raises RecordError if the directory holds a run of another identity; changes nothing."""
    if not (directory / "record.json").exists():
        return
    changed = differences(read_record(directory)["identity"], json.loads(json.dumps(identity)))
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
            "point --data-dir to the data that was used."
        )


def read_record(directory: Path) -> dict[str, Json]:
    """The record of a run.

    Raises:
        RecordError: if there is none, or it is damaged or of another schema.
    """
    path = directory / "record.json"
    try:
        record = json.loads(path.read_text())
        if not isinstance(record, dict):
            raise ValueError(f"it is no JSON object but {record!r:.80}")
    except FileNotFoundError:
        raise RecordError(f"{directory} holds no run: there is no record.json.") from None
    except ValueError as error:
        raise RecordError(
            f"{path} is damaged ({error}): remove the folder and run again."
        ) from None
    if record.get("schema") != SCHEMA:
        raise RecordError(
            f"{path} has schema {record.get('schema')}, this bnjax reads {SCHEMA}: "
            "use the version named in it."
        )
    return record


def read_metrics(directory: Path) -> list[dict[str, Json]]:
    """The lines of a run's `metrics.jsonl`, in order of steps.

    Raises:
        RecordError: if there is no such file, or it is damaged.
    """
    path = directory / "metrics.jsonl"
    if not path.exists():
        raise RecordError(f"{path} is missing: put it back, or remove the folder and run again.")
    return _read_lines(path)


def differences(stored: Json, given: Json, path: str = "") -> list[str]:
    """Where two JSON values differ, a line each: name, stored value, given value."""
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


def _read_lines(path: Path, *, torn: bool = False) -> list[dict[str, Json]]:
    """Parses each line; `torn` forgives the last one, in which the process may have ended."""
    entries: list[dict[str, Json]] = []
    lines = path.read_text().splitlines()
    for position, line in enumerate(lines, start=1):
        try:
            entries.append(json.loads(line))
        except ValueError:
            if torn and position == len(lines):
                break  # its step will be logged again
            raise RecordError(
                f"{path}, line {position} is damaged: {line[:80]!r}; "
                "put back a whole copy, or remove the folder and run again."
            ) from None
    return entries


def _line(entry: Mapping[str, Json]) -> str:
    return json.dumps(entry, separators=(",", ":")) + "\n"


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def _git() -> dict[str, Json] | None:
    """Commit and whether tracked files differ from it; None outside a repository."""

    def run(*args: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {
            "commit": run("rev-parse", "HEAD"),
            "dirty": bool(run("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    """Name, family and model: virtual machines hide the first, and bits depend on the others."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return platform.machine()
    lines = (line.partition(":") for line in first.splitlines())
    facts = {key.strip(): value.strip() for key, _, value in lines}
    named = [facts.get("model name", platform.machine())]
    named += [f"{key} {facts[key]}" for key in ("cpu family", "model") if key in facts]
    return ", ".join(named)
