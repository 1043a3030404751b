"""Runs of any experiment as the page shows them, and what is said of those alike but for seed."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bnjax.evidence.records import making_sense, read_record
from bnjax.evidence.statistics import accuracy
from bnjax.training.loop import Schedule
from experiments.harness.arm import Arm, label_of
from experiments.harness.citations import Origin, below_root, origin_of
from experiments.harness.differences import paired
from experiments.harness.identities import identity_of
from experiments.harness.results import changed_settings, read_result

Json = Any
_WHEN = {*Schedule._fields, "eval_batch"} - {"steps"}
_NAMED = 2  # changed settings that a label names; a record has all
_SUMS = {"loss", "correct", "examples"}


class Series(NamedTuple):
    """A curve of a run.

    Attributes:
        name: what tells it from others of the same measure; empty if there are none.
        x: steps, or what else a measurement was made against.
        y: as many values.
    """

    name: str
    x: list[float]
    y: list[float]


class ShownRun:
    """A finished run, whose record and log have been held against each other."""

    def __init__(self, folder: Path) -> None:
        """Reads it; raises RecordError for a damaged one."""
        self.folder, self.path = folder, below_root(folder)
        self.record, self.log = read_result(folder)
        self.seed: int = self.record["seed"]
        self.final: dict[str, Json] = self.record["final"]

    @property
    def named(self) -> tuple[Path, dict[str, Json]]:
        """The record, behind its file's path."""
        return self.folder / "record.json", self.record

    @property
    def origin(self) -> Origin:
        """What made it."""
        return origin_of([self.folder], [self.named])

    @cached_property
    def fields(self) -> dict[str, Json]:
        """All that the numbers depend on but the seed, by name."""
        identity = identity_of(self.record)
        parts = {name: identity.get(name, {}) for name in ("config", "schedule", "settings")}
        single = {k: v for k, v in identity.items() if k not in (*parts, "seed", "data_sha256")}
        if parts["settings"]:
            del single["arm"]  # the settings are what it stands for
        data = {"data": self.record["data"]["name"], "data_sha256": identity["data_sha256"]}
        return single | parts["config"] | parts["schedule"] | parts["settings"] | data

    @cached_property
    def numbers(self) -> dict[str, float]:
        """What the run came to, by the heads of columns; absent where it has no such number."""
        found: dict[str, float] = {}
        if tested := [entry["test"] for entry in self.log if "test" in entry]:
            found["best accuracy, %"] = 100 * max(map(accuracy, tested))
        for name, head in (("test", "final, %"), ("test_population", "by Algorithm 2, %")):
            if self.final.get(name) is not None:
                found[head] = 100 * accuracy(self.final[name])
        if self.final.get("test") is not None:
            found["final loss"] = self.final["test"]["loss"] / self.final["test"]["examples"]
        if self.final.get("effect") is not None:
            found["effect"] = self.final["effect"]
        return found

    @property
    def checks(self) -> str:
        """How many of the theorems' bounds are held; empty for a run that has none."""
        checks = self.final.get("checks") or []
        held = sum(check["deviation"] <= check["bound"] for check in checks)
        return f"{held} of {len(checks)}" if checks else ""

    @cached_property
    def curves(self) -> dict[str, list[Series]]:
        """The curves by measure: of the log, and those that a measurement left in its outcome."""
        found: dict[str, tuple[list[float], list[float]]] = {}
        for entry in self.log:
            for measure, value in _measures(entry):
                x, y = found.setdefault(measure, ([], []))
                x.append(entry["step"])
                y.append(value)
        curves = {measure: [Series("", *points)] for measure, points in found.items()}
        if measured := list(_measured(self.final.get("curves") or {})):
            curves["what was measured"] = measured
        return curves


class Group(NamedTuple):
    """Runs of one arm that differ by their seeds alone.

    Attributes:
        experiment: its name.
        folder: of the runs, below the experiment's results.
        arm: whose runs they are.
        label: of the arm, with what makes it another.
        runs: in order of seeds.
        changed: the label with all settings that make it another, where it only counts them.
    """

    experiment: str
    folder: str
    arm: Arm
    label: str
    runs: list[ShownRun]
    changed: str = ""

    @property
    def fields(self) -> dict[str, Json]:
        """All that the numbers depend on but the seed, by name."""
        return self.runs[0].fields

    @property
    def origin(self) -> Origin:
        """What made the runs."""
        return origin_of([run.folder for run in self.runs], [run.named for run in self.runs])

    def values(self, head: str) -> dict[int, float]:
        """A number of each run, by seed, of those that have it."""
        return {run.seed: run.numbers[head] for run in self.runs if head in run.numbers}


class Pair(NamedTuple):
    """Two groups that can be compared.

    Attributes:
        first: a group.
        second: the group that it is held against.
        differ: names of the settings in which they differ.
        differences: of accuracies in points, `paired` by seed, by the heads of columns.
    """

    first: Group
    second: Group
    differ: list[str]
    differences: dict[str, dict[str, Any]]


