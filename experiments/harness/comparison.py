"""Arms compared: a summary, tables and a figure, each a pure function of the runs' folders."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bnjax.evidence.figures import (
    Curve,
    Form,
    Marker,
    learning_curves,
    mark,
    mark_of,
    new_figure,
    save,
)
from bnjax.evidence.statistics import accuracy, spread, steps_to, times
from bnjax.evidence.tables import divergence, percent, plain, steps, table
from experiments.harness.arm import Arm, by_name, label_of
from experiments.harness.differences import difference_line, paired
from experiments.harness.page import Report
from experiments.harness.results import Runs, load_runs, load_sweep, runs_below, unlike
from experiments.harness.sweeps import Entry, Label, best_rates_text, sweep_table
from experiments.harness.weights import FILE


@dataclass(frozen=True)
class Comparison(Report):
    """Best accuracy of each arm, how soon it is as good as a reference's best, and curves.

    If records state the size of networks, as `network` in `final`, the table has it.

    Attributes:
        arms: what is compared, in the order of the table.
        reference: name of the arm that the others are held against.
        figure: name of the figure's file.
        batch: examples of the paper's batch. Where a run has others, its steps are counted in
            batches of so many as well.
    """

    arms: Sequence[Arm]
    reference: str
    figure: str = "curves.png"
    batch: int | None = None
    block_names: ClassVar[tuple[str, ...]] = ("arms", "differences", "divergence", "sweep")

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if self.reference not in names:
            raise ValueError(
                f"reference: unknown {self.reference!r}; choose from {', '.join(names)}."
            )

    def load(self, out: Path) -> dict[str, Runs]:
        """Reads the runs below `out` that were trained to their end, by arm."""
        return load_runs(self.arms, out)

    def summarize(self, out: Path) -> dict[str, Any]:
        """Returns all numbers of the tables, JSON values."""
        runs = self.load(out)
        reference = runs.get(self.reference) if len(runs) > 1 else None
        sweep = load_sweep(self.arms, out / "sweep")
        rates = {name: list(map(at_rate, groups)) for name, groups in sweep.items()}
        arms = {
            name: _summary(group, reference) | self._other_batch(group)
            for name, group in runs.items()
        }
        swept = {"sweep": rates} if rates else {}
        return {"arms": arms} | swept | unlikeness(runs, sweep)

    def tables(self, out: Path, summary: dict[str, Any]) -> list[str]:
        """Returns what the command prints."""
        differences = self.reference_differences(out)
        return [
            self.arms_table(summary) if summary["arms"] else "",
            f"Best accuracy:\n{differences}" if differences else "",
            self.divergence_text(summary),
            self.sweep_text(summary),
            waiting_text(summary),
            unlike_text(summary),
            missing_text(out),
        ]

    def blocks(self, out: Path) -> dict[str, str]:
        """Returns what a README holds of the runs below `out`, by `block_names`."""
        summary = self.summarize(out)
        return {
            "arms": "\n\n".join(filter(None, (self.arms_table(summary), unlike_text(summary)))),
            "differences": self.reference_differences(out),
            "divergence": self.divergence_text(summary),
            "sweep": self.sweep_text(summary),
        }

    def arms_table(self, summary: dict[str, Any]) -> str:
        """Returns steps to the reference's best and the maxima, beside the paper's numbers.

        Mean ± standard deviation over seeds. A network that is not the paper's has no numbers of
        the paper.
        """
        name = by_name(self.arms, self.reference).label
        held = any("steps_to_best_of_reference" in arm for arm in summary["arms"].values())
        heads = ["network", "seeds", "steps"]
        if held:
            heads += [f"steps to {name}'s best", "times fewer"]
        heads += ["best accuracy, %", "final, %", "final by Algorithm 2, %"]
        batch = self.batch if any("batch_size" in arm for arm in summary["arms"].values()) else None
        if batch:
            heads += [f"steps in batches of {batch}", f"the same to {name}'s best"][: 1 + held]
        sized = any("network" in arm for arm in summary["arms"].values())
        if sized:
            heads += ["parameters", "multiply-adds"]
        papers = list(dict.fromkeys(head for arm in self.arms for head in arm.paper))
        if papers:
            heads += [f"paper: {papers[0]}", *papers[1:]]
        rows = []
        for name, arm in summary["arms"].items():
            stated = {} if arm["changed"] else by_name(self.arms, name).paper
            cells = [self._label(name, arm), str(arm["runs"]), f"{arm['steps']:,}"]
            cells += [*(_held(arm) if held else ()), *_accuracies(arm)]
            if batch:
                cells += _counted_in(batch, arm)[: 1 + held]
            if sized:
                cells += _size(arm)
            rows.append([*cells, *(stated.get(head, "") for head in papers)])
        return table(heads, rows)

    def reference_differences(self, out: Path) -> str:
        """Returns the difference of each arm to the reference, a line each."""
        runs = self.load(out)
        if self.reference not in runs:
            return ""
        others = [group for name, group in runs.items() if name != self.reference]
        return differences_text((group, runs[self.reference]) for group in others)

    def divergence_text(self, summary: dict[str, Any]) -> str:
        """Returns the runs that reached infinity, a line each; empty if none did."""
        return divergence_text(summary["arms"], self._label)

    def sweep_text(self, summary: dict[str, Any]) -> str:
        """Returns best accuracy by learning rate, and the best rates; empty without a sweep."""
        if "sweep" not in summary:
            return ""
        parts = (summary["sweep"], self._label, "best_accuracy")
        return f"{sweep_table(*parts)}\n\n{best_rates_text(*parts)}"

    def draw(self, out: Path, to: Path | None = None, *, form: Form = "png") -> list[Path]:
        """Draws accuracy against steps, with markers where the reference's best is matched.

        Of arms that have a colour. Returns the file, if there is a run of one of them.
        """
        runs = {name: group for name, group in self.load(out).items() if group.arm.color}
        if not runs:
            return []
        figure, (axes,) = new_figure((6.4,), height=4.0)
        curves = list(map(curve, runs.values()))
        highest = max(curve.y.max() for curve in curves)
        lowest = min(curve.y.min() for curve in curves)
        margin = max(0.05 * (highest - lowest), 0.01)
        learning_curves(axes, curves, lowest=lowest, highest=highest + margin, split="validation")
        if self.reference in runs:
            reference = runs[self.reference]
            mark(axes, _markers(runs.values(), reference), level=_mean_best(reference))
        seeds = max(len(group.seeds) for group in runs.values())
        title = f"mean of {seeds} seeds ± one standard deviation" if seeds > 1 else "one seed"
        axes.set_title(title)
        return [save(figure, ((to or out) / self.figure).with_suffix(f".{form}"))]

    def _other_batch(self, group: Runs) -> dict[str, int]:
        size = group.record["identity"].get("config", {}).get("batch_size", self.batch)
        return {} if self.batch in (None, size) else {"batch_size": size}

    def _label(self, name: str, arm: Mapping[str, Any]) -> str:
        return label_of(by_name(self.arms, name), arm["changed"], self.arms)


def differences_text(pairs: Iterable[tuple[Runs, Runs]]) -> str:
    """Returns the best accuracy of each pair's first arm minus that of its second, a line each."""
    return "\n".join(
        difference_line(first.label, second.label, paired(first.best(), second.best()))
        for first, second in pairs
    )


