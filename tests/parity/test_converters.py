"""A layer trained for some steps, converted, and trained on: in bnjax as in the source itself."""

import os

os.environ["KERAS_BACKEND"] = "jax"  # read when keras is imported

import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import ours
import pytest
import torch

import bnjax
from bnjax.normalization import converters

pytestmark = [
    pytest.mark.parity,
    pytest.mark.usefixtures("x64", "promotion"),
    # Keras's get_weights, of its own variables
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy"),
]

BEFORE, AFTER = 3, 4  # updates
SHAPES = {"dense": (12, 5), "images": (4, 3, 2, 5)}  # channels last
KERAS = 1e-5  # it computes in float32


def trained_on(layer, xs, axis: int = -1):
    """bnjax alone, by the converted settings: outputs, statistics, and inference."""
    params, stats, settings, _ = layer
    step = jax.jit(lambda x, stats: bnjax.normalize_batch(x, params, stats, axis=axis, **settings))
    outputs = []
    for x in xs:
        y, stats = step(jnp.asarray(x), stats)
        outputs.append(y)
    return outputs, stats, inferred(layer._replace(stats=stats), xs[0], axis)


def inferred(layer, x, axis: int = -1):
    epsilon = layer.settings["epsilon"]
    return bnjax.normalize_population(
        jnp.asarray(x), layer.params, layer.stats, axis=axis, epsilon=epsilon
    )


def make(name: str):
    given = ours.data(SHAPES[name], 5, steps=BEFORE + AFTER)
    return given, given.xs[:BEFORE], given.xs[BEFORE:]


def channels_first(x):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def torch_layer(name: str, given, **settings):
    kind = {"dense": torch.nn.BatchNorm1d, "images": torch.nn.BatchNorm2d}[name]
    layer = kind(5, eps=ours.EPSILON, dtype=torch.float64, **settings)
    with torch.no_grad():
        for parameter, value in ((layer.weight, given.scale), (layer.bias, given.bias)):
            if parameter is not None:
                parameter.copy_(torch.from_numpy(value))
    return layer


TORCH = {
    "ema": {"momentum": 0.2},
    "defaults": {},
    "cumulative": {"momentum": None},
    "no scale, no bias": {"momentum": 0.2, "affine": False},
    "no bias": {"momentum": 0.2, "bias": False},
}


@pytest.mark.parametrize("setting", TORCH)
@pytest.mark.parametrize("name", SHAPES)
def test_from_torch(name, setting):
    """Red too if its arrays are not copied: torch goes on in place, before bnjax does."""
    given, before, after = make(name)
    layer = torch_layer(name, given, **TORCH[setting])
    for x in before:
        layer(channels_first(x))
    converted = converters.from_torch(layer.state_dict(), eps=ours.EPSILON, **TORCH[setting])
    theirs = layer.eval()(channels_first(before[0])).detach()
    layer.train()
    theirs_on = [layer(channels_first(x)).detach() for x in after]
    theirs_end = layer.eval()(channels_first(after[0])).detach()

    ours.assert_same(inferred(converted, np.moveaxis(before[0], -1, 1), 1), theirs, "at once")
    outputs, stats, end = trained_on(converted, [np.moveaxis(x, -1, 1) for x in after], axis=1)
    for y, expected in zip(outputs, theirs_on, strict=True):
        ours.assert_same(y, expected, "training")
    ours.assert_same(stats["mean"], layer.running_mean, "running_mean")
    ours.assert_same(stats["var"], layer.running_var, "running_var")
    ours.assert_same(end, theirs_end, "inference")
    if setting == "cumulative":
        assert set(stats["count"].tolist()) == {BEFORE + AFTER}


@pytest.mark.parametrize("params", [("scale", "bias"), ("scale",), ("bias",), ()])
@pytest.mark.parametrize("averaging", ["ema", "cumulative"])
def test_to_torch(averaging, params):
    given, before, after = make("images")
    settings = {"averaging": averaging, "decay": ours.DECAY, "epsilon": ours.EPSILON}
    settings["running_var"] = "unbiased"
    layer = converters.Converted(
        {key: jnp.asarray(getattr(given, key)) for key in params},
        bnjax.init_stats(5, averaging=averaging, dtype=jnp.float64),
        settings,
        (),
    )
    layer = layer._replace(stats=trained_on(layer, before)[1])
    state_dict, arguments, _ = converters.to_torch(layer.params, layer.stats, **settings)
    theirs = torch.nn.BatchNorm2d(**arguments, dtype=torch.float64)
    theirs.load_state_dict({key: torch.tensor(value) for key, value in state_dict.items()})

    expected = theirs.eval()(channels_first(before[0])).detach()
    ours.assert_same(np.moveaxis(inferred(layer, before[0]), -1, 1), expected, "at once")
    theirs.train()
    for x in after:
        theirs(channels_first(x))
    _, stats, _ = trained_on(layer, after)
    ours.assert_same(stats["mean"], theirs.running_mean, "running_mean")
    ours.assert_same(stats["var"], theirs.running_var, "running_var")


