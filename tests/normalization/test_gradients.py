"""Gradients against the paper's chain rule in float64 and against finite differences.

Always through random weights: the gradient of sum(y) is zero whatever the backward pass does.
"""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import tolerances
from jax.test_util import check_grads
from tolerances import assert_close

import bnjax

IMPLS = ("fused", "autodiff")
EPSILON = 1e-3


def loss(x, params, weights, mask=None, **settings):
    settings = {"epsilon": EPSILON} | settings
    y, _ = bnjax.batch_transform(x, params, mask=mask, **settings)
    return jnp.sum(weights * y)


gradient = jax.jit(
    jax.grad(loss, argnums=(0, 1)), static_argnames=("axis", "epsilon", "impl", "dtype")
)


@functools.partial(jax.jit, static_argnames="impl")
def hessian_vector(x, params, weights, mask=None, **settings):
    """The derivative of the gradient along (weights, params), forward over reverse."""
    directions = (weights, params)
    grads = jax.grad(lambda x, p: loss(x, p, weights, mask, **settings), argnums=(0, 1))
    return jax.jvp(grads, (x, params), directions)[1]


def assert_gradients(case, impl, tolerance):
    dx, dparams = gradient(
        case.x, case.params, case.weights, mask=case.mask, axis=case.axis, impl=impl
    )
    expected = reference.backward(
        case.weights, case.x, case.params["scale"], axis=case.axis, epsilon=EPSILON, mask=case.mask
    )
    assert dx.dtype == case.x.dtype
    assert_close(dx, expected.dx, tolerance, "dx")
    assert_close(dparams["scale"], expected.dscale, tolerance, "dscale")
    assert_close(dparams["bias"], expected.dbias, tolerance, "dbias")


@pytest.mark.parametrize(
    ("impl", "layout", "mask"),
    [
        *(("fused", *pair) for pair in cases.LAYOUTS_AND_MASKS),
        ("autodiff", "sequence", "nan"),
        ("autodiff", "per_activation", "position"),
    ],
)
def test_gradients_match_the_chain_rule(x64, impl, layout, mask):
    """In float64, to ten digits. The weights are not zero in masked places.

    Red if a term is dropped, if m counts what is masked, or if masked places feel the moments.
    """
    assert_gradients(cases.make(layout, mask=mask, dtype="float64"), impl, tolerances.EXACT)


@pytest.mark.parametrize(
    ("dtype", "offset"), [("float32", 0.0), ("float32", 1e3), ("bfloat16", 0.0), ("bfloat16", 30.0)]
)
@pytest.mark.parametrize("impl", IMPLS)
def test_gradients_far_from_zero(impl, dtype, offset):
    case = cases.make("channels_first", mask="nan", offset=offset, dtype=dtype)
    assert_gradients(case, impl, tolerances.gradient(dtype, offset))


@pytest.mark.parametrize("keys", [("scale",), ("bias",), ()])
def test_gradients_without_scale_or_bias(x64, keys):
    case = cases.make("dense", dtype="float64")
    params = {key: case.params[key] for key in keys}
    dx, dparams = gradient(case.x, params, case.weights)
    expected = reference.backward(case.weights, case.x, params.get("scale"), epsilon=EPSILON)
    assert_close(dx, expected.dx, tolerances.EXACT)
    assert set(dparams) == set(keys)
    for key, value in dparams.items():
        assert_close(value, getattr(expected, f"d{key}"), tolerances.EXACT, key)


@pytest.mark.parametrize("impl", IMPLS)
def test_gradients_have_the_dtypes_of_their_arguments(impl):
    case = cases.make("dense", dtype="bfloat16", params_dtype="bfloat16")
    weights = case.weights.astype(jnp.float32)
    dx, dparams = gradient(case.x, case.params, weights, impl=impl, dtype=jnp.float32)
    assert dx.dtype == dparams["scale"].dtype == dparams["bias"].dtype == jnp.bfloat16
    expected = reference.backward(weights, case.x, case.params["scale"], epsilon=EPSILON)
    assert_close(dx, expected.dx, tolerances.gradient("bfloat16"))
    assert_close(dparams["scale"], expected.dscale, tolerances.gradient("bfloat16"))


