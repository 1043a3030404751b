"""Any of Flax's normalizations in a layer: mode, dtype, values, and the fused activation."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from norm_layers import (
    KEY,
    WITH_STATISTICS,
    WITHOUT_STATISTICS,
    OwnSum,
    Subclass,
    hides_batch_norm,
    in_inference,
    in_training,
    normal,
    trained,
)

from bnjax.linen import BatchNorm
from bnjax.models import (
    MLP,
    fuses_activation,
)
from bnjax.models.layers import ConvNorm, DenseNorm, NormActivation


@pytest.mark.parametrize("kind", WITHOUT_STATISTICS)
def test_a_norm_without_statistics_fits_as_it_is(kind):
    """Its scale and bias lie at the same place whoever makes it, and no layer has a bias before."""
    x = normal(3, 4, 4, 2)
    layer = ConvNorm(4, (1, 1), norm=WITHOUT_STATISTICS[kind])
    variables = trained(layer, x)
    assert set(variables) == {"params"}
    assert set(variables["params"]) == {"conv", "norm"}
    assert set(variables["params"]["conv"]) == {"kernel"}
    assert set(variables["params"]["norm"]) == {"scale", "bias"} - (
        {"bias"} if kind == "rms" else set()
    )
    y, updates = in_training(layer, variables, x)
    assert not updates
    np.testing.assert_array_equal(y, in_inference(layer, variables, x)[0])


@pytest.mark.parametrize("kind", WITH_STATISTICS)
def test_the_mode_reaches_a_norm_with_statistics(kind):
    """In training the batch's moments normalize, and the statistics move; not so in inference."""
    x = normal(6, 2)
    layer = NormActivation(WITH_STATISTICS[kind], lambda x: x)
    variables = trained(layer, x)
    assert set(variables["params"]) == set(variables["batch_stats"]) == {"norm"}
    _, updates = in_training(layer, variables, x)
    before, after = (jax.tree.leaves(each["batch_stats"]) for each in (variables, updates))
    assert all(np.any(old != new) for old, new in zip(before, after, strict=True))
    _, updates = in_inference(layer, variables, x, ["batch_stats"])
    for old, new in zip(before, jax.tree.leaves(updates["batch_stats"]), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_function_keeps_the_arguments_it_sets():
    x = normal(6, 2)
    moved = {}
    for name, norm in (("function", hides_batch_norm), ("subclass", Subclass)):
        layer = NormActivation(norm, nn.relu)
        _, updates = in_training(layer, layer.init(KEY, x, train=False), x)
        moved[name] = updates["batch_stats"]["norm"]["mean"]
    for mean in moved.values():
        np.testing.assert_allclose(mean, 0.5 * np.asarray(x).mean(0), rtol=1e-6)


@pytest.mark.parametrize(
    "norm",
    [
        partial(BatchNorm, use_running_average=True),
        lambda **options: BatchNorm(use_running_average=True, **options),
        partial(nn.BatchNorm, True),
    ],
    ids=["partial", "function", "positional"],
)
def test_a_norm_that_is_frozen_stays_so_in_training(norm):
    x = normal(6, 2)
    layer = NormActivation(norm, nn.relu)
    variables = trained(layer, x)
    y, _ = in_training(layer, variables, x)
    np.testing.assert_array_equal(y, in_inference(layer, variables, x)[0])


@pytest.mark.parametrize("kind", ["group", "lambda", "lambda_options", "asks_for_mode", "by_name"])
def test_the_dtype_of_a_network_reaches_its_norm(kind):
    layer = ConvNorm(4, (1, 1), norm=WITHOUT_STATISTICS[kind], dtype=jnp.bfloat16)
    assert output_dtype(layer, normal(3, 2, 2, 2)) == jnp.bfloat16


def test_a_dtype_of_the_norms_own_stays():
    layer = DenseNorm(4, norm=partial(nn.LayerNorm, dtype=jnp.float32), dtype=jnp.bfloat16)
    assert output_dtype(layer, normal(3, 2)) == jnp.float32


def output_dtype(layer, x):
    with jax.numpy_dtype_promotion("standard"):  # Flax's layers widen what they sum
        return jax.eval_shape(lambda: layer.init_with_output(KEY, x, train=True))[0].dtype


def test_two_places_have_a_norm_each():
    """Red if a function that returns one and the same layer shares its variables."""
    one = nn.GroupNorm(2)
    model = MLP(hidden=(4, 6), norm=lambda: one)
    variables = jax.eval_shape(lambda: model.init(KEY, normal(2, 3), train=False))
    scales = [variables["params"][f"hidden{i}"]["norm"]["scale"].shape for i in (1, 2)]
    assert scales == [(4,), (6,)]


# Values, against NumPy in float64 that shares no code with Flax.


def group_norm(x, groups, epsilon=1e-6):
    """Over an example's positions and the channels of a group."""
    shape = x.shape
    x = x.reshape(shape[0], -1, groups, shape[-1] // groups)
    mean, var = x.mean((1, 3), keepdims=True), x.var((1, 3), keepdims=True)
    return ((x - mean) / np.sqrt(var + epsilon)).reshape(shape)


def layer_norm(x, epsilon=1e-6):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)


def instance_norm(x):
    return group_norm(x, x.shape[-1])


def rms_norm(x, epsilon=1e-6):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)


