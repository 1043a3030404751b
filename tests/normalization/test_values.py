"""Outputs and moved statistics against NumPy float64, at any offset, mask, dtype and layout."""

import itertools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import tolerances
from cases import infer, train
from marks import slow
from tolerances import assert_close

import bnjax


@pytest.mark.parametrize(
    ("dtype", "layout", "mask", "offset"),
    [
        *(
            ("float32", *pair, offset)
            for pair in cases.LAYOUTS_AND_MASKS
            for offset in (0.0, 10.0, 1e3)
        ),
        *(
            ("bfloat16", *pair, offset)
            for pair in (
                ("dense", "none"),
                ("channels_first", "nan"),
                ("per_activation", "position"),
            )
            for offset in (0.0, 10.0, 100.0)
        ),
    ],
)
def test_training_and_inference_match_float64(dtype, layout, mask, offset):
    """Red for squares around zero, a variance in bfloat16, a mask left out of a sum."""
    case = cases.make(layout, mask=mask, offset=offset, dtype=dtype)
    settings = {"axis": case.axis, "epsilon": 1e-3}
    y, stats = train(case.x, case.params, case.stats, mask=case.mask, decay=0.75, **settings)
    inferred = infer(case.clean, case.params, stats, **settings)

    batch = reference.forward(case.x, **case.params, mask=case.mask, **settings)
    mean = reference.ema([batch.mean], case.stats["mean"], 0.75)
    new_var = reference.running_variance(batch, "unbiased")
    var = reference.ema([new_var], case.stats["var"], 0.75)
    population = reference.population(case.clean, **case.params, mean=mean, var=var, **settings)

    assert y.dtype == inferred.dtype == case.x.dtype
    assert_close(y, batch.y, tolerances.output(dtype, offset), "y")
    assert_close(stats["mean"], mean, tolerances.mean(offset), "mean")
    assert_close(stats["var"], var, tolerances.variance(), "var")
    assert_close(inferred, population, tolerances.output(dtype, offset), "inference")


def two_passes(x: np.ndarray, dy: np.ndarray, epsilon=1e-5) -> list[np.ndarray]:
    """Mean, variance, output and dx of plain NumPy in float32."""
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    var = np.square(x - mean).mean(axes)
    rstd = 1 / np.sqrt(var + np.float32(epsilon))
    xhat = (x - mean) * rstd
    m = np.float32(x.size / x.shape[-1])
    dx = rstd * (dy - (dy.sum(axes) + xhat * (dy * xhat).sum(axes)) / m)
    assert dx.dtype == np.float32
    return [mean, var, xhat, dx]


SHAPES = [(8, 14, 14, 6), (4, 7, 6, 3), (2, 56, 8, 4), (60, 5)]
"""The sample is a seventh, a seventh and an eighth of each image; in the last, all."""


