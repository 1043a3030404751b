"""Normalizations of many makes, and how tests call networks that have them."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bnjax.linen import BatchNorm

KEY = jax.random.key(0)


class OwnCall(nn.Module):
    """A layer of somebody's own: it takes the mode in its call alone."""

    @nn.compact
    def __call__(self, x, *, train: bool):
        return nn.BatchNorm(name="inner")(x, use_running_average=not train)


class OwnField(nn.Module):
    """Another, whose field has a mode by default."""

    use_running_average: bool = False

    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(self.use_running_average, name="inner")(x)


class Subclass(BatchNorm):
    """With another default."""

    momentum: float = 0.5


class OwnSum(BatchNorm):
    """With a call of its own."""

    @nn.compact
    def __call__(self, x, use_running_average=None):
        return x + nn.BatchNorm(self.use_running_average, name="inner")(x, use_running_average)


def asks_for_mode(use_running_average, **options):
    """What networks wanted to be given before they looked at the layer."""
    return nn.GroupNorm(num_groups=2, **options)


def hides_batch_norm(**options):
    return BatchNorm(momentum=0.5, epsilon=1e-3, **options)


WITHOUT_STATISTICS = {
    "group": partial(nn.GroupNorm, num_groups=2),
    "positional": partial(nn.GroupNorm, 2),
    "layer": nn.LayerNorm,
    "rms": nn.RMSNorm,
    "lambda": lambda: nn.GroupNorm(2),
    "lambda_name": lambda name: nn.GroupNorm(2, name=name),
    "lambda_options": lambda **options: nn.GroupNorm(2, **options),
    "asks_for_mode": asks_for_mode,
    "by_name": "group:2",
}
WITH_STATISTICS = {
    "flax": nn.BatchNorm,
    "ours": BatchNorm,
    "partial": partial(BatchNorm, momentum=0.5),
    "function": hides_batch_norm,
    "lambda": lambda: nn.BatchNorm(momentum=0.5),
    "subclass": Subclass,
    "own_call": OwnCall,
    "lambda_own_call": lambda **options: OwnCall(**options),
    "own_field": OwnField,
    "lambda_own_field": lambda: OwnField(),
    "own_sum": OwnSum,
    "remat": nn.remat(BatchNorm),
    "by_name": "batch",
    "ghost": "ghost:3",
}


def normal(*shape):
    return jnp.asarray(np.random.default_rng(1).normal(2, 3, shape), jnp.float32)


def trained(model, x):
    """Variables of a model, none at its initial zero or one."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: model.init(KEY, x, train=False))
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype), shapes
    )


def in_training(model, variables, x):
    """Compiled as one program, as below: dozens of small ones take longer."""
    return jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))(variables, x)


def in_inference(model, variables, x, mutable=()):
    return jax.jit(partial(model.apply, train=False, mutable=mutable))(variables, x)


INCEPTION = {"classes": 10, "width": 0.1, "stem_stride": 1, "dropout": 0.0}  # two channels at least
