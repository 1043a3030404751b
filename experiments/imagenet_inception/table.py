"""Figure 3 of the paper, with its numbers beside ours, in Markdown."""

from collections.abc import Iterable
from typing import Any

from bnjax.evidence.tables import divergence, percent, plain, steps, table
from experiments.differences import difference_line, paired
from experiments.imagenet_inception.summary import Runs, best_accuracy

NAMES = {
    "inception": "Inception",
    "bn_baseline": "BN-Baseline",
    "bn_x5": "BN-x5",
    "bn_x30": "BN-x30",
    "bn_x5_sigmoid": "BN-x5-Sigmoid",
} | {f"ensemble_{number}": f"ensemble, network {number}" for number in range(1, 7)}

_INCEPTION_STEPS = 31.0e6
PAPER = {
    "inception": (_INCEPTION_STEPS, 0.722),
    "bn_baseline": (13.3e6, 0.727),
    "bn_x5": (2.1e6, 0.730),
    "bn_x30": (2.7e6, 0.748),
    "bn_x5_sigmoid": (None, 0.698),
}
"""Figure 3: steps to 72.2 %, and the maximum accuracy."""


def arms_table(summary: dict[str, Any]) -> str:
    """Steps to Inception's best and the maxima, mean ± sd over seeds, and the paper's."""
    heads = ["network", "seeds", "steps", "steps to Inception's best", "times fewer"]
    heads += ["best accuracy, %", "final, %", "final by Algorithm 2, %"]
    heads += ["paper: steps to 72.2 %", "times fewer", "best, %"]
    return table(heads, [_row(name, arm) for name, arm in summary["arms"].items()])


def differences_text(pairs: Iterable[tuple[Runs, Runs]]) -> str:
    """The best accuracy of each pair's first arm minus that of its second, a line each."""
    return "\n".join(
        difference_line(
            label(first.arm, first.changed),
            label(second.arm, second.changed),
            paired(best_accuracy(first), best_accuracy(second)),
        )
        for first, second in pairs
    )


def label(arm: str, changed: dict[str, Any]) -> str:
    """The network's name, and what makes it another one than the paper's."""
    return ", ".join([NAMES[arm], *(f"{name} {value}" for name, value in changed.items())])


def divergence_text(summary: dict[str, Any]) -> str:
    """The runs that reached infinity, a line each; empty if none did."""
    return "\n".join(
        f"- {label(name, arm['changed'])} {divergence(fault)}"
        for name, arm in summary["arms"].items()
        for fault in arm["diverged"]
    )


def waiting_text(summary: dict[str, Any]) -> str:
    """The largest share of training time that a run waited for images; empty if none is known."""
    shares = [arm["waiting_share"] for arm in summary["arms"].values()]
    known = [share for share in shares if share is not None]
    if not known:
        return ""
    return f"Training waited for images {100 * max(known):.1f} % of its time at most."


def memory_text(record: dict[str, Any]) -> str:
    """What a run's process and its arrays held: from the second evaluation on, all is compiled."""
    memory, length = record["final"]["memory"], record["identity"]["schedule"]["steps"]
    host, arrays = ([size / 1e6 for size in memory[name][1:]] for name in ("host", "arrays"))
    return (
        f"{NAMES[record['arm']]} over {length:,} steps: the process held "
        f"{host[0]:,.0f} MB at the second evaluation, {host[-1]:,.0f} MB at the last, "
        f"{max(host):,.0f} MB at most; its arrays {min(arrays):.2f} to {max(arrays):.2f} MB."
    )


def _row(name: str, arm: dict[str, Any]) -> list[str]:
    reached = arm.get("steps_to_best_of_reference")
    fewer = arm.get("times_fewer_steps", {"mean": None})
    population = arm.get("final_accuracy_algorithm_2")
    paper_steps, paper_best = (None, None) if arm["changed"] else PAPER.get(name, (None, None))
    return [
        label(name, arm["changed"]),
        str(arm["runs"]),
        f"{arm['steps']:,}",
        "" if reached is None else steps(reached, reached["compared"]),
        "" if fewer["mean"] is None else plain(fewer, digits=1),
        percent(arm["best_accuracy"]),
        percent(arm["final_accuracy"]),
        "" if population is None else percent(population),
        "" if paper_steps is None else f"{paper_steps / 1e6:.1f}e6",
        "" if paper_steps is None else f"{_INCEPTION_STEPS / paper_steps:.1f}",
        "" if paper_best is None else f"{100 * paper_best:.1f}",
    ]