@pytest.mark.parametrize(
    ("shape", "far"),
    [
        *itertools.product(SHAPES, [None]),
        *itertools.product(SHAPES[:3], ["slices"]),
        ((300, 4, 2, 3), "example"),
    ],
)
def test_float32_far_from_zero_at_the_first_step(shape, far):
    """1e5 standard deviations, and not a statistic to help: at least as good as two passes.

    Slices of the sample that are far from the rest put its mean up to sqrt(8) standard deviations
    of the whole from that of the whole; an example that is far counts as one of 300. Red for a
    shift by the running mean, by zero, or by one example. Eight variances cancel at most; what
    XLA's sums of 900 values, all alike, are off by counts nine times then, and stays below 6e-5.
    So are JAX 0.7's to 0.9's of every shape.
    """
    rng = np.random.default_rng(0)
    z = rng.normal(size=shape)
    if far == "slices":
        z[:, : shape[1] // (8 if shape[1] % 8 == 0 else 7)] += 30
    elif far == "example":
        z[0] += 1000
    z /= z.std(tuple(range(len(shape) - 1)))
    x, dy = np.float32(1e5 + z), np.float32(rng.normal(size=shape))
    y, pullback, moments = value_and_pullback(x)
    ours = [moments.mean, moments.var, y, *pullback(dy)]

    batch, gradients = reference.forward(x, None, None), reference.backward(dy, x, None)
    exact = [batch.mean, batch.var, batch.y, gradients.dx]
    unit = tolerances.UNIT["float32"]
    ulp = {"rtol": 0, "atol": 2.0**-7}  # what float32 tells apart there
    names = ("mean", "var", "y", "dx")
    for name, our, their, true in zip(names, ours, two_passes(x, dy), exact, strict=True):
        two_passes_error = np.abs(np.float64(their) - true).max()
        assert_close(our, true, {"rtol": 0, "atol": 2 * two_passes_error}, name)
    assert_close(moments.mean, batch.mean, ulp, "mean")
    assert_close(y, batch.y, ulp, "y")
    sums_alike = far == "slices" or jax.__version_info__ < (0, 10)
    rounding = {"rtol": (1000 if sums_alike else 16) * unit, "atol": 0}
    assert_close(moments.var, batch.var, rounding)


@jax.jit
def value_and_pullback(x):
    """The output, what maps its cotangent to that of x, and the moments."""
    return jax.vjp(lambda x: bnjax.batch_transform(x, {}), x, has_aux=True)


@pytest.mark.parametrize("offset", [1e3, 3e4])
@pytest.mark.parametrize("masked", [False, True])
def test_a_large_batch_far_from_zero(masked, offset):
    """The mean is as good as rounded once, the variance right to 1e-6.

    Before JAX 0.10 XLA adds up in longer rows, and the variance is right to 5e-6.

    Red if the mean of the first pass stays as it is, or the square of its error in the variance.
    """
    rng = np.random.default_rng(0)
    x = jnp.asarray(offset + rng.normal(size=(2000, 50, 3)), jnp.float32)
    mask = jnp.asarray(rng.random((2000, 50, 1)) < 0.5) if masked else None
    params, stats = bnjax.init_params(3), bnjax.init_stats(3)
    y, stats = train(x, params, stats, decay=0.0, running_var="biased", mask=mask)
    batch = reference.forward(x, None, None, mask=mask)
    rounding = {"rtol": 0.8 * tolerances.UNIT["float32"], "atol": 0}
    assert_close(stats["mean"], batch.mean, rounding, "mean")
    sum_error = 5e-6 if jax.__version_info__ < (0, 10) else 1e-6
    assert_close(stats["var"], batch.var, {"rtol": sum_error, "atol": 0}, "var")
    assert_close(y, batch.y, tolerances.output("float32", offset), "y")


@pytest.mark.parametrize("value", [0.0, 0.1, 1000.1, -3e4])
@pytest.mark.parametrize(
    ("impl", "dtype"), [("fused", "float32"), ("autodiff", "float32"), ("fused", "bfloat16")]
)
def test_a_constant_feature_gives_bias(impl, dtype, value):
    """1/sqrt(epsilon) multiplies whatever the mean is off by."""
    x = jnp.full((37, 2), value, dtype)
    params = {"scale": jnp.array([2.0, -1.0]), "bias": jnp.array([0.5, -3.0])}
    y, stats = train(x, params, bnjax.init_stats(2), impl=impl, decay=0.0)
    assert_close(y, np.tile(params["bias"], (37, 1)), {"rtol": 0, "atol": 1e-6})
    assert_close(stats["mean"], np.float64(x[0]), {"rtol": 2e-7, "atol": 0})
    assert_close(stats["var"], [0, 0], {"rtol": 0, "atol": 1e-12 * (1 + value**2)})


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(20_000, 3), (16, 32, 24, 3)])
def test_bfloat16_keeps_a_small_variance_far_from_zero(shape, masked):
    """White images: 255, which it holds exactly, and 254 in one place of a hundred.

    The mean is 2,500 standard deviations. Red by 24 % and more for squares around zero.
    """
    rng = np.random.default_rng(0)
    x = jnp.asarray(255 - (rng.random(shape) < 0.01), jnp.bfloat16)
    mask = jnp.asarray(rng.random((*shape[:-1], 1)) < 0.5) if masked else None
    params, stats = bnjax.init_params(3), bnjax.init_stats(3)
    y, stats = train(x, params, stats, decay=0.0, running_var="biased", mask=mask)
    batch = reference.forward(x, None, None, mask=mask)
    assert_close(stats["var"], batch.var, {"rtol": 1e-5, "atol": 0}, "var")
    mean_error = {"rtol": 2.0**-8, "atol": 2.0**-16 / np.sqrt(batch.var.min())}
    assert_close(y, batch.y, mean_error, "y")


@pytest.mark.parametrize("impl", ["fused", slow("autodiff")])
@pytest.mark.parametrize("dtype", ["float32", slow("float16")])
@pytest.mark.parametrize("batch", ["all", 2])
def test_what_is_masked_as_a_whole_gives_bias(batch, dtype, impl):
    """A feature, or a group of padding, without a gradient. Red for 316 x, infinite in float16."""
    x = jnp.asarray([[1, 2], [100, 5], [300, 1], [250, 9]], dtype)
    mask = jnp.asarray([[False, True]] * 2 + [[False, batch == "all"]] * 2)
    counted = np.asarray(mask.any(0) if batch == "all" else mask)
    params = {"scale": jnp.array([2.0, 3.0]), "bias": jnp.array([7.0, 8.0])}

    def loss(x, scale):
        settings = {"mask": mask, "batch": batch, "impl": impl}
        y, _ = bnjax.batch_transform(x, params | {"scale": scale}, **settings)
        return jnp.square(y).sum(dtype=jnp.float32), y

    (dx, dscale), y = jax.grad(loss, (0, 1), has_aux=True)(x, params["scale"])
    whole = ~np.broadcast_to(counted, x.shape)
    np.testing.assert_array_equal(np.asarray(y)[whole], np.tile([7.0, 8.0], (4, 1))[whole])
    np.testing.assert_array_equal(np.asarray(dx)[whole], 0)
    assert dscale[0] == 0
    assert dscale[1] != 0
    assert np.isfinite(np.asarray(y)).all()


