"""The cost that batch normalization adds to a step: bnjax's and Flax's beside a bias alone.

There are two steps: a whole BN-Inception training step (forward, cross-entropy, backward, SGD)
and a stack of convolutions. Activations are bfloat16, parameters float32; the batch is split over
the chips, and its moments are those of all of them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import bnjax.linen
from bnjax.compilers.topologies import Topology
from bnjax.models.bn_inception import BNInception
from bnjax.models.layers import ConvNorm, Norm
from bnjax.training.optimizers import sgd
from bnjax.training.parallel import DataParallel
from experiments.compiled.rows import Case
from experiments.compiled.steps import AbstractStep, training_step
from experiments.harness.bounds import check_fields

ARMS: dict[str, Norm | None] = {
    "bias": None,
    "flax": partial(nn.BatchNorm, momentum=0.9),
    "bnjax": partial(bnjax.linen.BatchNorm, momentum=0.9),
}
"""Normalization of every convolution; without one, a bias."""


@dataclass(frozen=True)
class Config:
    """Bytes, memory, time and collectives that batch normalization adds, on TPUs and GPUs."""

    programs: tuple[str, ...] = ("bn_inception", "convolutions")
    """bn_inception: a training step; convolutions: value and gradient of a stack of them."""
    topologies: tuple[str, ...] = ("v5e:1x1", "v5e:2x4", "h100:1", "h100:8")
    """Chips to compile for: v5e:2x4 (eight TPU chips), h100:8, cpu:8 and others."""
    batch_size: int = 128
    """Examples on each chip."""
    image_size: int = 224
    """Height and width of bn_inception's images, in pixels."""
    width: float = 1.0
    """Factor on all of bn_inception's channels."""
    layers: int = 6
    """Convolutions in the stack: 3x3, 128 channels, of 56x56x64."""

    def __post_init__(self) -> None:
        check_fields(self, choices={"programs": PROGRAMS})

    def cases(self, topology: Topology) -> Iterator[Case]:
        """Yields every program with every normalization."""
        parallel = DataParallel(devices=topology.devices)
        examples = self.batch_size * parallel.device_count
        for program in self.programs:
            for arm, norm in ARMS.items():
                make = partial(PROGRAMS[program], self, norm, examples)
                yield Case({"program": program, "arm": arm}, topology, parallel, make)


def _bn_inception(config: Config, norm: Norm | None, examples: int) -> AbstractStep:
    model = BNInception(norm=norm, width=config.width, dtype=jnp.bfloat16)
    return training_step(model, sgd(0.1), (config.image_size, config.image_size, 3), examples)


class _Stack(nn.Module):
    norm: Norm | None
    layers: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for _ in range(self.layers):
            x = ConvNorm(128, (3, 3), norm=self.norm, dtype=jnp.bfloat16)(x, train=train)
        return x


def _convolutions(config: Config, norm: Norm | None, examples: int) -> AbstractStep:
    model = _Stack(norm, config.layers)
    images = jax.ShapeDtypeStruct((examples, 56, 56, 64), jnp.bfloat16)

    def loss(params: Any, stats: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        y, updates = model.apply(
            {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
        )
        return jnp.square(y.astype(jnp.float32)).mean(), updates

    def value_and_gradient(variables: Any, images: jax.Array) -> Any:
        stats = variables.get("batch_stats", {})
        return jax.value_and_grad(loss, has_aux=True)(variables["params"], stats, images)

    def start() -> Any:
        return model.init(jax.random.key(0), jnp.zeros((1, 56, 56, 64), jnp.bfloat16), train=False)

    return AbstractStep(value_and_gradient, jax.eval_shape(start), images, donate=False)


PROGRAMS: dict[str, Callable[[Config, Norm | None, int], AbstractStep]] = {
    "bn_inception": _bn_inception,
    "convolutions": _convolutions,
}
"""Makers of a step from settings, a normalization and the examples of a whole batch."""
