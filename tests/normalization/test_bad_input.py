"""Bad input is refused while tracing, in words that name the argument, the value and the remedy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax
from bnjax import whitening

X = jnp.ones((4, 3))


def train(x=X, params=None, stats=None, **settings):
    """The whole layer, by its shape alone: errors must not need a value."""
    features = x.shape[-1:]
    params = bnjax.init_params(features) if params is None else params
    stats = bnjax.init_stats(features) if stats is None else stats
    return jax.eval_shape(
        lambda x: bnjax.normalize_batch(x, params, stats, **settings), jnp.asarray(x)
    )


def infer(x=X, params=None, stats=None, **settings):
    params = bnjax.init_params(3) if params is None else params
    stats = bnjax.init_stats(3) if stats is None else stats
    return bnjax.normalize_population(x, params, stats, **settings)


BOTH = pytest.mark.parametrize("call", [train, infer])


@BOTH
def test_rank_one(call):
    with pytest.raises(ValueError, match=r"x must have .* got shape \(3,\).* x\[None\]"):
        call(X[0])


@BOTH
@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
def test_dtypes_without_a_mean(call, dtype):
    """Images are uint8: a float32 mean of them, silently, would normalize 0..255."""
    with pytest.raises(ValueError, match=rf"x must be floating, got {dtype}: .*astype"):
        call(X.astype(dtype))


@BOTH
@pytest.mark.parametrize("key", ["scale", "bias"])
def test_parameters_of_another_shape(call, key):
    params = bnjax.init_params(3) | {key: jnp.ones(4)}
    message = (
        rf"params\['{key}'\] has shape \(4,\).*shape \(3,\): make it with init_params\(\(3,\)\)"
    )
    with pytest.raises(ValueError, match=message):
        call(params=params)


@BOTH
@pytest.mark.parametrize("key", ["mean", "var"])
def test_statistics_of_another_shape(call, key):
    """One value for all features would broadcast."""
    stats = bnjax.init_stats(3) | {key: jnp.ones(())}
    message = rf"stats\['{key}'\] has shape \(\).*shape \(3,\): make it with init_stats\(\(3,\)\)"
    with pytest.raises(ValueError, match=message):
        call(stats=stats)


@BOTH
@pytest.mark.parametrize("key", ["mean", "var"])
def test_statistics_of_integers(call, key):
    stats = bnjax.init_stats(3) | {key: jnp.ones(3, jnp.int32)}
    message = rf"stats\['{key}'\] must be floating, got int32: .*astype\(float32\)"
    with pytest.raises(ValueError, match=message):
        call(stats=stats)


def test_a_count_of_another_shape():
    stats = bnjax.init_stats(3) | {"count": jnp.zeros((), jnp.int32)}
    with pytest.raises(ValueError, match=r"stats\['count'\] has shape \(\)"):
        train(stats=stats, averaging="cumulative")


@BOTH
def test_unknown_keys(call):
    with pytest.raises(ValueError, match=r"params has the keys .*gamma.*init_params"):
        call(params={"gamma": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"stats has the keys .*momentum.*init_stats"):
        call(stats=bnjax.init_stats(3) | {"momentum": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"stats has the keys \['mean'\].*init_stats"):
        call(stats={"mean": jnp.zeros(3)})


@BOTH
@pytest.mark.parametrize("axis", [2, -3, (0, 5), ()])
def test_an_axis_that_x_does_not_have(call, axis):
    with pytest.raises(ValueError, match=r"axis=.* does not name axes of x, which has rank 2"):
        call(axis=axis)


@BOTH
@pytest.mark.parametrize("axis", [(1, 1), (1, -1)])
def test_an_axis_given_twice(call, axis):
    with pytest.raises(ValueError, match=r"axis=\(1, -?1\) names an axis twice"):
        call(axis=axis)


@pytest.mark.parametrize("impl", ["fused", "autodiff"])
def test_an_axis_for_all_of_x(impl):
    params, stats = bnjax.init_params((4, 3)), bnjax.init_stats((4, 3))
    message = r"axis=\(0, 1\) names every axis of x of shape \(4, 3\): one .* the examples"
    with pytest.raises(ValueError, match=message):
        train(X, params, stats, axis=(0, 1), impl=impl)
    assert infer(X, params, stats, axis=(0, 1)).shape == (4, 3)


def test_axis_takes_numbers_of_numpy():
    train(axis=np.int64(-1))
    infer(axis=[np.int64(1)])


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((1, 3), -1), ((1, 1, 1, 3), -1), ((1, 3, 1, 1), 1), ((1, 2, 2, 3), (1, 2, 3))],
)
@pytest.mark.parametrize("impl", ["fused", "autodiff"])
def test_a_batch_of_one_value(shape, axis, impl):
    """Its output would be `bias` whatever x, its gradient zero: Flax trains on silently."""
    axes = (axis,) if isinstance(axis, int) else axis
    features = tuple(shape[a] for a in axes)
    params, stats = bnjax.init_params(features), bnjax.init_stats(features)
    with pytest.raises(ValueError, match=r"x of shape .* one value per feature.* larger batch"):
        train(jnp.ones(shape), params, stats, axis=axis, impl=impl)
    bnjax.normalize_population(jnp.ones(shape), params, stats, axis=axis)


@pytest.mark.parametrize("shape", [(2, 3), (1, 2, 3), (1, 2, 1, 3)])
def test_two_values_are_a_batch(shape):
    """One example is enough where there are positions."""
    y, _ = train(jnp.ones(shape))
    assert y.shape == shape


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1, 1.5, float("nan")])
def test_decay(decay):
    """1.0 would freeze the statistics; torch's momentum 0.1 is 0.9 here."""
    with pytest.raises(ValueError, match=rf"decay must be in \[0, 1\), got {decay}.*1 - m"):
        train(decay=decay)


