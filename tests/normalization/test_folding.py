"""Population normalization as a multiply-add, and folded: against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from tolerances import EXACT, UNIT, assert_close

import bnjax
from bnjax.normalization.folding import as_affine, fold

U = UNIT["float32"]
EPSILON = 1e-3  # not the default: one that does not arrive is off by 1e-3
ROUNDED = {"rtol": 6 * U, "atol": 0}
"""A kernel or a multiplier: a sum, an inverse root and two products."""


def normalization(features, *, dtype=jnp.float32, offset=0.0, keys=("scale", "bias")):
    """Parameters and statistics far from (1, 0) and (0, 1); standard deviations of 0.7 to 1.4."""
    rng = np.random.default_rng(3)
    params = {key: jnp.asarray(rng.uniform(0.5, 2, features), dtype) for key in keys}
    mean = offset + rng.normal(size=features)
    var = rng.uniform(0.5, 2, features)
    return params, {"mean": jnp.asarray(mean, dtype), "var": jnp.asarray(var, dtype)}


def normal(*shape, dtype=jnp.float32, seed=5):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def exact(params, stats):
    """Multiplier, mean and addend after the mean, in float64."""
    one = np.ones(stats["mean"].shape)
    multiplier = np.float64(params.get("scale", one)) / np.sqrt(np.float64(stats["var"]) + EPSILON)
    return multiplier, np.float64(stats["mean"]), np.float64(params.get("bias", 0 * one))


def assert_within(actual, desired, bound):
    assert (np.abs(np.float64(actual) - desired) <= bound).all()


# --- the multiply-add -------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [("scale", "bias"), ("scale",), ("bias",), ()])
@pytest.mark.parametrize("features", [(5,), (2, 3, 5)])
def test_the_multiply_add_is_population_normalization(keys, features):
    params, stats = normalization(features, keys=keys)
    multiplier, addend = as_affine(params, stats, epsilon=EPSILON)
    expected, mean, beta = exact(params, stats)
    assert_close(multiplier, expected, ROUNDED)
    assert_within(addend, beta - mean * expected, 8 * U * (abs(beta) + abs(mean * expected)))
    x = normal(4, *features)
    axis = tuple(range(1, x.ndim))
    y = bnjax.normalize_population(x, params, stats, axis=axis, epsilon=EPSILON)
    assert_close(multiplier[None] * x + addend[None], np.float64(y), {"rtol": 1e-5, "atol": 1e-5})


def test_the_multiply_add_loses_what_its_docstring_says():
    """u * mean/std, where the subtraction first loses nothing: the reason to have both."""
    offset = 1e4
    params, stats = normalization(64, offset=offset)
    x = jnp.asarray(offset + np.random.default_rng(0).normal(size=(64, 64)), jnp.float32)
    multiplier, addend = as_affine(params, stats, epsilon=EPSILON)
    scale, mean, beta = exact(params, stats)
    expected = scale * (np.float64(x) - mean) + beta
    y = bnjax.normalize_population(x, params, stats, epsilon=EPSILON)
    affine = np.abs(multiplier[None] * x + addend[None] - expected).max()
    assert np.abs(y - expected).max() < 20 * U
    assert 0.1 * U * offset < affine < 8 * U * offset * scale.max()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_multiply_add_is_at_least_float32(dtype):
    params, stats = normalization(5, dtype=dtype)
    results = as_affine(params, stats, epsilon=EPSILON)
    assert {result.dtype for result in results} == {jnp.dtype("float32")}
    assert_close(results[0], exact(params, stats)[0], ROUNDED)


# --- folding ----------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_dense_layer(with_bias, offset):
    """Within (n + 8) u of the sum of the magnitudes that a layer with n inputs adds up.

    That is what a float32 layer costs, folded or not; at an offset, its own output is that wrong.
    """
    n = 40
    params, stats = normalization(5, offset=offset)
    x, kernel = normal(30, n), normal(n, 5)
    bias = offset + normal(5) if with_bias else None
    folded, addend = fold(kernel, bias, params, stats, epsilon=EPSILON)
    assert (folded.shape, addend.shape) == ((n, 5), (5,))
    scale, mean, beta = exact(params, stats)
    given = np.float64(bias) if with_bias else np.zeros(5)
    z = np.float64(x) @ np.float64(kernel) + given
    expected = reference.population(
        z, params["scale"], params["bias"], mean, stats["var"], epsilon=EPSILON
    )
    magnitudes = np.abs(x) @ np.abs(np.float64(kernel) * scale)
    magnitudes += np.abs((given - mean) * scale) + np.abs(beta)
    assert_within(x @ folded + addend[None], expected, (n + 8) * U * magnitudes)


def test_the_mean_is_subtracted_before_it_is_scaled():
    """Bias and mean of 1e3 that nearly cancel: bias * a - mean * a would lose three digits."""
    params, stats = normalization(500, offset=1e3)
    bias = stats["mean"] + 1e-2 * normal(500)
    _, addend = fold(normal(3, 500), bias, params, stats, epsilon=EPSILON)
    scale, mean, beta = exact(params, stats)
    centred = (np.float64(bias) - mean) * scale
    assert_within(addend, centred + beta, 8 * U * (abs(centred) + abs(beta)))


@pytest.mark.parametrize(
    ("kernel_shape", "groups"),
    [((3, 3, 4, 6), 1), ((3, 3, 2, 6), 2), ((3, 3, 1, 8), 4)],
    ids=["plain", "grouped", "depthwise"],
)
def test_a_convolution(kernel_shape, groups):
    x, kernel, bias = normal(2, 5, 6, 4), normal(*kernel_shape), normal(kernel_shape[-1], seed=6)
    params, stats = normalization(kernel_shape[-1])
    folded, addend = fold(kernel, bias, params, stats, epsilon=EPSILON)
    expected = reference.population(
        convolve(x, kernel, groups) + np.float64(bias),
        params["scale"],
        params["bias"],
        stats["mean"],
        stats["var"],
        epsilon=EPSILON,
    )
    y = jax.lax.conv_general_dilated(
        x,
        folded,
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    assert_close(y + addend[None, None, None], expected, {"rtol": 1e-5, "atol": 2e-5})


def convolve(x, kernel, groups):
    """Without padding, in float64: each output channel sees the inputs of its group."""
    x, kernel = np.float64(x), np.float64(kernel)
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(1, 2))
    windows = np.split(windows, groups, axis=3)
    kernels = np.split(kernel, groups, axis=3)
    pairs = zip(windows, kernels, strict=True)
    return np.concatenate([np.einsum("nyxchw,hwcf->nyxf", w, k) for w, k in pairs], axis=-1)


def test_features_of_several_axes():
    """Such are those of a dense layer into heads, and of a bias that differs by position, too."""
    params, stats = normalization((3, 5))
    kernel, bias = normal(7, 3, 5), normal(2, 3, 5)
    folded, addend = fold(kernel, bias, params, stats, epsilon=EPSILON)
    scale, mean, beta = exact(params, stats)
    assert_close(folded, np.float64(kernel) * scale, ROUNDED)
    assert_close(addend, (np.float64(bias) - mean) * scale + beta, {"rtol": 1e-6, "atol": 1e-6})


def test_a_bfloat16_kernel_is_rounded_once():
    """Computed in float32; the bias, which holds -mean/std, stays float32."""
    params, stats = normalization(5, offset=300.0)
    kernel, bias = normal(40, 5, dtype=jnp.bfloat16), normal(5, dtype=jnp.bfloat16)
    folded, addend = fold(kernel, bias, params, stats, epsilon=EPSILON)
    scale, mean, beta = exact(params, stats)
    assert (folded.dtype, addend.dtype) == (jnp.bfloat16, jnp.float32)
    assert_close(folded, np.float64(kernel) * scale, {"rtol": UNIT["bfloat16"] + 8 * U, "atol": 0})
    assert_close(addend, (np.float64(bias) - mean) * scale + beta, {"rtol": 8 * U, "atol": 0})


def test_float64_stays(x64):
    params, stats = normalization(5, dtype=jnp.float64)
    folded, addend = fold(normal(3, 5), None, params, stats, epsilon=EPSILON)
    scale, mean, beta = exact(params, stats)
    assert (folded.dtype, addend.dtype) == (jnp.float32, jnp.float64)
    assert_close(addend, beta - mean * scale, EXACT)
    folded, _ = fold(normal(3, 5, dtype=jnp.float64), None, params, stats, epsilon=EPSILON)
    assert_close(folded, np.float64(normal(3, 5, dtype=jnp.float64)) * scale, EXACT)


def test_under_jit_and_vmap():
    """An ensemble: a leading axis of members, which one fold does not see."""
    members = [normalization(5, offset=offset) for offset in (0.0, 2.0)]
    params, stats = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    kernels = normal(2, 7, 5)
    together = jax.jit(jax.vmap(lambda k, p, s: fold(k, None, p, s, epsilon=EPSILON)))
    folded, addend = together(kernels, params, stats)
    for i, member in enumerate(members):
        scale, mean, beta = exact(*member)
        assert_close(folded[i], np.float64(kernels[i]) * scale, ROUNDED)
        assert_within(addend[i], beta - mean * scale, 8 * U * (abs(beta) + abs(mean * scale)))


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kernel": jnp.ones((5, 3))}, r"kernel has shape \(5, 3\).*\(5,\).*last axes: transpose"),
        ({"kernel": jnp.ones(())}, r"kernel has shape \(\)"),
        ({"kernel": jnp.ones((3, 5), jnp.int8)}, "kernel must be floating, got int8: dequantize"),
        ({"kernel": jnp.ones((3, 5), "complex64")}, "kernel must be real, got complex64"),
        ({"bias": jnp.ones(5, "complex64")}, "bias must be real, got complex64"),
        (
            {"params": {"scale": jnp.ones(5, "complex64")}},
            r"params\['scale'\] must be real, got complex64",
        ),
        (
            {"stats": {"mean": jnp.ones(5, "complex64"), "var": jnp.ones(5)}},
            r"stats\['mean'\] must be real, got complex64",
        ),
        ({"bias": jnp.ones(3)}, r"bias has shape \(3,\)"),
        ({"bias": jnp.ones(())}, r"bias has shape \(\)"),
        ({"params": {"scale": jnp.ones(3)}}, r"params\['scale'\] has shape \(3,\).*\(5,\)"),
        ({"params": {"gamma": jnp.ones(5)}}, r"params may have scale and bias, got \['gamma'\]"),
        ({"stats": {"mean": jnp.ones(5)}}, r"stats must have mean and var, got \['mean'\]"),
        ({"stats": {"mean": jnp.ones(5), "var": jnp.ones(1)}}, r"stats\['var'\] has shape \(1,\)"),
        ({"params": {"scale": jnp.ones(5, int)}}, r"params\['scale'\] must be floating, got int32"),
        ({"params": {"bias": [1.0] * 5}}, r"params\['bias'\] must be an array, got list"),
        (
            {"stats": {"mean": jnp.ones(5), "var": jnp.ones(5, bool)}},
            r"stats\['var'\] must be floating, got bool",
        ),
        ({"epsilon": 0.0}, "epsilon must be > 0, got 0.0"),
    ],
)
def test_bad_arguments_are_named(changed, message):
    params, stats = normalization(5)
    good = {"kernel": jnp.ones((3, 5)), "bias": None, "params": params, "stats": stats}
    with pytest.raises(ValueError, match=message):
        fold(**(good | changed))
