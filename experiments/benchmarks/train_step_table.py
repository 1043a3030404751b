"""The train step in Markdown, a pure function of its JSON."""

from collections.abc import Iterator
from typing import Any

from experiments.benchmarks.machine import surroundings
from experiments.benchmarks.turns import Spread, spread

MOST_ADDED = 0.05
"""Target on CPUs: bnjax's normalization adds at most this fraction to a step with biases alone."""

NAMES = {
    "ours": "bnjax, ReLU inside",
    "ours_separate": "bnjax, then ReLU",
    "flax": "Flax Linen",
    "torch": "PyTorch, eager",
    "bias": "bias alone",
    "torch_bias": "PyTorch, eager, bias alone",
}

FLOORS = {"torch": "torch_bias"}
"""Whose step a contestant is compared with, where it is not that of `bias`."""

Result = dict[str, Any]


def table(result: Result) -> str:
    """A line for each contestant and dtype, the target, then what one must know to read it."""
    lines = [
        _row(["train step", "ms (quartiles)", "normalization adds", "temporary, MB"]),
        _row(["---"] + ["---:"] * 3),
    ]
    for cell in result["cells"]:
        for name, seconds in cell["seconds"].items():
            added = _added(cell, name)
            size = cell["temporary_bytes"][name]
            lines.append(
                _row(
                    [
                        f"{NAMES[name]}, {cell['dtype']}",
                        _three(spread(seconds), 1e3),
                        "" if added is None else f"{_three(added, 100)} %",
                        "" if size is None else f"{size / 1e6:.1f}",
                    ]
                )
            )
        lines += [
            _row([f"{NAMES[name]}, {cell['dtype']}", f"not measured: {reason}", "", ""])
            for name, reason in result["missing"].items()
        ]
    notes = [*_targets(result), *_conditions(result)]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)])


def _added(cell: Result, name: str) -> Spread | None:
    """The fraction that a contestant's step takes more than the floor's, turn by turn."""
    floor = FLOORS.get(name, "bias")
    if name in ("bias", "torch_bias") or floor not in cell["seconds"]:
        return None
    pairs = zip(cell["seconds"][name], cell["seconds"][floor], strict=True)
    return spread([mine / least - 1 for mine, least in pairs])


def _targets(result: Result) -> Iterator[str]:
    for cell in result["cells"] if result["environment"]["backend"] == "cpu" else []:
        added = _added(cell, "ours") if "ours" in cell["seconds"] else None
        if added is not None:
            yield (
                f"Target: {NAMES['ours']}, adds at most {100 * MOST_ADDED:.0f} % in "
                f"{cell['dtype']}: {100 * added.median:.1f} %: "
                f"{'reached' if added.median <= MOST_ADDED else 'missed'}."
            )


def _conditions(result: Result) -> Iterator[str]:
    config = result["config"]
    yield (
        f"BN-Inception with {config['width']:g} of its widths, {config['batch_size']} images of "
        f"{config['image_size']}x{config['image_size']}, {config['classes']} classes, stem of "
        f"stride {config['stem_stride']}; forward and backward pass, SGD with momentum."
    )
    yield (
        f"Median of {config['repeats']} turns (quartiles), turn by turn in one process in random "
        "order; a turn is one untimed step, then steps for "
        f"{config['turn_seconds']:g} s. What normalization adds is the median over the repeats, "
        "each step against the step with biases alone of the same repeat."
    )
    yield surroundings(result)


def _three(taken: Spread, unit: float) -> str:
    median, low, high = (f"{unit * value:.1f}" for value in taken)
    return f"{median} ({low} to {high})"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