def test_a_decay_that_is_an_array_is_known_while_tracing():
    """Red if it is compared as an array: JAX traces that, and a traced number has no truth."""
    train(decay=jnp.float32(0.9))
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got 1.5"):
        train(decay=jnp.float32(1.5))


def whiten(x=X, **settings):
    stats = whitening.init_whitening_stats(3)
    return whitening.whiten_batch(x, bnjax.init_params(3), stats, **settings)


def whiten_population(x=X, **settings):
    stats = whitening.init_whitening_stats(3)
    return whitening.whiten_population(x, bnjax.init_params(3), stats, **settings)


@pytest.mark.parametrize("call", [train, infer, whiten, whiten_population])
def test_an_output_of_integers(call):
    """It would be cut, not rounded."""
    with pytest.raises(ValueError, match="dtype must be floating, got int32"):
        call(dtype=jnp.int32)


@BOTH
@pytest.mark.parametrize("epsilon", [0, 0.0, -1e-5, float("nan"), float("inf"), 1e-46, 2e38 * 2])
def test_epsilon(call, epsilon):
    with pytest.raises(ValueError, match=re.escape(f"epsilon must be > 0, got {epsilon}: ")):
        call(epsilon=epsilon)


@pytest.mark.parametrize(
    ("name", "value", "choices"),
    [
        ("averaging", "debiased", "'ema', 'ema_debiased', 'cumulative'"),
        ("running_var", "population", "'unbiased', 'biased'"),
        ("impl", "pallas", "'fused', 'autodiff'"),
        ("activation", "swish", "'relu', 'sigmoid'"),
    ],
)
def test_unknown_choices(name, value, choices):
    with pytest.raises(ValueError, match=f"{name} must be one of {choices}, got '{value}'"):
        train(**{name: value})


def test_init_stats_of_an_unknown_average():
    with pytest.raises(ValueError, match=r"averaging must be one of .* got 'mean'"):
        bnjax.init_stats(3, averaging="mean")


@pytest.mark.parametrize("averaging", ["ema_debiased", "cumulative"])
def test_an_average_without_its_count(averaging):
    message = rf"averaging='{averaging}' needs stats\['count'\].*init_stats\(.*averaging="
    with pytest.raises(ValueError, match=message):
        train(averaging=averaging)
    moments = bnjax.batch_moments(X, (0,))
    with pytest.raises(ValueError, match=message):
        bnjax.update_stats(bnjax.init_stats(3), moments, averaging=averaging)


