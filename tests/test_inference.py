"""Whole Linen models, folded and exported: the same outputs, and nothing left to compute."""

import functools
import re

import eight_devices
import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from nets import CLOSE, IMAGES, KEY, ROWS, Net, norm, normal, residual, trained
from tolerances import UNIT, assert_close

from bnjax.inference import export, fold_model
from bnjax.linen import BatchNorm
from bnjax.models import LeNet5

# --- the numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_against_float64(offset):
    """Within (n + 8) u of the magnitudes that a layer with n inputs adds up, at any offset."""
    n, u = 40, UNIT["float32"]
    x, model = normal(30, n), Net(lambda x: norm(name="norm")(nn.Dense(5, name="dense")(x)))
    variables = trained(model, x)
    variables["params"]["dense"]["bias"] += offset
    variables["batch_stats"]["norm"]["mean"] += offset
    folded = fold_model(model, variables, x)
    params, stats = jax.tree.map(np.float64, (variables["params"], variables["batch_stats"]))
    dense, given = params["dense"], params["norm"]
    mean, var = stats["norm"]["mean"], stats["norm"]["var"]
    z = np.float64(x) @ dense["kernel"] + dense["bias"]
    expected = reference.population(z, given["scale"], given["bias"], mean, var)
    factor = given["scale"] / np.sqrt(var + 1e-5)
    magnitudes = np.abs(x) @ np.abs(dense["kernel"] * factor) + np.abs(given["bias"])
    magnitudes += np.abs((dense["bias"] - mean) * factor)
    error = np.abs(np.float64(folded.apply(folded.variables, x)) - expected)
    assert (error <= (n + 8) * u * magnitudes).all()


@pytest.mark.parametrize(
    ("x_dtype", "dtype", "param_dtype", "norm_dtype"),
    [
        (jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.bfloat16),  # mixed precision
        (jnp.bfloat16, jnp.bfloat16, jnp.float32, None),  # the normalization gives float32
        (jnp.bfloat16, None, jnp.bfloat16, None),  # bfloat16 throughout
        (jnp.float32, None, jnp.bfloat16, None),  # bfloat16 parameters, float32 activations
    ],
)
@pytest.mark.parametrize("use_bias", [True, False])
def test_bfloat16(x_dtype, dtype, param_dtype, norm_dtype, use_bias):
    """Dtypes are those of the model; errors a few bfloat16 roundings of what is added up."""
    types = {"dtype": dtype, "param_dtype": param_dtype}

    def body(x):
        y = nn.Dense(5, use_bias=use_bias, name="dense", **types)(x)
        return norm(dtype=norm_dtype, param_dtype=param_dtype, name="norm")(y)

    with jax.numpy_dtype_promotion("standard"):  # which Flax itself relies on
        x, model = normal(30, 40, dtype=x_dtype), Net(body)
        variables = trained(model, x)
        folded = fold_model(model, variables, x)
        y = jax.jit(folded.apply)(folded.variables, x)
        expected = jax.jit(model.apply)(variables, x)
    dense = folded.variables["params"]["dense"]
    assert y.dtype == expected.dtype
    assert dense["kernel"].dtype == param_dtype
    assert dense["bias"].dtype == (param_dtype if use_bias else jnp.float32)
    magnitudes = np.abs(np.float64(x)) @ np.abs(np.float64(dense["kernel"]))
    magnitudes += np.abs(np.float64(dense["bias"]))
    error = np.abs(np.float64(y) - np.float64(expected))
    assert (error <= 3 * UNIT["bfloat16"] * magnitudes).all()


def test_a_bias_is_not_rounded_to_the_layers_dtype():
    """A bfloat16 layer before a float32 output: nothing but the product is bfloat16."""

    def body(x):
        y = nn.Dense(5, use_bias=False, dtype=jnp.bfloat16, name="dense")(x)
        return norm(dtype=jnp.float32, name="norm")(y)

    x, model = jnp.zeros(ROWS, jnp.bfloat16), Net(body)
    folded = fold_model(model, trained(model, x), x)
    y = folded.apply(folded.variables, x)
    bias = folded.variables["params"]["dense"]["bias"]
    np.testing.assert_array_equal(y, jnp.broadcast_to(bias[None], y.shape))
    assert (bias != bias.astype(jnp.bfloat16).astype(jnp.float32)).any()