@pytest.mark.parametrize(
    ("impl", "mask"), [("fused", "none"), ("fused", "position"), ("autodiff", "position")]
)
def test_first_and_second_derivatives_by_finite_differences(x64, impl, mask):
    """Red if the closed form's residuals are cut off from x: the second order alone suffers."""
    case = cases.make("dense", mask=mask, dtype="float64")

    @jax.jit
    def f(x, params):
        return loss(x, params, case.weights, case.mask, impl=impl)

    check_grads(f, (case.x, case.params), order=2, modes=["rev"])


def test_autodiff_has_forward_mode(x64):
    case = cases.make("dense", mask="position", dtype="float64")

    @jax.jit
    def f(x, params):
        return loss(x, params, case.weights, case.mask, impl="autodiff")

    check_grads(f, (case.x, case.params), order=2, modes=["fwd"])


def test_fused_has_no_forward_mode():
    """It says so, rather than differentiate something else, and what has one."""
    case = cases.make("dense")
    with pytest.raises(TypeError, match=r"forward-mode autodiff .* custom_vjp") as error:
        jax.jvp(lambda x: loss(x, case.params, case.weights), (case.x,), (case.x,))
    assert any("impl='autodiff'" in note for note in error.value.__notes__)


@pytest.mark.parametrize("mask", ["none", "nan"])
@pytest.mark.parametrize("impl", IMPLS)
def test_hessian_vector_product(x64, impl, mask):
    """Forward over reverse, against central differences of the reference's gradient."""
    case = cases.make("dense", mask=mask, dtype="float64")
    weights = jnp.where(jnp.isfinite(case.x), case.weights, 0.0)
    dx, dparams = hessian_vector(case.x, case.params, weights, case.mask, impl=impl)

    def gradient_at(step):
        return reference.backward(
            weights,
            np.asarray(case.x) + step * np.asarray(weights),
            np.asarray(case.params["scale"]) * (1 + step),
            epsilon=EPSILON,
            mask=case.mask,
        )

    step = 1e-4
    ahead, behind = gradient_at(step), gradient_at(-step)
    tolerance = {"rtol": 1e-6, "atol": 1e-6}
    assert_close(dx, (ahead.dx - behind.dx) / (2 * step), tolerance, "dx")
    assert_close(dparams["scale"], (ahead.dscale - behind.dscale) / (2 * step), tolerance)
    assert_close(dparams["bias"], np.zeros(5), tolerance)


@pytest.mark.parametrize("impl", IMPLS)
def test_statistics_carry_no_gradient(impl):
    """Red if the new statistics, or the moments, are differentiable."""
    case = cases.make("dense")
    stats = bnjax.init_stats(5, averaging="ema_debiased")

    @jax.jit
    def of_statistics(x, params):
        _, new = bnjax.normalize_batch(x, params, stats, averaging="ema_debiased", impl=impl)
        _, moments = bnjax.batch_transform(x, params, impl=impl)
        floating = [new["mean"], new["var"], moments.mean, moments.var]
        return sum(jnp.sum(value * jnp.arange(1.0, 6.0)) for value in floating)

    assert of_statistics(2 * case.x, case.params) != of_statistics(case.x, case.params)
    for leaf in jax.tree.leaves(jax.grad(of_statistics, argnums=(0, 1))(case.x, case.params)):
        np.testing.assert_array_equal(leaf, 0)