@pytest.mark.parametrize("keys", [("scale",), ("bias",), ()])
def test_scale_and_bias_may_be_absent(keys):
    case = cases.make("dense")
    params = {key: case.params[key] for key in keys}
    y, _ = train(case.x, params, case.stats)
    batch = reference.forward(case.x, params.get("scale"), params.get("bias"))
    assert_close(y, batch.y, tolerances.output("float32"))
    y = infer(case.x, params, case.stats)
    population = reference.population(case.x, params.get("scale"), params.get("bias"), **case.stats)
    assert_close(y, population, tolerances.output("float32"))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_moments_over_axes_counted_from_the_end(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 6, 4)), dtype)
    counted = bnjax.batch_moments(x, (-2, -3))
    for one, other in zip(counted, bnjax.batch_moments(x, (0, 1)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_per_feature_axes_are_sorted():
    """axis=(3, 1) names the same features, of the same shape, as axis=(1, 3)."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 3, 2, 5)), jnp.float32)
    params, stats = bnjax.init_params((3, 5)), bnjax.init_stats((3, 5))
    y, new = train(x, params, stats, axis=(3, 1))
    batch = reference.forward(x, None, None, axis=(1, 3))
    assert new["mean"].shape == (3, 5)
    assert_close(y, batch.y, tolerances.output("float32"))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_dtype_is_that_of_the_output_alone(dtype):
    """Rounding a bfloat16 input's result twice, or the input to float16, would show."""
    case = cases.make("dense", dtype="bfloat16")
    y, stats = train(case.x, case.params, case.stats, dtype=dtype)
    inferred = infer(case.x, case.params, stats, dtype=dtype)
    assert y.dtype == inferred.dtype == dtype
    batch = reference.forward(case.x, **case.params)
    assert_close(y, batch.y, {"rtol": float(jnp.finfo(dtype).eps) / 2, "atol": 1e-6})


def test_float64_stays_float64(x64):
    case = cases.make("channels_last", mask="nan", offset=1e3, dtype="float64")
    y, stats = train(case.x, case.params, case.stats, mask=case.mask)
    batch = reference.forward(case.x, **case.params, mask=case.mask)
    assert y.dtype == stats["mean"].dtype == jnp.float64
    assert_close(y, batch.y, {"rtol": 1e-10, "atol": 1e-10})
    inferred = infer(case.clean, case.params, case.stats)
    population = reference.population(case.clean, **case.params, **case.stats)
    assert_close(inferred, population, tolerances.EXACT)


@pytest.mark.parametrize("impl", ["fused", "autodiff"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nan_and_infinity_in_masked_places_give_bias(dtype, impl):
    """Red if they are replaced by a mean that was rounded to bfloat16."""
    case = cases.make("dense", mask="nan", offset=1e3, dtype=dtype)
    y, _ = train(case.x, case.params, case.stats, mask=case.mask, impl=impl)
    bias = jnp.broadcast_to(case.params["bias"].astype(dtype)[None], y.shape)
    np.testing.assert_array_equal(y[~case.mask], bias[~case.mask])


def test_an_unmasked_nan_is_not_hidden():
    case = cases.make("dense", mask="example")
    y, stats = train(case.x.at[0, 0].set(jnp.nan), case.params, case.stats, mask=case.mask)
    assert np.isnan(y[:, 0]).all()
    assert np.isnan(stats["mean"][0])
    assert np.isfinite(y[:, 1:]).all()


def test_moments_are_the_batchs_own():
    """`batch_transform` returns the biased variance and the count behind each mean."""
    case = cases.make("per_activation", mask="position")
    transform = jax.jit(bnjax.batch_transform, static_argnames="axis")
    _, moments = transform(case.x, case.params, mask=case.mask, axis=case.axis)
    batch = reference.forward(case.x, None, None, mask=case.mask, axis=case.axis)
    assert len(np.unique(batch.count)) > 1
    np.testing.assert_array_equal(moments.size, batch.count)
    assert_close(moments.mean, batch.mean, tolerances.mean())
    assert_close(moments.var, batch.var, tolerances.variance())
    _, dense = transform(case.x, case.params, axis=case.axis)
    assert dense.size == 12


def test_inference_takes_a_single_example():
    case = cases.make("channels_last")
    one = infer(case.x[:1], case.params, case.stats)
    np.testing.assert_array_equal(one, infer(case.x, case.params, case.stats)[:1])
