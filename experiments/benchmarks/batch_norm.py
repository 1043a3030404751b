"""Forward and backward pass of one batch normalization layer: bnjax beside every installed peer.

All contestants get the same numbers and take turns in one process. `bias` adds a bias and nothing
else: the floor. What is measured, and against which target: `batch_norm_table`.
"""

import math
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, Literal

from bnjax.evidence.records import environment
from experiments.benchmarks import memory
from experiments.benchmarks.batch_norm_collectives import collectives_apart
from experiments.benchmarks.batch_norm_costs import accuracy, residual_bytes
from experiments.benchmarks.batch_norm_layers import LAYERS, Wanted
from experiments.benchmarks.batch_norm_programs import (
    Given,
    JaxProgram,
    Program,
    layer_of,
    made_inputs,
)
from experiments.benchmarks.batch_norm_table import table
from experiments.benchmarks.turns import take_turns

__all__ = ["CONTESTANTS", "SCHEMA", "Config", "measure", "table"]

SCHEMA = 1

_TORCH = {"torch": None, "torch_one_thread": 1}  # the number of threads

CONTESTANTS = (*LAYERS, *_TORCH)

_PACKAGES = {"haiku": "dm-haiku", "equinox": "equinox", "keras": "keras", "torch": "torch"}

Dtype = Literal["float32", "bfloat16"]
Activation = Literal["none", "relu"]
Measure = Literal["time", "memory", "accuracy", "collectives"]


@dataclass(frozen=True)
class Config:
    """Forward and backward pass of one batch normalization layer, beside every installed peer."""

    shapes: tuple[str, ...] = ("32x56x56x64", "32x28x28x192", "32x14x14x576", "60x100")
    """Inputs, channels last: examples x height x width x channels, or examples x features."""
    dtypes: tuple[Dtype, ...] = ("float32", "bfloat16")
    """Of input and output; parameters and statistics are float32."""
    activations: tuple[Activation, ...] = ("none", "relu")
    """What follows the normalization."""
    contestants: tuple[str, ...] = CONTESTANTS
    """Who takes part."""
    measures: tuple[Measure, ...] = ("time", "memory", "accuracy", "collectives")
    """What to measure."""
    repeats: int = 30
    """Turns of each contestant at each shape, dtype and activation."""
    turn_seconds: float = 0.03
    """A turn's length: calls are made until it is over, at least one."""
    bandwidth_bytes: int = 2**28
    """Size of each of the arrays of a + 3 b, whose rate is the memory's bandwidth: far above any
    cache, if the caches are not to be measured."""
    bandwidth_tries: int = 10
    """Times of which the fastest counts."""
    accuracy_shape: str = "32x14x14x64"
    """Input of the measure of accuracy."""
    keep_memory: bool = True
    """Start anew with glibc told to keep freed memory; else the environment is left alone."""

    def __post_init__(self) -> None:
        for text in (*self.shapes, self.accuracy_shape):
            parsed_shape(text)
        unknown = [name for name in self.contestants if name not in CONTESTANTS]
        if unknown:
            raise ValueError(
                f"contestants: unknown {unknown[0]!r}; choose from {', '.join(CONTESTANTS)}."
            )
        for name in ("shapes", "dtypes", "activations", "contestants", "measures"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must be given, each once; got {values}.")
        for name in ("repeats", "bandwidth_tries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}.")
        if self.bandwidth_bytes < 4:
            raise ValueError(f"bandwidth_bytes must be >= 4, got {self.bandwidth_bytes}.")
        if not 0 < self.turn_seconds < math.inf:
            raise ValueError(f"turn_seconds must be > 0, got {self.turn_seconds}.")


def parsed_shape(text: str) -> tuple[int, ...]:
    """`"32x14x14x576"` as numbers.

    Raises:
        ValueError: if it is not two or four numbers, or leaves one value per feature.
    """
    try:
        shape = tuple(map(int, text.split("x")))
    except ValueError:
        shape = ()
    if len(shape) not in (2, 4) or min(shape) < 1 or math.prod(shape[:-1]) < 2:
        raise ValueError(
            f"shape {text!r} is none: give examples x features or examples x height x width x "
            "channels, for example 32x14x14x576, with two values per feature at least."
        )
    return shape


def measure(config: Config) -> dict[str, Any]:
    """Measures all contestants that are installed.

    Returns:
        JSON values, raw; `missing` names the contestants whose library is not installed, and why.
    """
    present, versions, missing = _installed(config.contestants)
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "benchmark": "batch_norm",
        "config": asdict(config),
        "environment": environment(),
        "allocation": memory.settings(),
        "peers": versions,
        "missing": missing,
    }
    if "time" in config.measures:
        rate = memory.bytes_per_second(config.bandwidth_bytes, config.bandwidth_tries)
        result["bytes_per_second"] = rate
    result["cells"] = [
        _cell(config, parsed_shape(shape), dtype, activation, present)
        for activation in config.activations
        for dtype in config.dtypes
        for shape in config.shapes
        if {"time", "memory"} & set(config.measures)
    ]
    jax_names = [name for name in present if name not in _TORCH]
    if "memory" in config.measures:
        result["residual_bytes"] = _residuals(config, jax_names)
    if "accuracy" in config.measures:
        _say("accuracy")
        result["accuracy"] = accuracy(
            parsed_shape(config.accuracy_shape),
            [name for name in present if name != "bias"],
            program,
        )
    if "collectives" in config.measures:
        _say("collectives")
        result["collectives"] = collectives_apart(jax_names)
    return result


