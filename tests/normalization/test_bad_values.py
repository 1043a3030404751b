"""Whatever is given for an argument of the pure functions: it works, or its name is said."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

import bnjax
from bnjax.normalization import renormalize_batch

X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)
PARAMS, STATS = bnjax.init_params(3), bnjax.init_stats(3, averaging="cumulative")
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
    partial(bnjax.batch_moments, X): {"axes": 0, "mask": None},
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
    **{"axes": (-1,), "r_max": (5, 1.5), "d_max": (5, 1.5)},
}


@pytest.mark.parametrize(
    ("function", "name"),
    [(function, name) for function, good in GOOD.items() for name in good],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_bad_value_names_its_argument(function, name):
    for value in VALUES:
        if any(type(value) is type(fine) and value == fine for fine in TAKEN.get(name, ())):
            function(**GOOD[function] | {name: value})
            continue
        with pytest.raises(ValueError, match=name):
            function(**GOOD[function] | {name: value})
