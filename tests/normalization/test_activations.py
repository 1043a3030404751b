"""An activation in one with the normalization: values, derivatives and what they keep.

Gradients are of a random linear loss, against float64 by the chain rule.
"""

import functools

import cases
import eight_devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import tolerances
from cases import infer, train
from tolerances import assert_close

import bnjax
from bnjax.linen import BatchNorm

ACTIVATIONS = ("relu", "sigmoid")
EPSILON = 1e-3


@functools.partial(jax.jit, static_argnames=("axis", "activation", "impl", "batch"))
def value_and_gradients(x, params, weights, mask, **settings):
    def f(x, params):
        return bnjax.batch_transform(x, params, mask=mask, epsilon=EPSILON, **settings)

    y, pullback, _ = jax.vjp(f, x, params, has_aux=True)
    return y, *pullback(weights.astype(y.dtype))


def expected(case, activation):
    """Output and gradients in float64: the chain rule through the activation's input."""
    f, derivative = reference.ACTIVATIONS[activation]
    settings = {"axis": case.axis, "epsilon": EPSILON, "mask": case.mask}
    scale, bias = case.params.get("scale"), case.params.get("bias")
    z = reference.forward(case.x, scale, bias, **settings).y
    dz = np.float64(case.weights) * derivative(z)
    return f(z), reference.backward(dz, case.x, scale, **settings)


def assert_matches(case, activation, tolerance, **settings):
    y, dx, dparams = value_and_gradients(
        case.x,
        case.params,
        case.weights,
        case.mask,
        axis=case.axis,
        activation=activation,
        **settings,
    )
    value, gradients = expected(case, activation)
    assert y.dtype == dx.dtype == case.x.dtype
    assert_close(y, value, tolerance, "y")
    assert_close(dx, gradients.dx, tolerance, "dx")
    for key, gradient in dparams.items():
        assert_close(gradient, getattr(gradients, f"d{key}"), tolerance, key)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("impl", "layout", "mask"),
    [
        ("fused", "dense", "none"),
        ("fused", "channels_first", "nan"),
        ("fused", "per_activation", "position"),
        ("autodiff", "channels_last", "nan"),
    ],
)
def test_values_and_gradients_match_float64(x64, impl, layout, mask, activation):
    """Ten digits agree. NaN in a masked place is normalized to `bias`, and so is its derivative."""
    case = cases.make(layout, mask=mask, dtype="float64")
    assert_matches(case, activation, tolerances.EXACT, impl=impl)


@pytest.mark.parametrize("keys", [("scale",), ("bias",), ()])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_without_scale_or_bias(x64, activation, keys):
    case = cases.make("dense", dtype="float64")
    case = case._replace(params={key: case.params[key] for key in keys})
    assert_matches(case, activation, tolerances.EXACT)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_in_float32_and_bfloat16(activation):
    """The output is rounded once, after the activation."""
    for dtype in ("float32", "bfloat16"):
        case = cases.make("dense", dtype=dtype)
        assert_matches(case, activation, tolerances.gradient(dtype))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_each_group_has_its_own_moments(x64, activation):
    case = cases.make("dense", dtype="float64")
    settings = {"axis": -1, "activation": activation, "batch": 8}
    y, dx, _ = value_and_gradients(case.x, case.params, case.weights, None, **settings)
    for rows in (slice(0, 8), slice(8, 16)):
        part = case._replace(x=case.x[rows], weights=case.weights[rows])
        value, gradients = expected(part, activation)
        assert_close(y[rows], value, tolerances.EXACT)
        assert_close(dx[rows], gradients.dx, tolerances.EXACT)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_on_eight_devices_with_types(activation, dtype):
    """`shard_map` as it is by default; red where what varies is mixed with what does not."""
    case = eight_devices.make(masked=False)
    case = case._replace(x=case.x.astype(dtype), weights=case.weights.astype(dtype))
    settings = {"axis_name": "data", "activation": activation}
    y, _, dx, dparams = eight_devices.run("typed shard_map", case, **settings)
    x, weights = map(eight_devices.rows_of, (case.x, case.weights))
    value, gradients = expected(case._replace(x=x, weights=weights), activation)
    tolerance = tolerances.gradient(dtype)
    assert_close(y, value, tolerance)
    assert_close(dx, gradients.dx, tolerance)
    assert_close(dparams["scale"], gradients.dscale, tolerance)
    assert_close(dparams["bias"], gradients.dbias, tolerance)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("mask", ["none", "nan"])