@pytest.mark.parametrize("layer", [BatchNorm, nn.BatchNorm])
def test_lenet(layer):
    """The result is LeNet without normalization: the same variables, the same outputs."""
    model, plain = LeNet5(norm=layer, convolution="xla"), LeNet5(convolution="xla")
    images = normal(2, 28, 28, 1)
    variables = trained(model, images, train=False)
    folded = fold_model(model, variables, images, train=False)
    assert folded.folded == {f"{name}_activation/norm": name for name in ("C1", "C3", "C5", "F6")}
    shapes = jax.eval_shape(functools.partial(plain.init, KEY, train=False), images)
    assert jax.tree.map(jnp.shape, folded.variables) == jax.tree.map(jnp.shape, shapes)
    outputs = [
        jax.jit(apply, static_argnames="train")(given, images, train=False)
        for apply, given in (
            (model.apply, variables),
            (folded.apply, folded.variables),
            (plain.apply, folded.variables),
        )
    ]
    assert_close(outputs[1], np.float64(outputs[0]), {"rtol": 1e-4, "atol": 1e-4})
    np.testing.assert_array_equal(outputs[2], outputs[1])


def test_a_fused_activation_is_applied():
    class Activated(BatchNorm):
        activation: str | None = "relu"

    def body(x, layer=Activated):
        return layer(use_running_average=True, name="norm")(nn.Dense(5, name="dense")(x))

    x = normal(*ROWS)
    variables = trained(Net(body), x)
    folded = fold_model(Net(body), variables, x)
    expected = nn.relu(Net(functools.partial(body, layer=BatchNorm)).apply(variables, x))
    y = folded.apply(folded.variables, x)
    assert folded.folded == {"norm": "dense"}
    assert (y == 0).any()
    assert_close(y, np.float64(expected), CLOSE)


@pytest.mark.parametrize(
    ("dense", "settings", "reason"),
    [
        ({"param_dtype": jnp.complex64}, {}, r"kernel must be real, got complex64"),
        ({}, {"param_dtype": jnp.complex64}, r"params\['bias'\] must be real, got complex64"),
        ({}, {"param_dtype": jnp.int32}, r"params\['bias'\] must be floating, got int32"),
        ({}, {"epsilon": 0.0}, r"epsilon must be > 0, got 0.0"),
    ],
)
def test_what_does_not_fold_stays(dense, settings, reason, promotion):
    """And what does is folded, in the same model."""

    def body(x):
        x = norm(name="first")(nn.Dense(5, name="in")(x))
        x = nn.Dense(5, name="out", **dense)(x)
        return nn.BatchNorm(use_running_average=True, name="second", **settings)(x)

    x, model = normal(*ROWS), Net(body)
    variables = model.init(KEY, x)
    folded = fold_model(model, variables, x)
    assert folded.folded == {"first": "in"}
    assert re.fullmatch(f"it does not fold into out: {reason}.*", folded.kept["second"])
    y, expected = folded.apply(folded.variables, x), model.apply(variables, x)
    assert y.dtype == expected.dtype
    for part in ("real", "imag"):
        assert_close(getattr(y, part), np.float64(getattr(expected, part)), CLOSE)


# --- the program ------------------------------------------------------------------------------


def test_nothing_of_the_normalization_is_computed():
    """No root, no product, no difference: two convolutions of three add only their biases."""
    model, x = Net(residual), normal(*IMAGES)
    variables = trained(model, x)
    folded = fold_model(model, variables, x)
    text = {
        name: jax.jit(apply).lower(given, x).compile().as_text()
        for name, apply, given in (
            ("model", model.apply, variables),
            ("folded", folded.apply, folded.variables),
        )
    }
    assert "rsqrt" in text["model"]
    assert not any(word in text["folded"] for word in ("rsqrt", "multiply(", "subtract("))
    assert "add(" in text["folded"]


def test_transforms():
    """Another batch size, a gradient, and an ensemble that is folded under vmap."""
    model, x = Net(residual), normal(5, *IMAGES[1:])
    members = [trained(model, x), jax.tree.map(lambda leaf: leaf + 0.5, trained(model, x))]
    folded = fold_model(model, members[0], x[:1])
    ours = value_and_gradient(folded.apply, folded.variables, x)
    expected = value_and_gradient(model.apply, members[0], x)
    assert_close(ours[0], np.float64(expected[0]), CLOSE)
    assert_close(ours[1], np.float64(expected[1]), {"rtol": 1e-4, "atol": 1e-4})

    ensemble = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    together = jax.jit(jax.vmap(lambda variables: fold_model(model, variables, x).variables))(
        ensemble
    )
    y = jax.jit(jax.vmap(folded.apply, (0, None)))(together, x)
    for i, member in enumerate(members):
        assert_close(y[i], np.float64(jax.jit(model.apply)(member, x)), CLOSE)


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradient(apply, variables, x):
    y, vjp = jax.vjp(lambda x: apply(variables, x), x)
    return y, vjp(jnp.cos(y))[0]


