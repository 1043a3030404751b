"""Forward and backward pass of one batch normalization layer: bnjax beside every installed peer.

All contestants get the same numbers and take turns in one process. `bias` only adds a bias: it is
the floor. `batch_norm_table` has the targets.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal

from experiments.benchmarks import machine
from experiments.benchmarks.batch_norm_collectives import collectives_in_subprocess
from experiments.benchmarks.batch_norm_costs import accuracy, residual_bytes
from experiments.benchmarks.batch_norm_layers import LAYERS, LayerSpec
from experiments.benchmarks.batch_norm_programs import TORCH_THREADS, make_layer, make_program
from experiments.benchmarks.batch_norm_table import table
from experiments.benchmarks.batch_norm_values import make_inputs
from experiments.benchmarks.benchmark import (
    Result,
    TimedConfig,
    not_installed,
    provenance,
    start_keeping_memory,
)
from experiments.benchmarks.turns import raw, take_turns
from experiments.harness.bounds import check_fields

__all__ = ["CONTESTANTS", "Config", "measure", "start", "table"]

CONTESTANTS = (*LAYERS, *TORCH_THREADS)

_PACKAGES = {"haiku": "dm-haiku", "equinox": "equinox", "keras": "keras", "torch": "torch"}


@dataclass(frozen=True)
class Config(TimedConfig):
    """One layer, forward and backward: time, memory, accuracy, collectives; beside every peer."""

    shapes: tuple[str, ...] = ("32x56x56x64", "32x28x28x192", "32x14x14x576", "60x100")
    """Inputs, channels last: examples x height x width x channels, or examples x features."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    """Types of input and output; parameters and statistics are float32."""
    activations: tuple[Literal["none", "relu"], ...] = ("none", "relu")
    """Activations after the normalization."""
    contestants: tuple[str, ...] = CONTESTANTS
    """Contestants that take part."""
    measures: tuple[Literal["time", "memory", "accuracy", "collectives"], ...] = (
        "time",
        "memory",
        "accuracy",
        "collectives",
    )
    """Measures to take."""
    turn_seconds: float = 0.03
    """Length of a turn: calls are made until it is over, at least one."""
    bandwidth_bytes: int = 2**28
    """Size of each array of a + 3 b, whose rate is the memory's bandwidth; far above any cache,
    unless the caches are to be measured."""
    bandwidth_tries: int = 10
    """Times of which the fastest counts."""
    accuracy_shape: str = "32x14x14x64"
    """Input of the measure of accuracy."""

    def __post_init__(self) -> None:
        for text in (*self.shapes, self.accuracy_shape):
            parse_shape(text)
        check_fields(self, choices={"contestants": CONTESTANTS}, least={"bandwidth_bytes": 4})


def parse_shape(text: str) -> tuple[int, ...]:
    """Returns the shape in `"32x14x14x576"`.

    Raises:
        ValueError: it is not two or four numbers, or leaves one value per feature.
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


start = start_keeping_memory


def measure(config: Config) -> Result:
    """Measures all contestants that are installed."""
    present, versions, missing = _installed(config.contestants)
    result = provenance("batch_norm", config, peers=versions, missing=missing)
    measures = set(config.measures)
    if "time" in measures:
        result["bytes_per_second"] = machine.bytes_per_second(
            config.bandwidth_bytes, config.bandwidth_tries
        )
    result["cells"] = [
        _cell(config, LayerSpec(parse_shape(shape), dtype, activation == "relu"), present)
        for activation in config.activations
        for dtype in config.dtypes
        for shape in config.shapes
        if {"time", "memory"} & measures
    ]
    jax_names = [name for name in present if name in LAYERS]
    if "memory" in measures:
        result["residual_bytes"] = _residuals(config, jax_names)
    if "accuracy" in measures:
        _say("accuracy")
        normalizing = [name for name in present if name != "bias"]
        result["accuracy"] = accuracy(parse_shape(config.accuracy_shape), normalizing)
    if "collectives" in measures:
        _say("collectives")
        result["collectives"] = collectives_in_subprocess(jax_names)
    return result


def _cell(config: Config, spec: LayerSpec, names: Sequence[str]) -> dict[str, Any]:
    """Returns times and temporary memory at one shape, dtype and activation."""
    setting = {"dtype": spec.dtype, "activation": "relu" if spec.relu else "none"}
    _say(f"{'x'.join(map(str, spec.shape))} {setting['dtype']} {setting['activation']}")
    inputs = make_inputs(spec.shape)
    programs = {name: make_program(name, spec, inputs) for name in names}
    cell: dict[str, Any] = {"shape": spec.shape, **setting}
    if "time" in config.measures:
        runners = {name: each.run for name, each in programs.items()}
        cell |= raw(take_turns(runners, repeats=config.repeats, turn_seconds=config.turn_seconds))
    if "memory" in config.measures:
        cell["temporary_bytes"] = {name: each.temporary_bytes() for name, each in programs.items()}
    return cell


def _residuals(config: Config, names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the bytes per value that are kept, which no size changes: a small one serves."""
    shape = (8, 4, 4, 8)
    entries = []
    for activation in config.activations:
        for dtype in config.dtypes:
            spec = LayerSpec(shape, dtype, activation == "relu")
            layers = {name: make_layer(name, spec, make_inputs(shape)) for name in names}
            per_value = {name: residual_bytes(layer, spec) for name, layer in layers.items()}
            entries.append({"dtype": dtype, "activation": activation, "per_value": per_value})
    return entries


def _installed(names: Sequence[str]) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """Returns those that can be made, their libraries' versions, and why others are missing."""
    present, versions, missing = [], {}, {}
    spec = LayerSpec((2, 2, 2, 2), "float32")
    for name in names:
        try:
            make_program(name, spec, make_inputs(spec.shape))
        except ImportError as error:
            missing[name] = not_installed(error)
            continue
        present.append(name)
        if name in _PACKAGES:
            versions[name] = metadata.version(_PACKAGES[name])
    return present, versions, missing


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
