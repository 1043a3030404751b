"""Whatever is given for an argument of the pure functions: it works, or its name is said."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

import bnjax
from bnjax import whitening
from bnjax.normalization import renorm_limits, renormalize_batch

X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)
PARAMS, STATS = bnjax.init_params(3), bnjax.init_stats(3, averaging="cumulative")
WHITENING = whitening.init_whitening_stats(3, averaging="cumulative")
WHITEN = {"x": X, "params": PARAMS, "axis": -1, "method": "zca", "epsilon": 1e-3, "dtype": None}
MOMENTS = bnjax.batch_transform(X, PARAMS)[1]
GOOD = {
    bnjax.normalize_batch: {
        **{"x": X, "params": PARAMS, "stats": STATS, "axis": -1, "decay": 0.9, "epsilon": 1e-5},
        **{"averaging": "ema", "running_var": "biased", "activation": None, "batch": "all"},
        **{"mask": None, "axis_index_groups": None, "impl": "fused", "dtype": None},
    },
    bnjax.normalize_population: {
        **{"x": X, "params": PARAMS, "stats": STATS, "axis": -1, "epsilon": 1e-5},
        **{"activation": None, "dtype": None},
    },
    bnjax.update_stats: {
        **{"stats": STATS, "moments": MOMENTS, "decay": 0.9},
        **{"averaging": "ema", "running_var": "biased"},
    },
    renormalize_batch: {
        **{"x": X, "params": PARAMS, "stats": STATS, "r_max": 1, "d_max": 0, "mask": None},
    },
    renorm_limits: {"step": 1, "start": 0, "r_end": 10, "d_end": 10, "r_max": 3.0, "d_max": 5.0},
    partial(bnjax.batch_moments, X): {
        **{"axes": 0, "mask": None, "axis_index_groups": None, "shards": 1},
    },
    whitening.whiten_batch: {
        **WHITEN,
        **{"stats": WHITENING, "decay": 0.9, "averaging": "ema", "running_cov": "biased"},
        **{"mask": None, "axis_index_groups": None},
    },
    whitening.whiten_population: {**WHITEN, "stats": WHITENING},
    partial(whitening.batch_covariance, X): {"axis": -1, "groups": 1, "mask": None},
    partial(whitening.inverse_sqrt, jnp.eye(3)): {"epsilon": 0.0},
    whitening.init_whitening_stats: {
        **{"features": 3, "groups": 1, "averaging": "ema", "dtype": "float32"},
    },
    bnjax.as_affine: {"params": PARAMS, "stats": STATS, "epsilon": 1e-5},
    bnjax.fold: {
        **{"kernel": jnp.ones((2, 3)), "bias": None, "params": PARAMS, "stats": STATS},
        **{"epsilon": 1e-5},
    },
    bnjax.init_params: {"shape": 3, "dtype": "float32"},
    bnjax.init_stats: {"shape": 3, "averaging": "ema", "dtype": "float32"},
}
VALUES = [
    "x",
    5,
    -1,
    1.5,
    True,
    [1.0],
    {},
    (),
    float("nan"),
    jnp.ones((2, 2)),
    np.ones(1),
    object(),
]
TAKEN = {  # by name, what is no mistake
    **{"params": ({},), "axis": (-1,), "epsilon": (5, 1.5), "shape": (5, ())},
    **{"axes": (-1,), "r_max": (5, 1.5), "d_max": (5, 1.5), "features": (5,)},
    **{"start": (5, -1, 1.5), "r_end": (5, 1.5), "d_end": (5, 1.5)},
}


@pytest.mark.parametrize(
    ("function", "name"),
    [(function, name) for function, good in GOOD.items() for name in good if name != "step"],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_bad_value_names_its_argument(function, name):
    for value in VALUES:
        if any(type(value) is type(fine) and value == fine for fine in TAKEN.get(name, ())):
            function(**GOOD[function] | {name: value})
            continue
        with pytest.raises(ValueError, match=rf"\b{name}\b"):
            function(**GOOD[function] | {name: value})


@pytest.mark.parametrize("axis_name", [5, True, {}, jnp.ones((2, 2))], ids=str)
@pytest.mark.parametrize(
    "call",
    [
        partial(bnjax.batch_moments, X, 0),
        partial(bnjax.normalize_batch, X, PARAMS, STATS),
        partial(whitening.whiten_batch, X, PARAMS, WHITENING),
        partial(bnjax.population_stats, lambda x: bnjax.batch_moments(x, 0), X[None]),
    ],
    ids=["batch_moments", "normalize_batch", "whiten_batch", "population_stats"],
)
def test_an_axis_name_that_is_no_name(call, axis_name):
    with pytest.raises(ValueError, match="axis_name must be a name or several, got"):
        call(axis_name=axis_name)


def test_shards_that_moments_cannot_have():
    with pytest.raises(ValueError, match="shards=4 must divide the 6 examples"):
        bnjax.batch_moments(X, 0, shards=4)
    with pytest.raises(ValueError, match="and be 1 with axis_name"):
        bnjax.batch_moments(X, 0, shards=2, axis_name="data")


@pytest.mark.parametrize("cov", ["x", [[1.0]], jnp.ones(3), jnp.ones((2, 3))], ids=str)
def test_covariances_that_are_no_square_matrices(cov):
    with pytest.raises(ValueError, match="cov must be"):
        whitening.whitening_matrix(cov)
    with pytest.raises(ValueError, match="matrix must be"):
        whitening.inverse_sqrt(cov)