def divergence_text(arms: Mapping[str, Entry], label: Label) -> str:
    """Returns the runs that reached infinity, a line each; empty if none did.

    Args:
        arms: what the summary says of each, by name.
        label: of an arm.
    """
    return "\n".join(
        f"- {label(name, arm)}, seed {fault['seed']}, {divergence(fault)}"
        for name, arm in arms.items()
        for fault in arm["diverged"]
    )


def waiting_text(summary: dict[str, Any]) -> str:
    """Returns the largest share of training time that a run waited for images, if known."""
    shares = [arm["waiting_share"] for arm in summary["arms"].values()]
    known = [share for share in shares if share is not None]
    return (
        f"Training waited for images {100 * max(known):.1f} % of its time at most." if known else ""
    )


def unlikeness(runs: Mapping[str, Runs], sweep: Mapping[str, list[Runs]]) -> dict[str, Any]:
    """Returns what a summary says of arms that are not of one configuration; empty if they are."""
    swept = unlike(groups[0] for groups in sweep.values())
    swept.pop("learning_rate", None)  # the first of each arm
    found = {"unlike": unlike(runs.values()), "sweep_unlike": swept}
    return {name: said for name, said in found.items() if said}


def unlike_text(summary: dict[str, Any]) -> str:
    """Returns what arms differ in that is not theirs, a line each; empty for one configuration."""
    lines = []
    for key, where in (("unlike", ""), ("sweep_unlike", " of the sweep")):
        for name, values in summary.get(key, {}).items():
            arms: dict[str, list[str]] = {}
            for arm, value in values.items():
                arms.setdefault(str(value), []).append(arm)
            said = "; ".join(f"{value} of {', '.join(of)}" for value, of in arms.items())
            lines.append(f"- The arms{where} differ in more than themselves: {name} is {said}.")
    return "\n".join(lines)


