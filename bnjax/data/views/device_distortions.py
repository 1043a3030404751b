"""Photometric distortions on the device: the distributions and operations of `distortions`.

All functions are for one image; `jax.vmap` makes them for many.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from bnjax.data.views.distortions import Distortion


class Changes(NamedTuple):
    """What was drawn for one image; scalars.

    Attributes:
        contrast_first: bool; the contrast before saturation and hue, or after.
        added: float32, to the brightness, part of the full intensity.
        contrast: float32, factor.
        saturation: float32, factor.
        turn: float32, of the hue, part of the circle.
    """

    contrast_first: Array
    added: Array
    contrast: Array
    saturation: Array
    turn: Array


def draw_changes(uniforms: Array, distortion: Distortion) -> Changes:
    """Draws changes evenly from their ranges, and one of both orders.

    Args:
        uniforms: float32 [5], drawn from [0, 1): the order, then the changes.
        distortion: the ranges.
    """
    brightness, contrast, saturation, turn = 2 * uniforms[1:] - 1
    return Changes(
        contrast_first=uniforms[0] < 0.5,
        added=brightness * distortion.brightness,
        contrast=1 + contrast * distortion.contrast,
        saturation=1 + saturation * distortion.saturation,
        turn=turn * distortion.hue,
    )


def distort(image: Array, changes: Changes) -> Array:
    """Distorts colours.

    Args:
        image: uint8 [height, width, 3].
        changes: what to do.

    Returns:
        uint8 of the same shape.
    """
    pixels = image.astype(jnp.float32) * (1 / 255)
    pixels = jnp.clip(pixels + changes.added, 0, 1)
    # A factor of 1 changes nothing: one of both places of the contrast has it.
    pixels = _scale_contrast(pixels, jnp.where(changes.contrast_first, changes.contrast, 1))
    pixels = _turn_colours(pixels, changes.turn, changes.saturation)
    pixels = _scale_contrast(pixels, jnp.where(changes.contrast_first, 1, changes.contrast))
    return jnp.round(pixels * 255).astype(jnp.uint8)


def _scale_contrast(pixels: Array, factor: Array) -> Array:
    """Scales the distance to each channel's mean and cuts to [0, 1]; float32 [h, w, 3]."""
    mean = pixels.mean((0, 1), keepdims=True)
    return jnp.clip(pixels * factor + (1 - factor) * mean, 0, 1)


def _turn_colours(pixels: Array, turn: Array, factor: Array) -> Array:
    """Turns the hue and scales the saturation in the HSV model; float32 [h, w, 3]."""
    red, green, blue = (pixels[..., channel] for channel in range(3))
    value = pixels.max(-1)
    chroma = value - pixels.min(-1)
    # Where the hue is, in sixths of the circle: 0 is red, 2 green, 4 blue. Gray has none.
    divisor = jnp.maximum(chroma, jnp.finfo(jnp.float32).tiny)
    # Compilers may compute a channel twice, rounded otherwise: so none is asked if it is `value`.
    hue = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) / divisor,
        jnp.where(green >= blue, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    hue += 6 * turn
    chroma = jnp.minimum(chroma * factor, value)

    def turned(channel: int) -> Array:
        # It is highest within a sixth of its own hue, lowest beyond two, on a slope between.
        away = hue - 2 * channel
        away = jnp.abs(away - 6 * jnp.round(away * (1 / 6)))
        return value - chroma * jnp.clip(away - 1, 0, 1)

    return jnp.stack([turned(channel) for channel in range(3)], axis=-1)
