"""A training step of a narrow BN-Inception: what normalization adds to it.

The same network, data and optimizer with bnjax's normalization, with Flax's, and with biases
alone, turn by turn in one process; the same in eager PyTorch, where it is installed.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bnjax.evidence.records import environment
from experiments.benchmarks import memory
from experiments.benchmarks.train_step_networks import (
    NETWORKS,
    JaxTraining,
    Setting,
    Training,
    initial_variables,
    network,
)
from experiments.benchmarks.train_step_table import table
from experiments.benchmarks.turns import take_turns

__all__ = ["CONTESTANTS", "SCHEMA", "Config", "find_torch", "measure", "race", "table"]

SCHEMA = 1

CONTESTANTS = (*NETWORKS, "torch", "torch_bias")

_TORCH = {  # whose initial parameters they take
    "torch": "flax",
    "torch_compiled": "flax",
    "torch_bias": "bias",
}


@dataclass(frozen=True)
class Config:
    """A training step of a narrow BN-Inception with bnjax's layers, Flax's, and biases alone."""

    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32",)
    """Of the computation; parameters and statistics are float32."""
    contestants: tuple[str, ...] = CONTESTANTS
    """Who takes part; `bias` and `torch_bias` are what the others are compared with."""
    width: float = 0.25
    """Factor on the network's widths."""
    image_size: int = 32
    """Height and width of the images, pixels."""
    stem_stride: Literal[1, 2, 4, 8] = 1
    """Total stride before the first Inception module; 8 is the paper's, for 224 pixels."""
    batch_size: int = 32
    """Images of a step."""
    classes: int = 10
    """Outputs."""
    learning_rate: float = 1e-3
    """Of SGD with momentum 0.9; small, for the labels are random."""
    repeats: int = 30
    """Turns of each contestant."""
    turn_seconds: float = 0.5
    """A turn's length: steps are made until it is over, at least one."""
    keep_memory: bool = True
    """Start anew with glibc told to keep freed memory; else the environment is left alone."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.contestants if name not in CONTESTANTS]
        if unknown:
            raise ValueError(
                f"contestants: unknown {unknown[0]!r}; choose from {', '.join(CONTESTANTS)}."
            )
        for name in ("dtypes", "contestants"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must be given, each once; got {values}.")
        for name in ("image_size", "batch_size", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}.")
        for name in ("width", "learning_rate", "turn_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}.")


def measure(config: Config) -> dict[str, Any]:
    """Times all contestants.

    Returns:
        JSON values, raw; `missing` names the contestants whose library is not installed, and why.

    Raises:
        ValueError: if a contestant's loss is not finite at the end: its times mean nothing then.
    """
    version, missing = find_torch(config.contestants)
    names = [name for name in config.contestants if name not in missing]
    return {
        "schema": SCHEMA,
        "benchmark": "train_step",
        "config": asdict(config),
        "environment": environment(),
        "allocation": memory.settings(),
        "peers": version,
        "missing": missing,
        "cells": [_cell(config, dtype, names) for dtype in config.dtypes],
    }


def training(name: str, setting: Setting) -> Training:
    """The named contestant, compiled."""
    if name not in _TORCH:
        return JaxTraining(name, setting)
    from experiments.benchmarks.train_step_torch import TorchTraining

    variables = initial_variables(network(_TORCH[name], setting), setting)
    return TorchTraining(setting, variables["params"], compiled=name == "torch_compiled")


def find_torch(names: tuple[str, ...]) -> tuple[dict[str, str], dict[str, str]]:
    """Its version; or the contestants that need it, and why they are missing."""
    wanted = [name for name in names if name in _TORCH]
    if not wanted:
        return {}, {}
    try:
        import torch
    except ImportError as error:
        reason = f"{error}; the extra bnjax[parity] has it on Python 3.11"
        return {}, dict.fromkeys(wanted, reason)
    return {"torch": torch.__version__}, {}


def _cell(config: Config, dtype: str, names: list[str]) -> dict[str, Any]:
    setting = Setting(
        dtype,
        config.width,
        config.image_size,
        config.stem_stride,
        config.batch_size,
        config.classes,
        config.learning_rate,
    )
    return {
        "dtype": dtype,
        **race(setting, names, repeats=config.repeats, turn_seconds=config.turn_seconds),
    }


def race(
    setting: Setting, names: Sequence[str], *, repeats: int, turn_seconds: float
) -> dict[str, Any]:
    """Times the named contestants turn by turn, for `repeats` and `turn_seconds` of `take_turns`.

    Returns:
        JSON values, raw, each by contestant.

    Raises:
        ValueError: if a contestant's loss is not finite at the end.
    """
    trainings: dict[str, Training] = {}
    for name in names:
        print(f"compiling: {name}, {setting.dtype}", file=sys.stderr, flush=True)
        trainings[name] = training(name, setting)
    turns = take_turns(
        {name: each.run for name, each in trainings.items()},
        repeats=repeats,
        turn_seconds=turn_seconds,
    )
    losses = {name: each.loss() for name, each in trainings.items()}
    for name, loss in losses.items():
        if not math.isfinite(loss):
            raise ValueError(
                f"{name} diverged: choose a learning_rate below {setting.learning_rate}."
            )
    return {
        "seconds": {name: [turn.seconds for turn in taken] for name, taken in turns.items()},
        "page_faults": {
            name: [turn.page_faults for turn in taken] for name, taken in turns.items()
        },
        "temporary_bytes": {name: each.temporary_bytes() for name, each in trainings.items()},
        "final_loss": losses,
    }
