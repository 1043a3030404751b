"""A training step of a narrow BN-Inception: what normalization adds to it.

The same network, data and optimizer with bnjax's normalization, with Flax's, and with biases
alone; the same in eager PyTorch, where it is installed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from experiments.benchmarks import tables
from experiments.benchmarks.benchmark import (
    Result,
    TimedConfig,
    provenance,
    start_keeping_memory,
)
from experiments.benchmarks.training import NETWORKS, find_torch, race
from experiments.benchmarks.training_spec import StepSpec
from experiments.benchmarks.turns import Spread, spread
from experiments.harness.bounds import check_fields

CONTESTANTS = (*NETWORKS, "torch", "torch_bias")

MOST_ADDED = 0.05
"""Target on CPUs: bnjax's normalization adds at most this fraction to a step with biases alone."""

LABELS = {
    "ours": "bnjax, ReLU inside",
    "ours_separate": "bnjax, then ReLU",
    "flax": "Flax Linen",
    "torch": "PyTorch, eager",
    "bias": "bias alone",
    "torch_bias": "PyTorch, eager, bias alone",
}

FLOORS = {"ours": "bias", "ours_separate": "bias", "flax": "bias", "torch": "torch_bias"}
"""The step without normalization that a contestant is compared with."""


@dataclass(frozen=True)
class Config(TimedConfig):
    """A training step of a narrow BN-Inception: what normalization adds to it."""

    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32",)
    """Types of the computation; parameters and statistics are float32."""
    contestants: tuple[str, ...] = CONTESTANTS
    """Contestants; all are compared with the steps of `bias` and `torch_bias`."""
    width: float = 0.25
    """Factor on the network's widths."""
    image_size: int = 32
    """Height and width of the images, pixels."""
    stem_stride: Literal[1, 2, 4, 8] = 1
    """Total stride before the first Inception module; 8 is the paper's, for 224 pixels."""
    batch_size: int = 32
    """Images in a step."""
    classes: int = 10
    """Outputs."""
    learning_rate: float = 1e-3
    """Learning rate of SGD with momentum 0.9; small, for the labels are random."""

    def __post_init__(self) -> None:
        check_fields(self, choices={"contestants": CONTESTANTS})


start = start_keeping_memory


def measure(config: Config) -> Result:
    """Times all contestants that are installed.

    Raises:
        ValueError: a contestant's loss is not finite at the end.
    """
    peers, missing = find_torch(config.contestants)
    names = [name for name in config.contestants if name not in missing]
    result = provenance("train_step", config, peers=peers, missing=missing)
    result["cells"] = []
    for dtype in config.dtypes:
        spec = StepSpec(
            config.width,
            config.image_size,
            config.stem_stride,
            config.batch_size,
            config.classes,
            dtype,
            config.learning_rate,
        )
        times = race(spec, names, repeats=config.repeats, turn_seconds=config.turn_seconds)
        result["cells"].append({"dtype": dtype, **times})
    return result


def table(result: Result) -> str:
    """Returns a line for each contestant and dtype, the target, then the conditions."""
    heads = ["train step", "ms (quartiles)", "normalization adds", "temporary, MB"]
    rows: list[list[str]] = []
    for cell in result["cells"]:
        for name, seconds in cell["seconds"].items():
            added, size = _added(cell, name), cell["temporary_bytes"][name]
            rows.append(
                [
                    f"{LABELS[name]}, {cell['dtype']}",
                    tables.quartiles(spread(seconds), unit=1e3),
                    "" if added is None else f"{tables.quartiles(added, unit=100)} %",
                    tables.optional("{:.1f}", None if size is None else size / 1e6),
                ]
            )
        rows += [
            [f"{LABELS[name]}, {cell['dtype']}", f"not measured: {reason}"]
            for name, reason in result["missing"].items()
        ]
    notes = [*_targets(result), *_conditions(result)]
    return f"{tables.table(heads, rows)}\n\n{tables.bullets(notes)}"


def _added(cell: dict[str, Any], name: str) -> Spread | None:
    """Returns the fraction by which a contestant's step takes longer than the floor's."""
    floor = FLOORS.get(name)
    if floor is None or floor not in cell["seconds"]:
        return None
    return Spread(*(ratio - 1 for ratio in tables.ratio_by_turn(cell["seconds"], name, floor)))


def _targets(result: Result) -> Iterator[str]:
    for cell in result["cells"] if result["environment"]["backend"] == "cpu" else []:
        added = _added(cell, "ours") if "ours" in cell["seconds"] else None
        if added is not None:
            yield (
                f"Target: {LABELS['ours']}, adds at most {100 * MOST_ADDED:.0f} % in "
                f"{cell['dtype']}: {100 * added.median:.1f} %: "
                f"{tables.verdict(added.median <= MOST_ADDED)}."
            )


def _conditions(result: Result) -> Iterator[str]:
    config = result["config"]
    yield (
        f"BN-Inception with {config['width']:g} of its widths, {config['batch_size']} images of "
        f"{config['image_size']}x{config['image_size']}, {config['classes']} classes, stem of "
        f"stride {config['stem_stride']}; forward and backward pass, SGD with momentum."
    )
    yield (
        f"{tables.turns_note(config, 'step')} What normalization adds is the median over the "
        "repeats, each step against the step with biases alone of the same repeat."
    )
    yield tables.surroundings(result)