def missing_text(out: Path) -> str:
    """Returns the finished runs whose weights are gone; empty if none are."""
    finished = [folder for folder, record in runs_below(out) if record["finished"]]
    gone = [str(folder) for folder in finished if not (folder / FILE).exists()]
    if not gone:
        return ""
    return f"Without {FILE}, so that they cannot be evaluated over many crops: {', '.join(gone)}."


def match_steps(group: Runs, reference: Runs) -> dict[int, int | None]:
    """Returns, by seed, the first evaluated step at which a run matches the reference's best.

    Each run is held against the reference's run of the same seed; seeds without one are absent.
    """
    best = reference.best()
    return {
        seed: steps_to(best[seed], at, values)
        for seed, at, values in zip(group.seeds, group.steps, group.accuracy, strict=True)
        if seed in best
    }


def accuracies(group: Runs) -> dict[str, Any]:
    """Returns what any summary says of an arm's runs; one that diverged came to its last state."""
    summary = {
        "runs": len(group.seeds),
        "steps": max(int(at[-1]) for at in group.steps),
        "best_accuracy": spread(list(group.best().values())),
        "final_accuracy": spread(list(group.last().values())),
        "changed": group.changed,
        "diverged": group.diverged,
    }
    population = [final["test_population"] for final in group.finals]
    if None not in population:
        summary["final_accuracy_algorithm_2"] = spread(list(map(accuracy, population)))
    return summary


def at_rate(group: Runs) -> dict[str, Any]:
    """Returns what a summary says of an arm's runs at a rate of a sweep."""
    known = accuracies(group)
    said = ("runs", "best_accuracy", "final_accuracy", "changed", "diverged")
    rate = {"learning_rate": group.learning_rate, "steps": group.length}
    return rate | {name: known[name] for name in said}


def _summary(group: Runs, reference: Runs | None) -> dict[str, Any]:
    timings = [final["timing"] for final in group.finals if final["timing"] is not None]
    waiting = max((timing["waiting_share"] for timing in timings), default=None)
    summary = accuracies(group) | {"waiting_share": waiting}
    if "network" in group.finals[0]:
        summary["network"] = group.finals[0]["network"]
    if reference is not None:
        own, theirs = match_steps(group, reference), match_steps(reference, reference)
        summary["steps_to_best_of_reference"] = {"compared": len(own)} | times(own.values())
        pairs = [(theirs[seed], after) for seed, after in own.items() if after]
        summary["times_fewer_steps"] = spread([before / after for before, after in pairs if before])
    return summary


def _counted_in(batch: int, arm: dict[str, Any]) -> list[str]:
    """Steps, and those to the reference's best, if each were of `batch` examples."""
    times = arm.get("batch_size", batch) / batch
    reached = arm.get("steps_to_best_of_reference")
    return [
        f"{times * arm['steps']:,.0f}",
        "" if reached is None else steps(reached, reached["compared"], times),
    ]


def _size(arm: dict[str, Any]) -> list[str]:
    size = arm.get("network", {})
    return [f"{size[name]:,}" if size else "" for name in ("parameters", "multiply_adds")]


def _held(arm: dict[str, Any]) -> list[str]:
    """Steps to the reference's best, and how many times fewer than its own."""
    reached, fewer = arm["steps_to_best_of_reference"], arm["times_fewer_steps"]
    return [
        steps(reached, reached["compared"]),
        "" if fewer["mean"] is None else plain(fewer, digits=1),
    ]


def _accuracies(arm: dict[str, Any]) -> list[str]:
    population = arm.get("final_accuracy_algorithm_2")
    return [
        percent(arm["best_accuracy"]),
        percent(arm["final_accuracy"]),
        "" if population is None else percent(population),
    ]


def curve(group: Runs) -> Curve:
    """Returns the runs at the steps that they have in common; those that diverged as marks.

    Where all diverged, they are the curve.
    """
    shown = group.whole() or range(len(group.seeds))
    points = min(len(group.steps[run]) for run in shown)
    values = np.array([group.accuracy[run][:points] for run in shown])
    assert group.arm.color is not None
    ended = tuple(float(fault["step"]) for fault in group.diverged)
    x = group.steps[shown[0]][:points]
    return Curve(group.label, group.arm.color, x, values, group.arm.line, ended)


def _markers(runs: Iterable[Runs], reference: Runs) -> list[Marker]:
    """Where an arm matches the reference's best, on average over the seeds, if all of them do."""
    markers = []
    for position, group in enumerate(runs):
        matched = list(match_steps(group, reference).values())
        if matched and None not in matched and group.arm.color:
            at = float(np.mean(np.array(matched, float)))
            sign = mark_of(position)
            markers.append(Marker(at, _mean_best(reference), group.arm.color, sign))
    return markers


def _mean_best(reference: Runs) -> float:
    return float(np.mean([values.max() for values in reference.accuracy]))
