"""A training step of BN-Inception in bnjax and in PyTorch, at named sizes.

The same network, parameters, data and optimizer, turn by turn in one process. On CPUs the peer is
eager PyTorch, on as many threads as XLA has; on a GPU it is `torch.compile`, in bfloat16.
"""

import math
import os
import sys
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import jax

from bnjax.evidence.records import environment
from experiments.benchmarks import memory
from experiments.benchmarks.networks_table import table
from experiments.benchmarks.train_step import find_torch, race
from experiments.benchmarks.train_step_networks import Setting

__all__ = ["CONTESTANTS", "SCHEMA", "SIZES", "Config", "measure", "table"]

SCHEMA = 1

CONTESTANTS = ("ours", "torch", "torch_compiled")


class Size(NamedTuple):
    """A network and its batch; fields as in `train_step.Config`."""

    width: float
    image_size: int
    stem_stride: int
    batch_size: int
    classes: int


SIZES = {
    "narrow": Size(0.25, 32, 1, 32, 10),
    "full": Size(1.0, 224, 8, 8, 1000),
    "full_128": Size(1.0, 224, 8, 128, 1000),
}
"""For CIFAR's images; the paper's network, a batch that CPUs can bear; the same for one GPU."""


@dataclass(frozen=True)
class Config:
    """A training step of BN-Inception in bnjax and in PyTorch, at named sizes."""

    sizes: tuple[str, ...] | None = None
    """What is trained: narrow (1/4 of the widths, 32 images of 32x32), full (224x224, 8 images),
    full_128 (128 images); by default narrow and full on CPUs, full_128 elsewhere."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the computation, PyTorch's by autocast; parameters and statistics are float32. By default
    float32 on CPUs, bfloat16 elsewhere."""
    contestants: tuple[str, ...] | None = None
    """Who takes part; by default ours and torch, and elsewhere than on CPUs torch_compiled."""
    learning_rate: float = 1e-3
    """Of SGD with momentum 0.9; small, for the labels are random."""
    repeats: int = 30
    """Turns of each contestant at each size."""
    turn_seconds: float = 0.5
    """A turn's length: steps are made until it is over, at least one."""
    keep_memory: bool = True
    """Start anew with glibc told to keep freed memory; else the environment is left alone."""

    def __post_init__(self) -> None:
        for name, choices in (("sizes", SIZES), ("contestants", CONTESTANTS)):
            values = getattr(self, name)
            if values is None:
                continue
            unknown = [value for value in values if value not in choices]
            if unknown:
                raise ValueError(
                    f"{name}: unknown {unknown[0]!r}; choose from {', '.join(choices)}."
                )
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must be given, each once; got {values}.")
        if self.repeats < 1:
            raise ValueError(f"repeats must be >= 1, got {self.repeats}.")
        for name in ("learning_rate", "turn_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}.")


class _Chosen(NamedTuple):
    """Fields of `Config` that depend on the machine."""

    sizes: tuple[str, ...]
    dtype: str
    contestants: tuple[str, ...]


def _choose(config: Config, backend: str) -> _Chosen:
    cpu = backend == "cpu"
    return _Chosen(
        config.sizes or (("narrow", "full") if cpu else ("full_128",)),
        config.dtype or ("float32" if cpu else "bfloat16"),
        config.contestants or (CONTESTANTS[:2] if cpu else CONTESTANTS),
    )


def measure(config: Config) -> dict[str, Any]:
    """Times all contestants at all sizes.

    Returns:
        JSON values, raw, with what was chosen for this machine in the configuration; `missing`
        names the contestants whose library is not installed, and why.

    Raises:
        ValueError: if a contestant's loss is not finite at the end: its times mean nothing then.
    """
    chosen = _choose(config, jax.default_backend())
    version, missing = find_torch(chosen.contestants)
    names = [name for name in chosen.contestants if name not in missing]
    threads = _equal_threads() if version else None
    cells = []
    for size in chosen.sizes:
        print(f"size: {size}", file=sys.stderr, flush=True)
        setting = Setting(chosen.dtype, *SIZES[size], config.learning_rate)
        times = race(setting, names, repeats=config.repeats, turn_seconds=config.turn_seconds)
        cells.append({"size": size, **SIZES[size]._asdict(), **times})
    return {
        "schema": SCHEMA,
        "benchmark": "networks",
        "config": asdict(config) | chosen._asdict(),
        "environment": environment(),
        "allocation": memory.settings(),
        "peers": version,
        "threads": threads,
        "missing": missing,
        "cells": cells,
    }


def _equal_threads() -> int:
    """Gives PyTorch as many threads as XLA takes on CPUs: one for each core."""
    import torch

    if hasattr(os, "sched_getaffinity"):  # elsewhere both take all cores
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    return torch.get_num_threads()
