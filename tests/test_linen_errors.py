"""Errors of the Linen module: they name the layer, the value and the remedy."""

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from bnjax.linen import BatchNorm

KEY = jax.random.key(0)


class Net(nn.Module):
    """A layer two levels down."""

    settings: tuple = ()

    @nn.compact
    def __call__(self, x, **call):
        return Block(self.settings, name="block")(x, **call)


class Block(nn.Module):
    settings: tuple

    @nn.compact
    def __call__(self, x, **call):
        return BatchNorm(**dict(self.settings), name="norm")(x, **call)


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        ({}, (1, 5), "one value per feature"),
        ({"momentum": 1.0}, (16, 5), r"decay must be in \[0, 1\), got 1.0"),
        ({"epsilon": 0.0}, (16, 5), "epsilon must be > 0"),
        ({"impl": "fast"}, (16, 5), "impl must be one of"),
        ({"running_var": "sample"}, (16, 5), "running_var must be one of"),
    ],
)
def test_errors_name_the_layer(settings, shape, message):
    variables = Net().init(KEY, jnp.ones((2, 5)), use_running_average=True)
    net = Net(tuple(settings.items()))
    with pytest.raises(ValueError, match=rf"BatchNorm at block/norm: .*{message}"):
        net.apply(variables, jnp.ones(shape), use_running_average=False, mutable=["batch_stats"])


def test_errors_at_initialization_name_the_layer():
    with pytest.raises(ValueError, match=r"BatchNorm at block/norm: axis=7 does not name"):
        Net((("axis", 7),)).init(KEY, jnp.ones((2, 5)), use_running_average=False)
    with pytest.raises(ValueError, match=r"BatchNorm at block/norm: averaging must be one of"):
        Net((("averaging", "mean"),)).init(KEY, jnp.ones((2, 5)), use_running_average=False)


def test_integers_are_refused(promotion):
    with pytest.raises(ValueError, match=r"BatchNorm at \(top\): x must be floating, got int32"):
        BatchNorm(use_running_average=False).init(KEY, jnp.ones((4, 5), jnp.int32))


def test_the_mode_has_no_default():
    with pytest.raises(ValueError, match=r"block/norm: .*use_running_average.* must be passed"):
        Net().init(KEY, jnp.ones((2, 5)))
    with pytest.raises(ValueError, match=r"use_running_average.* passed just once"):
        BatchNorm(use_running_average=True).init(KEY, jnp.ones((2, 5)), False)


def test_narrow_reductions_are_refused():
    with pytest.raises(ValueError, match=r"force_float32_reductions=False is refused.*`dtype`"):
        BatchNorm(force_float32_reductions=False).init(KEY, jnp.ones((2, 5)), True)


def test_training_without_mutable_statistics_is_refused():
    """Or the update would be lost: Flax says which collection."""
    x = jax.random.normal(KEY, (16, 5))
    layer = BatchNorm(use_running_average=False)
    with pytest.raises(flax.errors.ModifyScopeVariableError, match="batch_stats"):
        layer.apply(layer.init(KEY, x), x)