def test_second_derivatives_are_those_of_autodiff(x64, activation, mask):
    case = cases.make("dense", mask=mask, dtype="float64")
    direction = jnp.where(jnp.isfinite(case.x), case.weights, 0.0)

    @functools.partial(jax.jit, static_argnames="impl")
    def hessian_vector(x, params, impl):
        def loss(x, params):
            settings = {"mask": case.mask, "activation": activation, "impl": impl}
            y, _ = bnjax.batch_transform(x, params, epsilon=EPSILON, **settings)
            return jnp.sum(case.weights * y**2)

        gradient = jax.grad(loss, argnums=(0, 1))
        return jax.jvp(gradient, (x, params), (direction, params))[1]

    fused, autodiff = (hessian_vector(case.x, case.params, impl) for impl in ("fused", "autodiff"))
    assert np.abs(autodiff[0]).max() > 0.1
    jax.tree.map(lambda a, b: assert_close(a, np.float64(b), tolerances.EXACT), fused, autodiff)


@pytest.mark.parametrize("impl", ["fused", "autodiff"])
def test_the_derivative_of_relu_at_zero_is_zero(impl):
    """Like `jax.nn.relu`. Two places of the first feature; all of the second, of scale zero."""
    x = jnp.tile(jnp.array([[-1.0], [0.0], [0.0], [1.0]]), (1, 2))
    params = {"scale": jnp.array([2.0, 0.0]), "bias": jnp.zeros(2)}
    weights = jnp.ones_like(x)
    y, _, dparams = value_and_gradients(
        x, params, weights, None, axis=-1, activation="relu", impl=impl
    )
    np.testing.assert_array_equal(y[1:3], 0)
    np.testing.assert_array_equal(dparams["bias"], [1, 0])
    np.testing.assert_array_equal(dparams["scale"][1], 0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_statistics_and_inference(activation):
    """Statistics are those of the input; inference ends with the same activation."""
    case = cases.make("channels_last")
    f, _ = reference.ACTIVATIONS[activation]
    y, stats = train(case.x, case.params, case.stats, activation=activation)
    z, plain = train(case.x, case.params, case.stats)
    jax.tree.map(np.testing.assert_array_equal, stats, plain)
    assert_close(y, f(np.float64(z)), tolerances.PARALLEL)
    y = infer(case.x, case.params, stats, activation=activation)
    z = infer(case.x, case.params, stats)
    assert_close(y, f(np.float64(z)), tolerances.PARALLEL)


def test_the_module_passes_it_on():
    """In training and in inference."""
    x = cases.make("dense").x
    layer = BatchNorm(activation="relu")
    variables = layer.init(jax.random.key(0), x, False)
    trained, _ = layer.apply(variables, x, False, mutable=["batch_stats"])
    inferred = layer.apply(variables, x, True)
    assert_close(trained, np.maximum(reference.forward(x, None, None).y, 0), tolerances.PARALLEL)
    assert_close(inferred, np.maximum(np.float64(x), 0) / np.sqrt(1 + 1e-5), tolerances.PARALLEL)


@pytest.mark.parametrize("activation", ["gelu", "", jax.nn.relu])
def test_other_activations_are_refused(activation):
    case = cases.make("dense")
    with pytest.raises(ValueError, match="activation must be one of 'relu', 'sigmoid', got"):
        bnjax.batch_transform(case.x, {}, activation=activation)
    with pytest.raises(ValueError, match="activation must be one of 'relu', 'sigmoid', got"):
        bnjax.normalize_population(case.x, {}, case.stats, activation=activation)