def test_tensors_that_numpy_cannot_read_are_refused_with_the_remedy():
    state_dict = torch.nn.BatchNorm1d(3, dtype=torch.bfloat16).state_dict()
    with pytest.raises(ValueError, match=r"running_mean .* \.float\(\) of a bfloat16 one"):
        converters.from_torch(state_dict)
    parameters = dict(torch.nn.BatchNorm1d(3).named_parameters())
    with pytest.raises(ValueError, match=r"weight .* tensor\.detach\(\)"):
        converters.from_torch(torch.nn.BatchNorm1d(3).state_dict() | parameters)


@pytest.mark.parametrize("flags", [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("name", SHAPES)
def test_from_haiku(name, flags):
    given, before, after = make(name)
    create_scale, create_offset = flags
    settings = {"create_scale": create_scale, "create_offset": create_offset}
    settings |= {"decay_rate": ours.DECAY, "eps": ours.EPSILON}

    def forward(x, is_training):
        return hk.BatchNorm(**settings)(x, is_training)

    network = hk.without_apply_rng(hk.transform_with_state(forward))
    apply = jax.jit(network.apply, static_argnums=3)
    params, state = network.init(jax.random.key(0), jnp.asarray(before[0]), True)
    values = {"scale": given.scale, "offset": given.bias}
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(values[path[-1].key]).reshape(leaf.shape), params
    )
    for x in before:
        _, state = apply(params, state, x, True)
    converted = converters.from_haiku(
        params.get("batch_norm", {}),
        {key: state[f"batch_norm/~/{key}"] for key in ("mean_ema", "var_ema")},
        **settings,
    )
    expected, _ = apply(params, state, before[0], False)
    ours.assert_same(inferred(converted, before[0]), expected, "at once")

    outputs, stats, end = trained_on(converted, after)
    for x, y in zip(after, outputs, strict=True):
        expected, state = apply(params, state, x, True)
        ours.assert_same(y, expected, "training")
    for key in ("mean", "var"):
        theirs = np.ravel(state[f"batch_norm/~/{key}_ema"]["average"])
        ours.assert_same(stats[key], theirs, key)
    ours.assert_same(end, apply(params, state, after[0], False)[0], "inference")


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("flags", [(True, True), (False, True), (True, False)])
def test_from_keras(flags, by_name):
    given, before, after = make("images")
    center, scale = flags
    settings = {"momentum": ours.DECAY, "epsilon": ours.EPSILON, "center": center, "scale": scale}
    layer = keras.layers.BatchNormalization(**settings, dtype="float64")
    layer.build(before[0].shape)
    for variable in layer.trainable_variables:
        variable.assign({"gamma": given.scale, "beta": given.bias}[variable.name])
    for x in before:
        layer(x, training=True)
    weights = {v.name: v.value for v in layer.weights} if by_name else layer.get_weights()
    converted = converters.from_keras(weights, **settings)
    expected = layer(before[0], training=False)
    ours.assert_same(inferred(converted, before[0]), expected, "at once", KERAS)

    outputs, stats, end = trained_on(converted, after)
    for x, y in zip(after, outputs, strict=True):
        ours.assert_same(y, layer(x, training=True), "training", KERAS)
    ours.assert_same(stats["mean"], layer.moving_mean.value, "moving_mean", KERAS)
    ours.assert_same(stats["var"], layer.moving_variance.value, "moving_variance", KERAS)
    ours.assert_same(end, layer(after[0], training=False), "inference", KERAS)


def test_defaults_are_the_sources():
    """Each converter's defaults are those of the layer, asked from the layer itself."""
    layer = torch.nn.BatchNorm1d(3)
    of_torch = converters.from_torch(layer.state_dict()).settings
    assert (of_torch["decay"], of_torch["epsilon"]) == (1 - layer.momentum, layer.eps)
    layer = keras.layers.BatchNormalization()
    layer.build((2, 3))
    of_keras = converters.from_keras(layer.get_weights()).settings
    assert (of_keras["decay"], of_keras["epsilon"]) == (layer.momentum, layer.epsilon)