def ghost_norm(x, examples, epsilon=1e-5):
    axes = (1, *range(2, x.ndim))
    shape = x.shape
    x = x.reshape(-1, examples, *shape[1:])
    mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return ((x - mean) / np.sqrt(var + epsilon)).reshape(shape)


REFERENCES = {
    "group:2": partial(group_norm, groups=2),
    "group:1": partial(group_norm, groups=1),
    "layer": layer_norm,
    "instance": instance_norm,
    "rms": rms_norm,
    "batch": lambda x: ghost_norm(x, len(x)),
    "ghost:2": partial(ghost_norm, examples=2),
    "none": lambda x: x,
}


@pytest.mark.parametrize("name", REFERENCES)
def test_convolutions_by_name_against_float64(name):
    """ConvNorm with a 1x1 kernel, in training: the product, the normalization, scale and bias."""
    x = normal(4, 3, 5, 3)
    layer = ConvNorm(4, (1, 1), norm=name)
    variables = trained(layer, x)
    y, _ = in_training(layer, variables, x)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    kernel = params["conv"]["kernel"][0, 0]
    expected = REFERENCES[name](np.asarray(x, np.float64) @ kernel)
    affine = params["conv"] if name == "none" else params["norm"]
    expected = expected * affine.get("scale", 1) + affine.get("bias", 0)
    np.testing.assert_allclose(y, np.maximum(expected, 0), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["group:2", "layer", "rms", "batch"])
def test_an_mlp_by_name_against_float64(name):
    """Two hidden layers inside the network."""
    x = normal(5, 2, 3)
    model = MLP(hidden=(6, 4), classes=3, norm=name)
    variables = trained(model, x)
    logits, _ = in_training(model, variables, x)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    y = np.asarray(x, np.float64).reshape(5, -1)
    for i in (1, 2):
        y = REFERENCES[name](y @ params[f"dense{i}"]["kernel"])
        norm = params[f"hidden{i}"]["norm"]
        y = 1 / (1 + np.exp(-(y * norm["scale"] + norm.get("bias", 0))))
    expected = y @ params["logits"]["kernel"] + params["logits"]["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


# Which nonlinearities a normalization applies itself.


FUSED = {
    "class": BatchNorm,
    "partial": partial(BatchNorm, momentum=0.5),
    "partial_of_partial": partial(partial(BatchNorm, momentum=0.5), epsilon=1e-3),
    "function": hides_batch_norm,
    "lambda": lambda: BatchNorm(),
    "subclass": Subclass,
    "by_name": "batch",
    "ghost": "ghost:3",
}


@pytest.mark.parametrize("norm", FUSED.values(), ids=FUSED)
@pytest.mark.parametrize("activation", [nn.relu, nn.sigmoid], ids=["relu", "sigmoid"])
def test_the_activation_is_fused_however_batch_norm_is_made(norm, activation):
    """The layer is told to apply it, and nothing else does."""
    assert fuses_activation(norm, activation)
    seen = []

    def watch(next_call, args, kwargs, context):
        if context.method_name == "__call__" and isinstance(context.module, BatchNorm):
            seen.append((context.module.path, context.module.activation))
        return next_call(*args, **kwargs)

    layer, x = NormActivation(norm, activation), normal(6, 2)
    with nn.intercept_methods(watch):
        y = jax.eval_shape(lambda: layer.init_with_output(KEY, x, train=False))[0]
    assert seen == [(("norm",), "relu" if activation is nn.relu else "sigmoid")]
    assert y.shape == x.shape


APART = {
    "no_norm": (None, nn.relu),
    "none": ("none", nn.relu),
    "group": ("group:1", nn.relu),
    "flax": (nn.BatchNorm, nn.relu),
    "tanh": (BatchNorm, nn.tanh),
    "relu_in_a_function": (BatchNorm, lambda x: nn.relu(x)),
    "activation_of_its_own": (partial(BatchNorm, activation="relu"), nn.sigmoid),
    "call_of_its_own": (OwnSum, nn.relu),
    "remat": (nn.remat(BatchNorm), nn.relu),
}


@pytest.mark.parametrize(("norm", "activation"), APART.values(), ids=APART)
def test_what_is_not_fused_is_said_and_applied_afterwards(norm, activation):
    assert not fuses_activation(norm, activation)
    layer, x = NormActivation(norm, activation), normal(6, 2)
    variables = trained(layer, x)
    y, _ = in_training(layer, variables, x)
    before, _ = in_training(NormActivation(norm, lambda x: x), variables, x)
    np.testing.assert_allclose(y, activation(before), rtol=1e-6)


def test_fusing_saves_memory_however_batch_norm_is_made():
    """As much as the class itself does: red if the activation's input is kept beside its output."""
    x = normal(8, 5)

    def kept(norm, activation):
        layer = NormActivation(norm, activation)
        variables = layer.init(KEY, x, train=False)
        residuals = jax.eval_shape(
            lambda x: jax.vjp(lambda x: in_training(layer, variables, x)[0], x)[1], x
        )
        return sum(leaf.size for leaf in jax.tree.leaves(residuals))

    for norm in (hides_batch_norm, Subclass):
        fused, apart = kept(norm, nn.sigmoid), kept(norm, lambda x: nn.sigmoid(x))
        assert fused == kept(BatchNorm, nn.sigmoid) < apart
