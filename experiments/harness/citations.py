"""What made a result, and how to cite it: versions, commits and data, from records alone."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from packaging.version import Version

from bnjax.evidence.records import RecordError, making_sense
from experiments.harness.experiment import ROOT
from experiments.harness.results import read_result

_SHORT = 7
"""Digits of a commit or digest that tell it from others, in a line."""


class Origin(NamedTuple):
    """What made some results.

    Attributes:
        paths: of the results, below the repository's folder where they are in it.
        experiments: their names.
        versions: of bnjax, ascending.
        commits: whole; a dirty one says so.
        data: name and SHA-256 of each data set; two may have one name.
        years: in which they began, where records say so.
        digest: SHA-256 of all the records.
    """

    paths: tuple[str, ...]
    experiments: tuple[str, ...]
    versions: tuple[str, ...]
    commits: tuple[str, ...]
    data: tuple[tuple[str, str], ...]
    years: tuple[str, ...]
    digest: str

    @property
    def short_commits(self) -> list[str]:
        """The commits, each by its first digits."""
        return [commit[:_SHORT] + commit[40:] for commit in self.commits]

    @property
    def line(self) -> str:
        """The versions, commits and data in a few words."""
        several = "s" * (len(self.commits) > 1)
        text = f"bnjax {', '.join(self.versions)}, commit{several} {', '.join(self.short_commits)}"
        data = [f"{name} (SHA-256 {digest[:_SHORT]})" for name, digest in self.data]
        return text + (f", data {', '.join(data)}" if data else "")


def origin(results: Iterable[Path]) -> Origin:
    """Reads what made results.

    Args:
        results: each a run's folder or record, a folder of runs, or a file that names its
            environment. Of a folder the runs right in it count; if there are none, all below it;
            if there are none there, its files of results.

    Raises:
        RecordError: one is none of these, or not finished, or damaged, or of no commit.
    """
    paths = [path.parent if path.name == "record.json" else path for path in results]
    return origin_of(paths, [pair for path in paths for pair in _records(path)])


def origin_of(results: Iterable[Path], records: Iterable[tuple[Path, dict[str, Any]]]) -> Origin:
    """Returns the same of records that are read already, each behind its file's path."""
    records = list(records)
    parts = [(path, part) for path, record in records for part in _environments(path, record)]
    data: dict[tuple[str, str], None] = {}
    for path, record in records:
        with making_sense(path):
            data |= dict.fromkeys(_data(record))
    digests = sorted(_digest(record) for _, record in records)
    return Origin(
        tuple(map(below_root, results)),
        tuple(sorted({_name(record) for _, record in records} - {""})),
        tuple(map(str, sorted({_version(path, part) for path, part in parts}))),
        tuple(sorted({_commit(path, part) for path, part in parts})),
        tuple(data),
        tuple(sorted({record["started"][:4] for _, record in records if "started" in record})),
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest(),
    )


def bibtex(source: Origin) -> str:
    """Returns the BibTeX of results; a function of the records and of CITATION.cff."""
    about = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    url = _stated(about, "url")
    what = ", ".join(_tex(path) for path in source.paths)
    notes = [f"commit {commit}" for commit in source.commits]
    notes += [f"data {_tex(name)}, SHA-256 {digest}" for name, digest in source.data]
    notes.append(f"records, SHA-256 {source.digest}")
    fields = {
        "author": f"{{{_stated(about, '- name')}}}",
        "title": f"bnjax: {what}",
        **({"year": source.years[-1]} if source.years else {}),
        "version": ", ".join(source.versions),
        "url": f"{url}/tree/{source.commits[-1][:40]}" if len(source.commits) == 1 else url,
        "note": "; ".join(notes),
    }
    names = source.experiments or tuple(Path(path).stem for path in source.paths)
    key = f"bnjax_{'_'.join(names)}_{source.digest[:_SHORT]}"
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
    return "\n".join([f"@software{{{key},", *lines, "}"])