def test_update_stats_checks_its_own_arguments():
    moments, stats = bnjax.batch_moments(X, (0,)), bnjax.init_stats(3)
    with pytest.raises(ValueError, match="decay must be"):
        bnjax.update_stats(stats, moments, decay=1.0)
    with pytest.raises(ValueError, match="running_var must be"):
        bnjax.update_stats(stats, moments, running_var="sample")


def test_update_stats_checks_its_arrays():
    """Moments of integers would lose their weight, without an error."""
    moments, stats = bnjax.batch_moments(X, (0,)), bnjax.init_stats(3)
    for key in ("mean", "var"):
        with pytest.raises(ValueError, match=rf"moments\.{key} must be floating, got int32"):
            bnjax.update_stats(stats, moments._replace(**{key: jnp.ones(3, int)}))
        with pytest.raises(ValueError, match=rf"stats\['{key}'\] must be floating, got int32"):
            bnjax.update_stats(stats | {key: jnp.ones(3, int)}, moments)
        message = rf"moments\.{key} has shape \(2,\), but stats\['{key}'\] has \(3,\)"
        with pytest.raises(ValueError, match=message):
            bnjax.update_stats(stats, moments._replace(**{key: jnp.ones(2)}))


def test_whitening_checks_its_arguments():
    with pytest.raises(ValueError, match="dtype must be floating, got int32"):
        whitening.init_whitening_stats(3, dtype=jnp.int32)
    with pytest.raises(ValueError, match="mask must be an array, got list"):
        whiten(mask=[True] * 4)
    for function in (whitening.whiten_batch, whitening.whiten_population):
        with pytest.raises(ValueError, match="stats must be a dict of arrays, got NoneType: make"):
            function(X, {}, None)
        stats = whitening.init_whitening_stats(3)
        with pytest.raises(ValueError, match=r"stats\['cov'\] must be floating, got int32"):
            function(X, {}, stats | {"cov": stats["cov"].astype("int32")})
        with pytest.raises(ValueError, match=r"stats\['mean'\] must be real, got complex64"):
            function(X, {}, stats | {"mean": stats["mean"].astype("complex64")})
        with pytest.raises(ValueError, match=r"params\['bias'\] must be real, got complex64"):
            function(X, {"bias": jnp.ones(3, "complex64")}, stats)


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_a_mask_of_weights(dtype):
    with pytest.raises(ValueError, match=rf"mask must be bool, got {dtype}: .*astype\(bool\)"):
        train(mask=jnp.ones((4, 1), dtype))


@pytest.mark.parametrize("shape", [(4,), (3,), (5, 1), (2, 4), (4, 3, 1), ()])
def test_a_mask_of_another_shape(shape):
    """(3,) would broadcast over features, where flags of examples were meant."""
    with pytest.raises(
        ValueError, match=r"mask of shape .* does not fit x .*\(examples, 1, \.\.\.\)"
    ):
        train(mask=jnp.ones(shape, bool))


def test_groups_without_an_axis():
    with pytest.raises(ValueError, match=r"axis_index_groups=.* needs axis_name"):
        train(axis_index_groups=[[0, 1]])


def test_groups_of_different_sizes():
    with pytest.raises(ValueError, match=r"axis_index_groups must be of one size, got \[\[0\]"):
        train(axis_name="data", axis_index_groups=[[0], [1, 2]])


def test_an_axis_name_that_is_not_bound():
    """Ignoring it would silently normalize each device's batch by itself."""
    with pytest.raises(NameError, match="axis_name='data' is not mapped here: "):
        train(axis_name="data")


@BOTH
@pytest.mark.parametrize("epsilon", [True, "1e-5", None, jnp.float32(1e-5)], ids=str)
def test_an_epsilon_that_is_no_number(call, epsilon):
    with pytest.raises(ValueError, match="epsilon must be a number known while tracing, got"):
        call(epsilon=epsilon)


def test_an_epsilon_of_float64(x64):
    """The bounds are those of the type that computes: float32 here, even for bfloat16."""
    infer(epsilon=1e-30)
    infer(X.astype(jnp.bfloat16), epsilon=1e-30)
    assert np.isfinite(infer(X.astype("float64"), epsilon=1e-46)).all()


@BOTH
def test_complex_numbers(call):
    with pytest.raises(ValueError, match=r"x must be real, got complex64: .*x\.imag"):
        call(X.astype("complex64"))


