"""Pixels to network inputs: pure functions, applied on the device."""

import jax
import jax.numpy as jnp


def binarize(images: jax.Array, threshold: float) -> jax.Array:
    """Makes binary images, as in the MNIST experiment of the 2015 paper.

    Args:
        images: uint8, any shape.
        threshold: fraction of the full intensity, in [0, 1), above which a pixel is one.

    Returns:
        float32 zeros and ones of the same shape.

    Raises:
        ValueError: for another dtype, or a threshold outside [0, 1).
    """
    if images.dtype != jnp.uint8:
        raise ValueError(f"images must be uint8, got {images.dtype}.")
    if not 0 <= threshold < 1:
        raise ValueError(
            f"threshold must be in [0, 1), got {threshold}: it is a fraction of the intensity 255."
        )
    return (images > jnp.uint8(int(threshold * 255))).astype(jnp.float32)


def to_unit_range(images: jax.Array) -> jax.Array:
    """Scales pixels as the released Inception code does: 0 to 255 become -1 to 1.

    Args:
        images: uint8, any shape.

    Returns:
        float32 of the same shape.

    Raises:
        ValueError: for another dtype.
    """
    if images.dtype != jnp.uint8:
        raise ValueError(f"images must be uint8, got {images.dtype}.")
    return images.astype(jnp.float32) / 127.5 - 1