# --- export -----------------------------------------------------------------------------------


def test_an_exported_model_runs_at_any_batch_size():
    model, x = Net(residual), normal(5, *IMAGES[1:])
    variables = trained(model, x)
    folded = fold_model(model, variables, x)
    exported = jax.export.deserialize(bytearray(export(folded.apply, folded.variables, x[:2])))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    expected = np.float64(model.apply(variables, x))
    for n in (1, 5):
        assert_close(exported.call(x[:n]), expected[:n], CLOSE)


def test_the_devices_of_the_variables_are_not_exported():
    """Replicated on eight, they would make a file for eight."""
    everywhere = jax.NamedSharding(eight_devices.mesh(8), jax.P())
    weights = jax.device_put(normal(7), everywhere)
    data = export(lambda weights, x: x * weights[None], weights, normal(*ROWS))
    assert jax.export.deserialize(bytearray(data)).nr_devices == 1


def test_export_takes_static_and_named_arguments():
    class Scaled(nn.Module):
        @nn.compact
        def __call__(self, x, *, weights, train):
            x = nn.Dense(5, use_bias=False)(x) * weights[:, None]
            return BatchNorm(use_running_average=not train)(x)

    x, weights = normal(*ROWS), normal(ROWS[0])
    variables = trained(Scaled(), x, weights=weights, train=False)
    data = export(
        Scaled().apply, variables, x, weights=weights, train=False, platforms=("cpu", "tpu")
    )
    exported = jax.export.deserialize(bytearray(data))
    assert exported.platforms == ("cpu", "tpu")
    expected = Scaled().apply(variables, x, weights=weights, train=False)
    assert_close(exported.call(x, weights), np.float64(expected), CLOSE)


def test_what_inference_leaves_alone_may_be_said_in_the_call():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            norm = BatchNorm(name="norm")
            return norm(nn.Dense(4)(x), use_running_average=True, update_statistics=False)

    model, x = Model(), normal(*ROWS)
    variables = model.init(KEY, x)
    folded = fold_model(model, variables, x)
    assert list(folded.folded) == ["norm"]
    assert_close(folded.apply(folded.variables, x), model.apply(variables, x), CLOSE)


# --- errors -----------------------------------------------------------------------------------


def test_training_mode_is_refused():
    model, x = LeNet5(norm=BatchNorm), normal(2, 28, 28, 1)
    variables = trained(model, x, train=False)
    message = "BatchNorm at C1_activation/norm is in training mode.*train=False"
    with pytest.raises(ValueError, match=message):
        fold_model(model, variables, x, train=True)
    folded = fold_model(model, variables, x, train=False)
    with pytest.raises(ValueError, match=message):
        folded.apply(folded.variables, x, train=True)


def test_training_mode_is_refused_for_what_stayed_too():
    """Half a model in training mode would be neither."""
    model, x = BatchNorm(), normal(*ROWS)
    folded = fold_model(model, trained(model, x, True), x, True)
    assert list(folded.kept) == [""]
    with pytest.raises(ValueError, match=r"BatchNorm at \(top\) is in training mode"):
        folded.apply(folded.variables, x, False, mutable=["batch_stats"])


def test_the_model_has_to_be_given_its_mode():
    with pytest.raises(ValueError, match="use_running_average"):
        fold_model(BatchNorm(), {}, normal(*ROWS))


def test_missing_variables_are_named_with_their_layer():
    model, x = Net(residual), normal(*IMAGES)
    variables = trained(model, x)
    del variables["batch_stats"]["n2"]
    with pytest.raises(Exception, match="mean") as caught:
        fold_model(model, variables, x)
    assert "The layer is BatchNorm at n2." in caught.value.__notes__


def test_export_needs_examples():
    with pytest.raises(ValueError, match=r"first axis, got shapes \[\]"):
        export(lambda variables: 0, {})
    with pytest.raises(ValueError, match=r"first axis, got shapes \[\(\)\]"):
        export(lambda variables, x: x, {}, jnp.ones(()))


def test_export_knows_its_platforms():
    """JAX takes any name, without a word; "gpu" it takes for a device that must be here."""
    with pytest.raises(ValueError, match=r"platforms must be of .*'cuda'.*, got \['gpu'\]"):
        export(lambda variables, x: x, {}, jnp.ones((2, 3)), platforms=("cpu", "gpu"))


def test_export_says_what_fixes_the_number_of_examples():
    with pytest.raises(TypeError) as caught:
        export(lambda variables, x: x.reshape(len(x), -1), {}, jnp.ones((2, 3)))
    assert any("it is x.shape[0]" in note for note in caught.value.__notes__)
