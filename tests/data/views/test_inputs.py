"""Pixels to inputs, binary or from -1 to 1."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnjax.data.views.inputs import binarize, to_unit_range


@pytest.mark.parametrize(
    ("threshold", "last_zero"),
    [(0.5, 127), (0.0, 0), (0.25, 63), (0.999, 254)],
)
def test_a_pixel_is_one_above_the_threshold(threshold, last_zero):
    """All 256 intensities. Red for >= in the place of >, and for a scale of 256."""
    pixels = np.arange(256, dtype=np.uint8)
    binary = binarize(jnp.asarray(pixels), threshold)
    assert binary.dtype == jnp.float32
    np.testing.assert_array_equal(binary, (pixels > last_zero).astype(np.float32))


def test_shape_is_kept_under_jit():
    images = jnp.full((2, 3, 4, 1), 128, jnp.uint8)
    binary = jax.jit(binarize, static_argnums=1)(images, 0.5)
    np.testing.assert_array_equal(binary, np.ones((2, 3, 4, 1)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int32, jnp.bool_])
@pytest.mark.parametrize("convert", [partial(binarize, threshold=0.5), to_unit_range])
def test_other_dtypes_are_refused(convert, dtype):
    """Images already in [0, 1] would all become zero, or nearly -1."""
    with pytest.raises(ValueError, match=f"images must be uint8, got {jnp.dtype(dtype)}"):
        convert(jnp.zeros((2, 2), dtype))


def test_all_intensities_lie_evenly_from_minus_one_to_one():
    unit = to_unit_range(jnp.arange(256, dtype=jnp.uint8))
    assert unit.dtype == jnp.float32
    np.testing.assert_allclose(unit, np.linspace(-1, 1, 256), rtol=0, atol=1e-6)


@pytest.mark.parametrize("threshold", [-0.1, 1.0, 127, float("nan")])
def test_a_threshold_outside_its_range_is_refused(threshold):
    with pytest.raises(ValueError, match=rf"threshold must be in \[0, 1\), got {threshold}"):
        binarize(jnp.zeros((2, 2), jnp.uint8), threshold)