def made_by(*results: Path) -> str:
    """Returns a line of Markdown: what made the results, and how to cite them.

    Left out are a folder without a run yet, and a file that names no environment: it holds what
    was counted, not what was run. Empty if no other is left.
    """
    made = [path for path in results if _was_made(path)]
    if not made:
        return ""
    source = origin(made)
    return f"*By {source.line}. To cite: `python -m experiments.cite {' '.join(source.paths)}`.*"


def _was_made(results: Path) -> bool:
    if results.is_dir():
        return any(results.rglob("record.json")) or bool(_files(results))
    return not results.is_file() or "environment" in json.loads(results.read_text(encoding="utf-8"))


def below_root(path: Path) -> str:
    """Returns a path without the folders of this machine."""
    whole = path.resolve()
    return whole.relative_to(ROOT).as_posix() if whole.is_relative_to(ROOT) else whole.name


def _records(result: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The files of records and what they hold, of one result."""
    if result.is_file():
        return [(result, _read_file(result))]
    if (result / "record.json").exists():
        return [_read_run(result)]
    runs = sorted(result.glob("*/record.json")) or sorted(result.rglob("record.json"))
    finished = [_read_run(path.parent) for path in runs]
    if not finished:
        finished = _files(result)
    if not finished:
        there = "holds no run" if result.is_dir() else "does not exist"
        raise RecordError(
            f"{result} {there}: give a run's folder, a folder of runs or a file of results, for "
            "example experiments/mnist_lenet/results/mlp_bn-s0."
        )
    return finished


def _files(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The files of results below a folder, and what they hold."""
    files = ((path, _json(path)) for path in sorted(folder.rglob("*.json")))
    return [(path, record) for path, record in files if "environment" in record]


def _read_run(folder: Path) -> tuple[Path, dict[str, Any]]:
    return folder / "record.json", read_result(folder).record


def _read_file(path: Path) -> dict[str, Any]:
    record = _json(path)
    if "environment" not in record:
        raise RecordError(
            f"{path} does not say what made it: give a run's folder, a folder of runs, or a file "
            "of results with `environment`."
        )
    return record


def _json(path: Path) -> dict[str, Any]:
    """The object that a file holds; empty if it holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # no text, or no JSON
        return {}
    return found if isinstance(found, dict) else {}


def _environments(path: Path, record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Where a result was computed; one that was resumed elsewhere has several."""
    with making_sense(path):
        yield from (record["environment"], *record.get("resumed_under", ()))


def _version(path: Path, environment: dict[str, Any]) -> Version:
    with making_sense(path):
        return Version(environment["versions"]["bnjax"])


def _commit(path: Path, environment: dict[str, Any]) -> str:
    git = environment.get("git")
    if git is None:
        raise RecordError(
            f"{path} names no commit, for it was made outside of a repository: run it again from a "
            "clone, so that others can find what made it."
        )
    with making_sense(path):
        return str(git["commit"]) + (" with changes" if git["dirty"] else "")


def _data(record: dict[str, Any]) -> list[tuple[str, str]]:
    """The data set's name and SHA-256; empty where a result has none."""
    if isinstance(record.get("data"), dict):
        return [(record["data"]["name"], record["data"]["sha256"])]
    if "data_sha256" in record:
        return [(record["config"]["data"], record["data_sha256"])]
    return []


def _name(record: dict[str, Any]) -> str:
    return str(record.get("experiment") or record.get("benchmark") or "")


def _digest(record: dict[str, Any]) -> str:
    """The record's own, which those of schema 1 do not name, or that of what it holds."""
    text = json.dumps(record, sort_keys=True)
    return str(record.get("sha256") or hashlib.sha256(text.encode()).hexdigest())


def _stated(about: str, name: str) -> str:
    """The first value of a name in CITATION.cff."""
    match = re.search(rf"^\s*{name}: (.+)$", about, re.MULTILINE)
    assert match is not None, name
    return match.group(1)


def _tex(text: str) -> str:
    return text.replace("_", r"\_")
