"""Peak memory of a training step of the Inception networks on a chip, by batch.

Activations are bfloat16, parameters float32; the batch, and what normalizes it, is split over the
chips.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp

from bnjax.compilers.topologies import Topology
from bnjax.linen import BatchNorm
from bnjax.models.bn_inception import BNInception
from bnjax.models.inception_v3 import AUXILIARY_WEIGHT, InceptionV3
from bnjax.training.objectives import classification_objective
from bnjax.training.optimizers import momentum_sgd, rmsprop
from bnjax.training.parallel import DataParallel
from experiments.compiled.rows import Case
from experiments.compiled.steps import AbstractStep, training_step
from experiments.harness.bounds import check_fields

NORM = partial(BatchNorm, momentum=0.9)


@dataclass(frozen=True)
class Config:
    """Peak memory of a training step on one chip, by network and batch."""

    networks: tuple[str, ...] = ("bn_inception", "inception_v3")
    """bn_inception at 224x224 pixels, inception_v3 at 299x299 with its side head."""
    batch_sizes: tuple[int, ...] = (32, 64, 128, 256)
    """Examples on each chip."""
    topologies: tuple[str, ...] = ("v5e:1x1",)
    """Chips to compile for: v5e:1x1 (a TPU chip), v5e:2x4 (eight), h100:1, cpu:8 and others."""
    remat: bool = False
    """Compute each Inception module again in the backward pass."""

    def __post_init__(self) -> None:
        check_fields(self, choices={"networks": NETWORKS})

    def cases(self, topology: Topology) -> Iterator[Case]:
        """Yields a training step for every network and batch."""
        parallel = DataParallel(devices=topology.devices)
        for network in self.networks:
            for size in self.batch_sizes:
                make = partial(NETWORKS[network], self.remat, size * parallel.device_count)
                yield Case({"network": network, "batch_size": size}, topology, parallel, make)


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