def program(name: str, wanted: Wanted, given: Given) -> Program:
    """The named contestant's program."""
    if name in _TORCH:
        from experiments.benchmarks.batch_norm_torch import TorchProgram

        return TorchProgram(wanted, given, threads=_TORCH[name])
    return JaxProgram(name, wanted, given)


def _cell(
    config: Config,
    shape: tuple[int, ...],
    dtype: str,
    activation: str,
    names: list[str],
) -> dict[str, Any]:
    """Times and temporary memory at one shape, dtype and activation."""
    _say(f"{'x'.join(map(str, shape))} {dtype} {activation}")
    wanted, given = Wanted(shape, dtype, activation == "relu"), made_inputs(shape)
    programs = {name: program(name, wanted, given) for name in names}
    cell: dict[str, Any] = {"shape": shape, "dtype": dtype, "activation": activation}
    if "time" in config.measures:
        runners = {name: each.run for name, each in programs.items()}
        turns = take_turns(runners, repeats=config.repeats, turn_seconds=config.turn_seconds)
        cell["seconds"] = {name: [turn.seconds for turn in taken] for name, taken in turns.items()}
        cell["page_faults"] = {
            name: [turn.page_faults for turn in taken] for name, taken in turns.items()
        }
    if "memory" in config.measures:
        cell["temporary_bytes"] = {name: each.temporary_bytes() for name, each in programs.items()}
    return cell


def _residuals(config: Config, names: list[str]) -> list[dict[str, Any]]:
    shape = (8, 4, 4, 8)  # the count per value depends on no size; features are kept apart by it
    return [
        {
            "dtype": dtype,
            "activation": activation,
            "per_value": {
                name: residual_bytes(
                    layer_of(name, Wanted(shape, dtype, activation == "relu"), made_inputs(shape)),
                    shape,
                    dtype,
                )
                for name in names
            },
        }
        for activation in config.activations
        for dtype in config.dtypes
    ]


def _installed(names: tuple[str, ...]) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """Those that can be made; the versions of their libraries; the others, and why."""
    present, versions, missing = [], {}, {}
    wanted = Wanted((2, 2, 2, 2), "float32")
    for name in names:
        try:
            program(name, wanted, made_inputs(wanted.shape))
        except ImportError as error:
            missing[name] = f"{error}; the extra bnjax[parity] has it on Python 3.11"
            continue
        present.append(name)
        if name in _PACKAGES:
            versions[name] = metadata.version(_PACKAGES[name])
    return present, versions, missing


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
