"""The experiment's tables in Markdown, from its summary."""

from typing import Any

from bnjax.evidence.tables import percent, plain, steps, table
from experiments.harness import comparison, sweeps
from experiments.harness.differences import difference_line
from experiments.mnist_lenet.arms import ARMS
from experiments.mnist_lenet.summary import SETTLED, TARGETS

_LABELS = {arm.name: arm.label for arm in ARMS}


def arms_table(summary: dict[str, Any]) -> str:
    """Steps to each target and final accuracy, mean ± sd over seeds, one line an arm."""
    heads = [f"steps to {100 * target:g} %" for target in TARGETS]
    rows = []
    for name, arm in summary["arms"].items():
        times = [steps(arm["steps_to"][f"{target:g}"], arm["runs"]) for target in TARGETS]
        population = arm.get("final_accuracy_algorithm_2")
        rows.append(
            [
                _LABELS[name],
                str(arm["runs"]),
                *times,
                percent(arm["final_accuracy"]),
                percent(population) if population else "",
            ]
        )
    return table(["network", "seeds", *heads, "final accuracy, %", "by Algorithm 2, %"], rows)


def differences_text(summary: dict[str, Any]) -> str:
    """The paired differences, a line each."""
    return "\n".join(
        difference_line(_LABELS[first], _LABELS[second], difference)
        for difference in summary["differences"]
        for first, second in (difference["arms"],)
    )


def drift_text(summary: dict[str, Any]) -> str:
    """How far the median inputs of the last hidden layer travel, a line each arm long enough."""
    lines = []
    for name, arm in summary["arms"].items():
        if arm["median_path_length"]["mean"] is None:
            continue
        line = f"- {_LABELS[name]}: {plain(arm['median_path_length'])}"
        if "median_path_length_running" in arm:
            line += f"; by running statistics {plain(arm['median_path_length_running'])}"
        lines.append(f"{line}; from step {SETTLED:,} on.")
    return "\n".join(lines)


def divergence_text(summary: dict[str, Any]) -> str:
    """The runs that reached infinity, a line each; empty if none did."""
    return comparison.divergence_text(summary["arms"], _label)


def sweep_table(summary: dict[str, Any]) -> str:
    """Final accuracy by learning rate, a column each arm and length; empty without a sweep."""
    return sweeps.sweep_table(summary["sweep"], _label, "final_accuracy")


def best_rates_text(summary: dict[str, Any]) -> str:
    """The best learning rate of each arm and length, a line each."""
    return sweeps.best_rates_text(summary["sweep"], _label, "final_accuracy")


def _label(arm: str, entry: Any) -> str:
    return _LABELS[arm]