def read_groups(experiment: str, results: Path, arms: Sequence[Arm]) -> list[Group]:
    """Reads all finished runs below a folder of results.

    Args:
        experiment: its name.
        results: where its runs are, at any depth.
        arms: of the experiment, in the order of tables; a run of no such arm is shown by its name.

    Returns:
        Folder by folder, arm by arm.

    Raises:
        RecordError: what a run left is damaged, or does not agree.
    """
    known = {arm.name: arm for arm in arms}
    found: dict[tuple[Any, ...], list[ShownRun]] = {}
    for file in results.rglob("record.json"):
        if not read_record(file.parent)["finished"]:
            continue
        run = ShownRun(file.parent)
        name, parent = run.record["arm"], file.parent.parent
        folder = "" if parent == results else parent.relative_to(results).as_posix()
        place = list(known).index(name) if name in known else len(known)
        rate = run.record.get("learning_rate") or 0
        fields = json.dumps(run.fields, sort_keys=True)
        found.setdefault((folder, place, name, rate, fields), []).append(run)
    groups = []
    for (folder, _, name, *_), runs in sorted(found.items(), key=lambda item: item[0]):
        arm = known.get(name) or Arm(name=name, label=name)
        with making_sense(*runs[0].named):
            changed = changed_settings(arm, runs[0].record) if name in known else {}
        label, whole = label_of(arm, changed, arms), ""
        if len(changed) > _NAMED and label not in {other.label for other in arms}:
            label, whole = f"{arm.label}, {len(changed)} settings changed", label
        by_seed = sorted(runs, key=lambda run: run.seed)
        groups.append(Group(experiment, folder, arm, label, by_seed, whole))
    return [_told_apart(group, groups) for group in groups]


def pairs(groups: Sequence[Group]) -> Iterator[Pair]:
    """Yields the groups whose accuracies can be compared, those that differ least first.

    Of one experiment and the same data, with two seeds or more in common; in one folder at one
    learning rate, or else with one difference alone.
    """
    found = []
    for second, first in combinations(groups, 2):
        if first.experiment != second.experiment:
            continue
        if first.fields["data_sha256"] != second.fields["data_sha256"]:
            continue
        differ = differing(first.fields, second.fields)
        rates = {group.fields.get("learning_rate") for group in (first, second)}
        together = first.folder == second.folder and len(rates) == 1
        differences = dict(_differences(first, second))
        if differences and (together or len(differ) == 1):
            found.append(Pair(first, second, differ, differences))
    yield from sorted(found, key=lambda pair: len(pair.differ))


def differing(first: dict[str, Json], second: dict[str, Json]) -> list[str]:
    """Returns the names of what differs in two groups' fields, but for when they are measured."""
    names = (first | second).keys() - _WHEN
    return sorted(name for name in names if first.get(name) != second.get(name))


def varying(groups: Sequence[Group]) -> list[str]:
    """Returns the names of fields that are not the same in all groups that have them."""
    names = dict.fromkeys(name for group in groups for name in group.fields)
    values = {
        name: {json.dumps(group.fields[name]) for group in groups if name in group.fields}
        for name in names
    }
    return sorted(name for name in names if len(values[name]) > 1)


def _told_apart(group: Group, groups: Sequence[Group]) -> Group:
    """The group with a label that no other of its folder has."""
    alike = [
        other for other in groups if (other.folder, other.label) == (group.folder, group.label)
    ]
    own = {name: group.fields[name] for name in varying(alike) if name in group.fields}
    return group._replace(label=label_of(replace(group.arm, label=group.label), own))


def _differences(first: Group, second: Group) -> Iterator[tuple[str, dict[str, Any]]]:
    for head in ("best accuracy, %", "final, %"):
        one, other = first.values(head), second.values(head)
        if len({*one} & {*other}) > 1:
            yield head, paired(one, other)


def _measures(entry: dict[str, Json]) -> Iterator[tuple[str, float]]:
    """The numbers of a log's entry: accuracies, losses, and what stands there by itself."""
    for name, value in entry.items():
        if isinstance(value, dict) and value.keys() >= _SUMS:
            if value["examples"]:
                yield f"{name} accuracy, %", 100 * accuracy(value)
                yield f"{name} loss", value["loss"] / value["examples"]
        elif name != "step" and isinstance(value, int | float):
            yield name, value


def _measured(curves: dict[str, Json]) -> Iterator[Series]:
    """Lists of numbers by name, against the first if that counts something, else by position."""
    lists = {name: values for name, values in curves.items() if _is_list_of_numbers(values)}
    if not lists:
        return
    first = next(iter(lists))
    counted = lists[first]
    if len(lists) > 1 and _counts(counted):
        del lists[first]
    else:
        counted = list(range(max(map(len, lists.values()))))
    for name, values in lists.items():
        if len(values) <= len(counted):
            yield Series(name, counted[: len(values)], values)


def _is_list_of_numbers(values: Json) -> bool:
    numbers = isinstance(values, list) and all(isinstance(x, int | float) for x in values)
    return numbers and len(values) > 2


def _counts(values: Sequence[float]) -> bool:
    """Whether they are whole numbers that only grow or only fall: steps, layers."""
    changes = np.diff(np.asarray(values, float))
    one_way = (changes > 0).all() or (changes < 0).all()
    return bool(one_way) and all(isinstance(value, int) for value in values)
