"""The benchmark of whole networks in Markdown, a pure function of its JSON."""

from collections.abc import Iterator
from typing import Any

from experiments.benchmarks.machine import surroundings
from experiments.benchmarks.turns import Spread, spread

MOST_TIME = 1.15
"""Target on CPUs: the time of bnjax's step, in times of eager PyTorch's."""

LEAST_IMAGES = 1.0
"""Target elsewhere: bnjax's images per second, in times of those of `torch.compile`."""

NAMES = {
    "ours": "bnjax",
    "torch": "PyTorch, eager, channels_last",
    "torch_compiled": "PyTorch, torch.compile, channels_last",
}

Result = dict[str, Any]


def table(result: Result) -> str:
    """A line for each size and contestant, the targets, then what one must know to read it."""
    peer = _peer(result)
    lines = [
        _row(["BN-Inception", "step of", "ms (quartiles)", "images/s", f"x {NAMES[peer]}"]),
        _row(["---"] * 2 + ["---:"] * 3),
    ]
    for cell in result["cells"]:
        for name, seconds in cell["seconds"].items():
            taken = spread(seconds)
            ratio = _ratio(cell, name, peer)
            lines.append(
                _row(
                    [
                        _size(cell),
                        NAMES[name],
                        _three(taken, 1e3, 1),
                        f"{cell['batch_size'] / taken.median:,.1f}",
                        "" if ratio is None else _three(ratio, 1, 2),
                    ]
                )
            )
        lines += [
            _row([_size(cell), NAMES[name], f"not measured: {reason}", "", ""])
            for name, reason in result["missing"].items()
        ]
    notes = [*_targets(result, peer), *_conditions(result)]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)])


def _peer(result: Result) -> str:
    return "torch" if result["environment"]["backend"] == "cpu" else "torch_compiled"


def _ratio(cell: Result, name: str, peer: str) -> Spread | None:
    """A contestant's time to the peer's, turn by turn."""
    if name == peer or peer not in cell["seconds"]:
        return None
    pairs = zip(cell["seconds"][name], cell["seconds"][peer], strict=True)
    return spread([mine / theirs for mine, theirs in pairs])


def _targets(result: Result, peer: str) -> Iterator[str]:
    for cell in result["cells"]:
        ratio = _ratio(cell, "ours", peer) if "ours" in cell["seconds"] else None
        if ratio is None:
            continue
        if peer == "torch":
            reached, value = ratio.median <= MOST_TIME, ratio.median
            goal = f"at most {MOST_TIME:g} times {NAMES[peer]}"
        else:
            reached, value = 1 / ratio.median >= LEAST_IMAGES, 1 / ratio.median
            goal = f"at least {LEAST_IMAGES:g} times the images/s of {NAMES[peer]}"
        yield f"Target, {_size(cell)}: {goal}: {value:.2f}: {'reached' if reached else 'missed'}."


def _conditions(result: Result) -> Iterator[str]:
    config = result["config"]
    yield (
        f"Forward and backward pass, cross-entropy, SGD with momentum, in {config['dtype']}; "
        "parameters and statistics are float32. Both start from the same parameters and see the "
        "same batch, which lies in the device's memory."
    )
    yield (
        f"Median of {config['repeats']} turns (quartiles), turn by turn in one process in random "
        f"order; a turn is one untimed step, then steps for {config['turn_seconds']:g} s. Ratios "
        "are of times, each step to the peer's of the same repeat."
    )
    if result["threads"] is not None and result["environment"]["backend"] == "cpu":
        yield f"Threads, XLA's and PyTorch's alike: {result['threads']}."
    yield surroundings(result)


def _size(cell: Result) -> str:
    side = cell["image_size"]
    return f"width {cell['width']:g}, {cell['batch_size']} images of {side}x{side}"


def _three(taken: Spread, unit: float, digits: int) -> str:
    median, low, high = (f"{unit * value:,.{digits}f}" for value in taken)
    return f"{median} ({low} to {high})"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
