"""A training step of BN-Inception in bnjax and in PyTorch, at named sizes.

The same network, parameters, data and optimizer. On CPUs the peer is eager PyTorch, on as many
threads as XLA has; on a GPU it is `torch.compile`, in bfloat16. It has a file of its own beside
`train_step`, whose race it runs: it asks another question, and its table compares with another
contestant.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax

from bnjax.cores import usable_cores
from experiments.benchmarks import tables
from experiments.benchmarks.benchmark import (
    Result,
    TimedConfig,
    provenance,
    start_keeping_memory,
)
from experiments.benchmarks.training import find_torch, race
from experiments.benchmarks.training_spec import StepSpec
from experiments.benchmarks.turns import Spread, spread
from experiments.harness.bounds import check_fields

CONTESTANTS = ("ours", "torch", "torch_compiled")

SIZES: dict[str, dict[str, Any]] = {
    "narrow": dict(width=0.25, image_size=32, stem_stride=1, batch_size=32, classes=10),
    "full": dict(width=1.0, image_size=224, stem_stride=8, batch_size=8, classes=1000),
    "full_128": dict(width=1.0, image_size=224, stem_stride=8, batch_size=128, classes=1000),
}
"""For CIFAR's images; the paper's network, with a batch that CPUs can bear; the same for a GPU."""

MOST_TIME = 1.15
"""Target on CPUs: the time of bnjax's step over that of eager PyTorch's."""

LEAST_IMAGES = 1.0
"""Target elsewhere: bnjax's images per second over those of `torch.compile`."""

LABELS = {
    "ours": "bnjax",
    "torch": "PyTorch, eager, channels_last",
    "torch_compiled": "PyTorch, torch.compile, channels_last",
}


@dataclass(frozen=True)
class Config(TimedConfig):
    """A training step of BN-Inception in bnjax and in PyTorch, narrow and whole."""

    sizes: tuple[str, ...] | None = None
    """Networks and batches: narrow (1/4 of the widths, 32 images of 32x32), full (8 images of
    224x224), full_128 (128 images); by default narrow and full on CPUs, full_128 elsewhere."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of the computation, PyTorch's by autocast; parameters and statistics are float32. By
    default float32 on CPUs, bfloat16 elsewhere."""
    contestants: tuple[str, ...] | None = None
    """Contestants; by default ours and torch, and torch_compiled too elsewhere than on CPUs."""
    learning_rate: float = 1e-3
    """Learning rate of SGD with momentum 0.9; small, for the labels are random."""

    def __post_init__(self) -> None:
        check_fields(self, choices={"sizes": SIZES, "contestants": CONTESTANTS})


start = start_keeping_memory


def measure(config: Config) -> Result:
    """Times all contestants at all sizes; the result's configuration says what was chosen.

    Raises:
        ValueError: a contestant's loss is not finite at the end.
    """
    cpu = jax.default_backend() == "cpu"
    sizes = config.sizes or (("narrow", "full") if cpu else ("full_128",))
    dtype = config.dtype or ("float32" if cpu else "bfloat16")
    contestants = config.contestants or (CONTESTANTS[:2] if cpu else CONTESTANTS)
    peers, missing = find_torch(contestants)
    names = [name for name in contestants if name not in missing]
    chosen = replace(config, sizes=sizes, dtype=dtype, contestants=contestants)
    result = provenance("networks", chosen, peers=peers, missing=missing)
    result["threads"] = _equal_threads() if peers else None
    result["cells"] = []
    for name in sizes:
        print(f"size: {name}", file=sys.stderr, flush=True)
        spec = StepSpec(**SIZES[name], dtype=dtype, learning_rate=config.learning_rate)
        times = race(spec, names, repeats=config.repeats, turn_seconds=config.turn_seconds)
        result["cells"].append({"size": name, **SIZES[name], **times})
    return result


def _equal_threads() -> int:
    """Gives PyTorch as many threads as XLA takes on CPUs: one for each core."""
    import torch

    torch.set_num_threads(usable_cores())
    return torch.get_num_threads()


def table(result: Result) -> str:
    """Returns a line for each size and contestant, the targets, then the conditions."""
    peer = "torch" if result["environment"]["backend"] == "cpu" else "torch_compiled"
    heads = ["BN-Inception", "step of", "ms (quartiles)", "images/s", f"x {LABELS[peer]}"]
    rows: list[list[str]] = []
    for cell in result["cells"]:
        for name, seconds in cell["seconds"].items():
            taken, ratio = spread(seconds), _ratio(cell, name, peer)
            rows.append(
                [
                    _size(cell),
                    LABELS[name],
                    tables.quartiles(taken, unit=1e3),
                    f"{cell['batch_size'] / taken.median:,.1f}",
                    "" if ratio is None else tables.quartiles(ratio, digits=2),
                ]
            )
        rows += [
            [_size(cell), LABELS[name], f"not measured: {reason}"]
            for name, reason in result["missing"].items()
        ]
    notes = [*_targets(result, peer), *_conditions(result)]
    return f"{tables.table(heads, rows, left=2)}\n\n{tables.bullets(notes)}"


def _ratio(cell: dict[str, Any], name: str, peer: str) -> Spread | None:
    seconds = cell["seconds"]
    if name == peer or not {name, peer} <= set(seconds):
        return None
    return tables.ratio_by_turn(seconds, name, peer)


def _targets(result: Result, peer: str) -> Iterator[str]:
    for cell in result["cells"]:
        ratio = _ratio(cell, "ours", peer)
        if ratio is None:
            continue
        if peer == "torch":
            reached, value = ratio.median <= MOST_TIME, ratio.median
            goal = f"at most {MOST_TIME:g} times {LABELS[peer]}"
        else:
            reached, value = 1 / ratio.median >= LEAST_IMAGES, 1 / ratio.median
            goal = f"at least {LEAST_IMAGES:g} times the images/s of {LABELS[peer]}"
        yield f"Target, {_size(cell)}: {goal}: {value:.2f}: {tables.verdict(reached)}."


def _conditions(result: Result) -> Iterator[str]:
    yield (
        "Forward and backward pass, cross-entropy, SGD with momentum, in "
        f"{result['config']['dtype']}; parameters and statistics are float32. Both start from the "
        "same parameters and see the same batch, which lies in the device's memory."
    )
    yield (
        f"{tables.turns_note(result['config'], 'step')} Ratios are of times, each step to the "
        "peer's of the same repeat."
    )
    if result["threads"] is not None and result["environment"]["backend"] == "cpu":
        yield f"Threads, XLA's and PyTorch's alike: {result['threads']}."
    yield tables.surroundings(result)


def _size(cell: dict[str, Any]) -> str:
    side = cell["image_size"]
    return f"width {cell['width']:g}, {cell['batch_size']} images of {side}x{side}"
