"""A sweep over learning rates: its table, which rate is best, and whether that lies on a border."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bnjax.evidence.tables import percent, table
from experiments.harness.results import Runs

Entry = Mapping[str, Any]
"""An arm at a rate: `learning_rate`, `steps`, accuracies as `spread` gives them, `runs`, how many
there are, and, if it counts those that diverged, `diverged`, a list of them."""
Sweep = Mapping[str, Sequence[Entry]]
"""By arm, in the order of the rates."""
Label = Callable[[str, Entry], str]


def sweep_table(sweep: Sweep, label: Label, accuracy: str) -> str:
    """Returns accuracy by learning rate, a column each arm and length; empty without a sweep.

    The best is in bold; runs that diverged count with what they reached, but make no best, nor
    does a rate that lacks seeds which others of its column have.

    Args:
        sweep: what is compared.
        label: of an arm's column.
        accuracy: the entries' key of it.
    """
    columns = _columns(sweep, label)
    if not columns:
        return ""
    rates = sorted({entry["learning_rate"] for column in columns.values() for entry in column})
    rows = [
        [f"{rate:g}", *(_cell(column, rate, accuracy) for column in columns.values())]
        for rate in rates
    ]
    return table(["learning rate", *columns], rows, left=0)


def best_rates_text(sweep: Sweep, label: Label, accuracy: str) -> str:
    """Returns the best rate of each column, a line each, and what a border means."""
    return "\n".join(
        f"- {head}: {_said(column, accuracy)}" for head, column in _columns(sweep, label).items()
    )


def at_best_rate(
    groups: Sequence[Runs], reached: Callable[[Runs], Mapping[int, float]] = Runs.best
) -> Runs:
    """Returns an arm's runs at the rate that is best on average.

    Of those where all seeds were trained, and none diverged.

    Args:
        groups: at each rate.
        reached: what counts, by seed.

    Raises:
        ValueError: there is no such rate.
    """
    most = max(len(group.seeds) for group in groups)
    whole = [group for group in groups if len(group.seeds) == most and not group.diverged]
    if not whole:
        raise ValueError(
            f"{groups[0].label} has no rate at which all {most} seeds were trained without "
            "divergence: complete the sweep, or try smaller rates."
        )
    return max(whole, key=lambda group: np.mean([*reached(group).values()]))


def _columns(sweep: Sweep, label: Label) -> dict[str, list[Entry]]:
    """Entries by the heads of their columns: runs of another length are not compared with."""
    columns: dict[str, list[Entry]] = {}
    for arm, entries in sweep.items():
        for entry in sorted(entries, key=lambda entry: entry["steps"]):
            head = f"{label(arm, entry)} ({entry['steps']:,} steps)"
            columns.setdefault(head, []).append(entry)
    return columns


def _best(column: list[Entry], accuracy: str) -> Entry | None:
    whole = [e for e in column if e["runs"] == _most(column) and not e.get("diverged")]
    return max(whole, key=lambda entry: entry[accuracy]["mean"], default=None)


def _most(column: list[Entry]) -> int:
    return max(entry["runs"] for entry in column)


def _cell(column: list[Entry], rate: float, accuracy: str) -> str:
    best = _best(column, accuracy)
    for entry in column:
        if entry["learning_rate"] == rate:
            text = percent(entry[accuracy])
            if entry.get("diverged"):
                return f"{text} ({len(entry['diverged'])} of {entry['runs']} diverged)"
            if entry["runs"] < _most(column):
                return f"{text} (seeds: {entry['runs']}, not {_most(column)})"
            return f"**{text}**" if entry is best else text
    return ""  # an arm may lack a rate


def _said(column: list[Entry], accuracy: str) -> str:
    best = _best(column, accuracy)
    if best is None and not all(entry.get("diverged") for entry in column):
        return f"no rate has all {_most(column)} seeds without divergence yet; complete the sweep."
    if best is None:
        return "runs diverged at every rate; try smaller ones."
    rate, rates = best["learning_rate"], [entry["learning_rate"] for entry in column]
    text = f"{rate:g} is best"
    if len(rates) == 1:
        return f"{text}, the only rate of the sweep; try others."
    for border, word in ((min(rates), "smaller"), (max(rates), "larger")):
        if rate == border:
            return f"{text}, on the border of the sweep; try {word} ones."
    return f"{text}, inside the sweep."
