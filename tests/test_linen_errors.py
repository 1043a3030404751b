"""Errors of the Linen module: they name the layer, the value and the remedy."""

import re
from functools import partial

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from bnjax.linen import BatchNorm, BatchRenorm

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
        ({}, (1, 5), "one value per feature.*statistics: use_running_average=True"),
        ({"momentum": 1.0}, (16, 5), r"momentum must be in \[0, 1\), got 1.0"),
        ({"momentum": "0.9"}, (16, 5), "momentum must be a number, got '0.9'"),
        ({"averaging": "cumulative"}, (16, 5), r"needs .*'count'\]: initialize the layer with"),
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


@pytest.mark.parametrize(
    ("settings", "x"),
    [
        ({}, jnp.ones((1, 5))),
        ({"momentum": 1.0}, jnp.ones((16, 5))),
        ({"averaging": "cumulative"}, jnp.ones((16, 5))),
        ({"axis": 1, "use_scale": False, "use_bias": False}, jnp.ones((2, 4, 5))),
    ],
)
def test_errors_name_what_the_layer_has(settings, x):
    """No argument and no function of the pure ones, which share the checks."""
    variables = Net().init(KEY, jnp.ones((2, 5)), use_running_average=True)
    with pytest.raises(ValueError, match="BatchNorm at block/norm: ") as caught:
        Net(tuple(settings.items())).apply(
            variables, x, use_running_average=False, mutable=["batch_stats"]
        )
    assert not re.search("decay|init_params|init_stats|normalize_population", str(caught.value))


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
@pytest.mark.parametrize("axis_name", ["data", ("data", "model")])
@pytest.mark.parametrize("batch", ["all", "device", 4])
def test_an_axis_that_nothing_maps(transform, axis_name, batch):
    """A NameError, as in Flax; initialization and inference need no axis."""
    x = jnp.ones((8, 5))
    net = Net((("axis_name", axis_name), ("batch", batch)))
    variables = net.init(KEY, x, use_running_average=False)
    net.apply(variables, x, use_running_average=True)
    train = transform(partial(net.apply, use_running_average=False, mutable=["batch_stats"]))
    said = r"BatchNorm at block/norm: axis_name='data' is not mapped here: .*under jit.*None"
    with pytest.raises(NameError, match=said):
        train(variables, x)


def test_of_several_axes_the_one_that_nothing_maps_is_named():
    x = jnp.ones((2, 4, 5))
    net = Net((("axis_name", ("data", "model")),))
    variables = net.init(KEY, x[0], use_running_average=False)
    train = partial(net.apply, variables, use_running_average=False, mutable=["batch_stats"])
    with pytest.raises(NameError, match="axis_name='model' is not mapped here"):
        jax.vmap(train, axis_name="data")(x)


def test_errors_at_initialization_name_the_layer():
    with pytest.raises(ValueError, match=r"BatchNorm at block/norm: axis=7 does not name"):
        Net((("axis", 7),)).init(KEY, jnp.ones((2, 5)), use_running_average=False)
    with pytest.raises(ValueError, match=r"BatchNorm at block/norm: averaging must be one of"):
        Net((("averaging", "mean"),)).init(KEY, jnp.ones((2, 5)), use_running_average=False)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("batch", 1.5, "'all', 'device' or"), ("axis_name", 5, "a name or several")],
)
@pytest.mark.parametrize("running", [False, True])
def test_what_acts_in_training_alone_is_checked_before(name, value, said, running):
    """Initialization takes the whole batch, whatever these are, and inference reads neither."""
    with pytest.raises(ValueError, match=rf"block/norm: {name} must be {said}.*, got {value}"):
        Net(((name, value),)).init(KEY, jnp.ones((2, 5)), use_running_average=running)


def test_integers_are_refused(promotion):
    with pytest.raises(ValueError, match=r"BatchNorm at \(top\): x must be floating, got int32"):
        BatchNorm(use_running_average=False).init(KEY, jnp.ones((4, 5), jnp.int32))


@pytest.mark.parametrize("x", [[[1.0]], {"image": jnp.ones((4, 5))}, (), 1.0, None], ids=str)
@pytest.mark.parametrize("layer", [BatchNorm, BatchRenorm])
def test_what_is_no_array_is_refused(layer, x):
    said = rf"{layer.__name__} at \(top\): x must be an array, got {type(x).__name__}"
    with pytest.raises(ValueError, match=said):
        layer(use_running_average=False).init(KEY, x)


@pytest.mark.parametrize("name", ["dtype", "param_dtype"])
@pytest.mark.parametrize("value", ["floaty", 5, jnp.ones(2)], ids=str)
def test_what_is_no_type_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"\(top\): {name} must be floating, got .* is no type"):
        BatchNorm(use_running_average=False, **{name: value}).init(KEY, jnp.ones((4, 5)))


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
