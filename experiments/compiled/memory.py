"""Memory that a training step of the Inception networks takes on a chip, batch by batch.

Activations are bfloat16, parameters float32; the batch, and what normalizes it, is split over the
chips.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import jax.numpy as jnp

from bnjax.linen import BatchNorm
from bnjax.models.bn_inception import BNInception
from bnjax.models.inception_v3 import AUXILIARY_WEIGHT, InceptionV3
from bnjax.training.objectives import classification_objective
from bnjax.training.optimizers import momentum_sgd, rmsprop
from bnjax.training.parallel import DataParallel
from experiments.compiled.rows import Case, Result, check_names, compile_cases, find_topologies
from experiments.compiled.steps import AbstractStep, training_step

SCHEMA = 1
NORM = partial(BatchNorm, momentum=0.9)


@dataclass(frozen=True)
class Config:
    """Peak memory of a training step on one chip, by network and batch."""

    networks: tuple[str, ...] = ("bn_inception", "inception_v3")
    """bn_inception at 224x224 pixels, inception_v3 at 299x299 with its side head."""
    batch_sizes: tuple[int, ...] = (32, 64, 128, 256)
    """Examples on each chip."""
    topologies: tuple[str, ...] = ("v5e:1x1",)
    """What to compile for: v5e:1x1 (a TPU chip), v5e:2x4 (eight), h100:1, cpu:8 and others."""
    remat: bool = False
    """Whether the backward pass computes each Inception module again."""

    def __post_init__(self) -> None:
        check_names("networks", self.networks, NETWORKS)
        check_names("batch_sizes", self.batch_sizes)
        check_names("topologies", self.topologies)
        for size in self.batch_sizes:
            if size < 1:
                raise ValueError(f"batch_sizes must be >= 1, got {size}.")


def measure(config: Config, keep: Path | None = None) -> Result:
    """Compiles a training step for every network, topology and batch.

    Args:
        config: what to compile.
        keep: a file for the rows until all are there: the same call goes on after it.

    Returns:
        JSON values, raw; `missing` names the topologies whose compiler is not installed, and why.

    Raises:
        ValueError: for a topology that does not exist.
        MissingCompilerError: if nothing at all can be compiled.
    """
    topologies, missing = find_topologies(config.topologies)
    cases = []
    for network in config.networks:
        for topology in topologies:
            for size in config.batch_sizes:
                examples = size * len(topology.devices)
                make = partial(NETWORKS[network], config.remat, examples)
                identity = {"network": network, "batch_size": size}
                cases.append(Case(identity, topology, DataParallel(devices=topology.devices), make))
    settings = {
        "schema": SCHEMA,
        "benchmark": "memory",
        "config": asdict(config),
        "missing": {name: str(error) for name, error in missing.items()},
    }
    return compile_cases(cases, settings, keep)


def _bn_inception(remat: bool, examples: int) -> AbstractStep:
    model = BNInception(norm=NORM, dtype=jnp.bfloat16, remat=remat)
    return training_step(model, momentum_sgd(0.045), (224, 224, 3), examples)


def _inception_v3(remat: bool, examples: int) -> AbstractStep:
    model = InceptionV3(norm=NORM, dtype=jnp.bfloat16, remat=remat)
    objective = classification_objective(label_smoothing=0.1, auxiliary_weights=(AUXILIARY_WEIGHT,))
    return training_step(model, rmsprop(0.045), (299, 299, 3), examples, objective)


NETWORKS: dict[str, Callable[[bool, int], AbstractStep]] = {
    "bn_inception": _bn_inception,
    "inception_v3": _inception_v3,
}
"""Makers of a step, with or without remat, for the examples of a whole batch."""