@BOTH
@pytest.mark.parametrize(
    "name", ["params['scale']", "params['bias']", "stats['mean']", "stats['var']"]
)
def test_complex_parameters_and_statistics(call, name):
    """Their imaginary part would be lost."""
    given = {"params": bnjax.init_params(3), "stats": bnjax.init_stats(3)}
    tree, key = name.rstrip("']").split("['")
    given[tree] = given[tree] | {key: jnp.ones(3, "complex64")}
    with pytest.raises(ValueError, match=re.escape(f"{name} must be real, got complex64: ")):
        call(**given)


@pytest.mark.parametrize("key", ["mean", "var"])
def test_update_stats_of_complex_numbers(key):
    stats, moments = bnjax.init_stats(3), bnjax.batch_moments(X, (0,))
    wide = jnp.ones(3, "complex64")
    with pytest.raises(ValueError, match=rf"stats\['{key}'\] must be real, got complex64: "):
        bnjax.update_stats(stats | {key: wide}, moments)
    with pytest.raises(ValueError, match=rf"moments\.{key} must be real, got complex64: "):
        bnjax.update_stats(stats, moments._replace(**{key: wide}))


@pytest.mark.parametrize("shape", [(0, 3), (0, 8, 8, 3), (4, 0, 3)])
def test_no_examples(shape):
    with pytest.raises(ValueError, match=r"has no values to normalize by: leave out empty"):
        train(jnp.ones(shape))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", [[1.0, 2.0]]),
        ("mask", [[True], [False]]),
        ("axis", "1"),
        ("axis", 1.0),
        ("axis", (0.5,)),
        ("axis", None),
        ("stats", [0, 1]),
        ("stats", {"mean": [0.0] * 3, "var": jnp.ones(3)}),
        ("params", jnp.ones(3)),
        ("dtype", "floaty"),
        ("dtype", 5),
        ("axis_name", 5),
        ("axis_name", jnp.ones(3)),
        ("decay", "0.9"),
        ("decay", True),
        ("decay", None),
        ("decay", jnp.ones(3)),
    ],
    ids=str,
)
def test_a_wrong_type_names_its_argument(name, value):
    arguments = {"x": X, "params": {}, "stats": bnjax.init_stats(3)} | {name: value}
    with pytest.raises(ValueError, match=rf"{name}.* must be"):
        bnjax.normalize_batch(**arguments)


@pytest.mark.parametrize("make", [bnjax.init_params, bnjax.init_stats])
@pytest.mark.parametrize("shape", ["3", 3.0, None, (3, 0.5), -1], ids=str)
def test_a_shape_of_the_wrong_type(make, shape):
    with pytest.raises(ValueError, match="shape must"):
        make(shape)


@pytest.mark.parametrize(
    ("axes", "mask", "words"),
    [
        ((7,), None, "axes=(7,) does not name axes of x, which has rank 2"),
        ((), None, "axes=() does not name axes of x"),
        ((0, -2), None, "axes=(0, -2) names an axis twice, for x of rank 2"),
        ("0", None, "axes must be an integer or several, got '0'"),
        ((0,), np.ones((len(X), 1), bool), "mask must be bool, of the shape of x"),
        ((0,), np.ones(X.shape, np.float32), "got float32"),
    ],
)
def test_moments_of_no_axis_or_a_mask_of_another_kind(axes, mask, words):
    """The mean came out of another axis, or of a count that the mask did not mean."""
    with pytest.raises(ValueError, match=re.escape(words)):
        bnjax.batch_moments(X, axes, mask=mask)


@pytest.mark.parametrize("x", [X.astype("int32"), X.astype("complex64"), [[1.0, 2.0]]], ids=type)
def test_moments_of_what_has_none(x):
    """Of complex numbers the variance was E x^2, not E|x|^2."""
    with pytest.raises(ValueError, match=r"x must be a real, floating array, got .*: .*jnp\."):
        bnjax.batch_moments(x, (0,))


def test_moments_over_one_axis():
    for axes in (0, np.int64(-2), [0]):
        mean, var, size = bnjax.batch_moments(X, axes)
        assert (mean.tolist(), var.tolist(), size) == ([1.0] * 3, [0.0] * 3, 4)
