"""NumPy's arrays are float64 unless told otherwise; JAX's are not, without jax_enable_x64.

All warnings are errors here, JAX's of float64 that it truncates among them.
"""

import jax
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_close

import bnjax
import bnjax.linen
import bnjax.nnx
from bnjax import whitening
from bnjax.normalization import renormalize_batch

X = np.random.default_rng(0).normal(size=(60, 3))
WEIGHTS = np.random.default_rng(1).normal(size=(60, 3))
PARAMS = {"scale": np.full(3, 2.0), "bias": np.full(3, 0.5)}
STATS = {"mean": np.zeros(3), "var": np.ones(3)}
WHITENING = {"mean": np.zeros(3), "cov": np.eye(3)[None]}
Y = 2 * (X - X.mean(0)) / np.sqrt(X.var(0) + 1e-5) + 0.5


def weighted(function, x):
    return jax.grad(lambda x: (WEIGHTS.astype("float32") * function(x)).sum())(x)


CALLS = {
    "normalize_batch": lambda x: bnjax.normalize_batch(x, PARAMS, STATS),
    "masked": lambda x: bnjax.normalize_batch(x, PARAMS, STATS, mask=np.ones((60, 1), bool)),
    "groups": lambda x: bnjax.normalize_batch(x, PARAMS, STATS, batch=7, activation="relu"),
    "gradient": lambda x: weighted(lambda x: bnjax.normalize_batch(x, PARAMS, STATS)[0], x),
    "gradient of autodiff": lambda x: weighted(
        lambda x: bnjax.normalize_batch(x, PARAMS, STATS, impl="autodiff")[0], x
    ),
    "normalize_population": lambda x: bnjax.normalize_population(x, PARAMS, STATS),
    "gradient of inference": lambda x: weighted(
        lambda x: bnjax.normalize_population(x, PARAMS, STATS), x
    ),
    "batch_moments": lambda x: bnjax.batch_moments(x, (0,)),
    "update_stats": lambda x: bnjax.update_stats(
        STATS, bnjax.Moments(*(np.asarray(v, x.dtype) for v in (X.mean(0), X.var(0), 60.0)))
    ),
    "renormalize_batch": lambda x: renormalize_batch(x, PARAMS, STATS, r_max=3.0, d_max=5.0),
    "whiten_batch": lambda x: whitening.whiten_batch(x, PARAMS, WHITENING),
    "whiten_population": lambda x: whitening.whiten_population(x, PARAMS, WHITENING),
    "whitening_matrix": lambda x: whitening.whitening_matrix((X.T @ X).astype(x.dtype)),
    "fold": lambda x: bnjax.fold(x, None, PARAMS, STATS),
    "nnx": lambda x: bnjax.nnx.BatchNorm(3, rngs=nnx.Rngs(0))(x),
    "linen": lambda x: bnjax.linen.BatchNorm(use_running_average=False).init_with_output(
        jax.random.key(0), x
    )[0],
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_it_is_what_the_same_numbers_are_in_float32(call):
    """Red for JAX's warning of a float64 that was asked for by its name."""
    got, expected = call(X), call(X.astype("float32"))
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {np.dtype("float32")}


def test_values_are_those_of_float64():
    y, stats = bnjax.normalize_batch(X, PARAMS, STATS, decay=0.9)
    assert_close(y, Y, {"rtol": 1e-5, "atol": 1e-5})
    assert_close(stats["mean"], 0.1 * X.mean(0), {"rtol": 1e-5, "atol": 1e-7})
    assert_close(stats["var"], 0.9 + 0.1 * X.var(0, ddof=1), {"rtol": 1e-6, "atol": 0})


def test_with_x64_it_is_float64(x64):
    y, stats = bnjax.normalize_batch(X, PARAMS, STATS, epsilon=1e-60)
    assert y.dtype == stats["mean"].dtype == np.float64
    assert_close(y, 2 * (X - X.mean(0)) / X.std(0) + 0.5, {"rtol": 1e-12, "atol": 1e-12})


def test_the_epsilon_is_one_of_the_type_that_computes():
    """Red where x says float64, float32 computes, and constant features become NaN."""
    calls = (
        lambda: bnjax.normalize_batch(X, PARAMS, STATS, epsilon=1e-60),
        lambda: bnjax.normalize_population(X, PARAMS, STATS, epsilon=1e-60),
        lambda: renormalize_batch(X, PARAMS, STATS, r_max=3.0, d_max=5.0, epsilon=1e-60),
        lambda: whitening.whiten_batch(X, PARAMS, WHITENING, epsilon=1e-60),
        lambda: whitening.whitening_matrix(WHITENING["cov"], epsilon=1e-60),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"epsilon must be > 0, got 1e-60: .* float32 knows"):
            call()


def test_complex128(promotion):
    x = X + 1j * WEIGHTS
    y = bnjax.nnx.BatchNorm(3, rngs=nnx.Rngs(0))(x)
    centred = x - x.mean(0)
    expected = centred / np.sqrt((np.abs(centred) ** 2).mean(0) + 1e-5)
    assert y.dtype == np.complex64
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
