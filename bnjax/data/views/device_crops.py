"""Windows drawn and cut on the device: the distributions of `crops`, the pixels of `resizing`.

A window is an array [4], left, top, width and height, in pixels. All functions are for one image;
`jax.vmap` makes them for many.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

from bnjax.data.views.crops import AREA, ASPECT, Spacing, largest_window
from bnjax.data.views.resizing import Interpolation


def draw_window(
    uniforms: Array,
    width: int,
    height: int,
    *,
    area: tuple[float, float] = AREA,
    aspect: tuple[float, float] = ASPECT,
    spacing: Spacing = "uniform",
) -> Array:
    """Draws a window as `crops.sample_window` does: all attempts at once, the first that fits.

    Args:
        uniforms: float32 [1 + attempts, 2], drawn from [0, 1): place, then areas and ratios.
        width: of the image.
        height: of the image.
        area: least and largest part of the image's area.
        aspect: least and largest width over height.
        spacing: how the aspect ratio is drawn.

    Returns:
        int32 [4], within the image; `crops.largest_window` where no attempt fits.
    """
    targets = _between(uniforms[1:, 0], *area) * (width * height)
    if spacing == "uniform":
        ratios = _between(uniforms[1:, 1], *aspect)
    else:
        ratios = jnp.exp(_between(uniforms[1:, 1], math.log(aspect[0]), math.log(aspect[1])))
    across = jnp.maximum(1, jnp.round(jnp.sqrt(targets * ratios)).astype(jnp.int32))
    down = jnp.maximum(1, jnp.round(jnp.sqrt(targets / ratios)).astype(jnp.int32))
    fits = (across <= width) & (down <= height)
    first = jnp.argmax(fits)
    across, down = across[first], down[first]
    left = draw_below(uniforms[0, 0], width - across + 1)
    top = draw_below(uniforms[0, 1], height - down + 1)
    fallback = jnp.array(largest_window(width, height, aspect), jnp.int32)
    return jnp.where(fits[first], jnp.stack([left, top, across, down]), fallback)


def draw_below(uniform: Array, end: Array | int) -> Array:
    """Makes an int32 of 0 .. end - 1 from a number drawn from [0, 1)."""
    return jnp.floor(uniform * jnp.asarray(end, jnp.float32)).astype(jnp.int32)


def cut_padded(image: Array, window: Array, size: int, padding: int) -> Array:
    """Cuts size x size pixels out of an image with black ones around it.

    Args:
        image: uint8 [height, width, channels].
        window: int32 [4]; its left and top are from -padding on.
        size: pixels.
        padding: pixels on each side.

    Returns:
        uint8 [size, size, channels].
    """
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    left, top = window[0] + padding, window[1] + padding
    return jax.lax.dynamic_slice(
        padded, (top, left, jnp.zeros_like(top)), (size, size, image.shape[-1])
    )


def resize(image: Array, window: Array, size: int, interpolation: Interpolation) -> Array:
    """Resizes a window to size x size pixels, as Pillow does; pixels outside do not count.

    Pillow also rounds between columns and rows, and which come first depends on its version; here
    only the result is rounded. So pixels differ by one level of 255 at most, but where "bicubic"
    leaves 0 .. 255 between the two.

    Args:
        image: uint8 [height, width, channels].
        window: int32 or float32 [4], within the image.
        size: pixels.
        interpolation: how.

    Returns:
        uint8 [size, size, channels].
    """
    left, top, width, height = window
    columns = axis_weights(left, width, image.shape[1], size, interpolation)
    rows = axis_weights(top, height, image.shape[0], size, interpolation)
    pixels = image.astype(jnp.float32)
    pixels = jnp.einsum("yh,xw,hwc->yxc", rows, columns, pixels, precision="highest")
    return jnp.clip(jnp.floor(pixels + 0.5), 0, 255).astype(jnp.uint8)  # halves up, as Pillow


def axis_weights(
    start: Array, length: Array, side: int, size: int, interpolation: Interpolation
) -> Array:
    """Returns each input pixel's weight in each output pixel, along one axis: Pillow's filters.

    Args:
        start: of the window, int32 or float32, in pixels. Integers give exact distances, so that
            pixels on the edge of a filter are in or out everywhere alike.
        length: of the window, of the same dtype.
        side: of the image, pixels.
        size: of the output, pixels.
        interpolation: the filter.

    Returns:
        float32 [size, side]; rows sum to 1.
    """
    # Distances are counted in parts of which an input pixel has 2 * size and an output pixel
    # 2 * length. A filter is scaled to the longer of the two, `unit`, so that there are no aliases.
    places = jnp.arange(side, dtype=start.dtype)[None]
    centres = jnp.arange(size, dtype=start.dtype)[:, None]
    away = (2 * places + 1 - 2 * start) * size - (2 * centres + 1) * length
    pixel = jnp.full_like(length, size)
    unit = 2 * (pixel if interpolation == "nearest" else jnp.maximum(length, pixel))
    if interpolation == "bilinear":
        weights = jnp.maximum(unit - jnp.abs(away), 0).astype(jnp.float32)
    elif interpolation == "bicubic":
        weights = _cubic(away.astype(jnp.float32) / unit.astype(jnp.float32))
    else:
        weights = ((-unit < 2 * away) & (2 * away <= unit)).astype(jnp.float32)
    weights = jnp.where((places > start - 1) & (places < start + length), weights, 0)
    return weights / weights.sum(1, keepdims=True)


def _cubic(x: Array) -> Array:
    """Keys' cubic filter with a = -1/2."""
    x = jnp.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))


def _between(uniform: Array, low: float, high: float) -> Array:
    return low + (high - low) * uniform