def test_update_stats_cuts_the_gradient_of_moments_that_have_one():
    """`batch_moments` itself is differentiable; what statistics take from it is not."""
    x, stats = cases.make("dense").x, bnjax.init_stats(5)
    weights = jnp.arange(1.0, 6.0)

    def of_moments(x):
        return jnp.sum(weights * bnjax.batch_moments(x, (0,)).var)

    def of_statistics(x):
        return jnp.sum(weights * bnjax.update_stats(stats, bnjax.batch_moments(x, (0,)))["var"])

    exact = np.asarray(x, np.float64)
    expected = np.asarray(weights) * 2 * (exact - exact.mean(0)) / 16
    assert_close(jax.grad(of_moments)(x), expected, tolerances.gradient("float32"))
    np.testing.assert_array_equal(jax.grad(of_statistics)(x), 0)


@pytest.mark.parametrize("impl", IMPLS)
def test_gradients_of_a_constant_feature_are_finite(impl):
    """Zero variance: xhat is zero, dx is (dy - mean of dy) scale / sqrt(epsilon)."""
    case = cases.make("dense")
    x = jnp.full((16, 5), 3.7, jnp.float32)
    dx, dparams = gradient(x, case.params, case.weights, impl=impl)
    expected = reference.backward(case.weights, x, case.params["scale"], epsilon=EPSILON)
    assert_close(dx, expected.dx, {"rtol": 1e-5, "atol": 1e-5})
    assert_close(dparams["scale"], np.zeros(5), {"rtol": 0, "atol": 1e-5})


@pytest.mark.parametrize("impl", IMPLS)
def test_gradients_of_a_batch_that_is_masked_as_a_whole(impl):
    """No place counts, and y is `bias` everywhere: nothing reaches x or scale."""
    case = cases.make("dense", mask="nan")
    mask = jnp.zeros((16, 1), bool)
    dx, dparams = gradient(case.x, case.params, case.weights, mask=mask, impl=impl)
    assert not np.any(dx)
    assert not np.any(dparams["scale"])
    assert_close(dparams["bias"], np.sum(case.weights, 0), tolerances.gradient("float32"))


@functools.partial(jax.jit, static_argnames=("axis", "epsilon", "activation"))
def inference_loss(x, params, stats, weights, **settings):
    return jnp.sum(weights * bnjax.normalize_population(x, params, stats, **settings))


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_gradients_through_inference_match_the_chain_rule(x64, activation, layout):
    """Statistics are constants there. Seen red with the scale, or the activation, cut off."""
    case = cases.make(layout, dtype="float64")
    settings = {"axis": case.axis, "epsilon": EPSILON}
    dx, dparams = jax.grad(inference_loss, argnums=(0, 1))(
        case.x, case.params, case.stats, case.weights, activation=activation, **settings
    )
    _, derivative = reference.ACTIVATIONS[activation]
    z = reference.population(case.x, **case.params, **case.stats, **settings)
    expected = reference.population_backward(
        case.weights * derivative(z), case.x, case.params["scale"], **case.stats, **settings
    )
    assert_close(dx, expected.dx, tolerances.EXACT, "dx")
    assert_close(dparams["scale"], expected.dscale, tolerances.EXACT, "dscale")
    assert_close(dparams["bias"], expected.dbias, tolerances.EXACT, "dbias")


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_inference_has_both_derivatives_in_both_modes(x64, activation):
    case = cases.make("channels_first", dtype="float64")

    @jax.jit
    def f(x, params):
        settings = {"axis": case.axis, "epsilon": EPSILON, "activation": activation}
        return inference_loss(x, params, case.stats, case.weights, **settings)

    check_grads(f, (case.x, case.params), order=2)


def test_second_derivatives_of_a_variance_of_zero(x64):
    """Where all values are equal the variance has its minimum: `maximum(var, 0)` halves them."""
    x, direction = jnp.full((16, 5), 0.5), cases.make("dense", dtype="float64").weights
    gradient = jax.grad(lambda x: bnjax.batch_moments(x, (0,)).var.sum())
    product = jax.jit(lambda x: jax.jvp(gradient, (x,), (direction,))[1])(x)
    exact = np.asarray(direction)
    assert_close(product, 2 * (exact - exact.mean(0)) / 16, tolerances.EXACT)
