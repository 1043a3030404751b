"""How close to float64 a result must be, and why: the one table of tolerances.

Inputs of the tests have standard deviations of 0.5 to 2 and scales below 2 in absolute value.
"""

import jax
import numpy as np

UNIT = {"float32": 2.0**-24, "bfloat16": 2.0**-8}  # relative error of one rounding


def output(dtype, offset: float = 0) -> dict[str, float]:
    """Of `y`: one rounding to its dtype, a few to float32, and a float32 mean.

    The mean is off by up to UNIT * offset, which scale/std multiplies by up to 4.
    """
    rounding = UNIT[np.dtype(dtype).name]
    return {"rtol": rounding + 4 * UNIT["float32"], "atol": 8 * UNIT["float32"] * (1 + offset)}


def mean(offset: float = 0) -> dict[str, float]:
    """Of a mean: its own rounding, twice (in the moments, and when it is averaged)."""
    return {"rtol": 0, "atol": 4 * UNIT["float32"] * (1 + offset)}


def variance() -> dict[str, float]:
    """Of a variance, at any offset: x - mean is exact to a rounding of itself."""
    return {"rtol": 16 * UNIT["float32"], "atol": 0}


def gradient(dtype, offset: float = 0) -> dict[str, float]:
    """Of dx, dscale and dbias: sums of up to 100 terms of size one, plus the error of xhat."""
    rounding = UNIT[np.dtype(dtype).name]
    return {"rtol": rounding + 4 * UNIT["float32"], "atol": 32 * UNIT["float32"] * (1 + offset)}


EXACT = {"rtol": 1e-10, "atol": 1e-12}
"""Two float64 computations of the same number."""

PARALLEL = {"rtol": 1e-5, "atol": 1e-5}
"""float32 at offset 0, summed in another order; a shard left out is off by 1e-2 and more."""


def assert_close(actual, desired, tolerance: dict[str, float], name: str = "") -> None:
    actual = np.asarray(actual, np.float64)
    np.testing.assert_allclose(actual, np.asarray(desired), **tolerance, err_msg=name)


def assert_trees_close(actual, desired, tolerance: dict[str, float]) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    leaves = jax.tree_util.tree_leaves_with_path(actual)
    for (path, leaf), wanted in zip(leaves, jax.tree.leaves(desired), strict=True):
        assert_close(leaf, wanted, tolerance, jax.tree_util.keystr(path))


def assert_trees_equal(actual, desired) -> None:
    """Two trees of one structure and the same numbers."""
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    jax.tree.map(np.testing.assert_array_equal, actual, desired)


def assert_bitwise(actual, desired) -> None:
    """Two trees of one structure, dtype, shape and bytes; signs of zeros count."""
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    leaves = jax.tree_util.tree_leaves_with_path(actual)
    for (path, leaf), wanted in zip(leaves, jax.tree.leaves(desired), strict=True):
        assert _raw(leaf) == _raw(wanted), jax.tree_util.keystr(path)


def _raw(leaf) -> tuple[str, tuple[int, ...], bytes]:
    dtype, shape = str(leaf.dtype), leaf.shape
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return dtype, shape, np.asarray(leaf).tobytes()
