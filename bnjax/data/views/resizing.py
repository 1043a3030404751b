"""Resizing a part of an image: by Pillow, or "bilinear" by cykooz_resizer where it is installed.

Both compute in integers. The second does it with SIMD instructions, faster and with the same bits
as without them; its pixels differ from Pillow's by rounding, one level of 255 at most. So a run's
record names its version.
"""

import math
from typing import Literal, get_args

import numpy as np

from bnjax.extras import extra

with extra("data"):
    from PIL import Image as Pillow

try:
    import cykooz_resizer as simd
except ImportError:
    simd = None

Interpolation = Literal["bilinear", "area", "nearest", "bicubic"]
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)
"""Rules of resizing. All but "nearest" average over the pixels that an output pixel covers."""

Pixels = Pillow.Image | np.ndarray
"""An image of mode "RGB", or uint8 [height, width, 3]."""

Edges = tuple[float, float, float, float]
"""Left, top, right and bottom, pixels."""

_FILTERS = {
    "bilinear": Pillow.Resampling.BILINEAR,
    "area": Pillow.Resampling.BOX,
    "nearest": Pillow.Resampling.NEAREST,
    "bicubic": Pillow.Resampling.BICUBIC,
}


def resize(
    pixels: Pixels, edges: Edges, size: tuple[int, int], interpolation: Interpolation
) -> np.ndarray:
    """Resizes the part between edges; pixels outside do not count.

    Pixel centres are at halves, and the filter's support grows with the scale: Pillow's rule, by
    which a smaller image has no aliases.

    Args:
        pixels: RGB.
        edges: within the image; a fraction of a pixel outside is cut.
        size: (width, height) of the result.
        interpolation: how.

    Returns:
        uint8 [size[1], size[0], 3].
    """
    part, box = _cut(pixels, edges)
    if simd is not None and interpolation == "bilinear":
        return _bilinear_by_simd(part, box, size)
    image = Pillow.fromarray(part) if isinstance(part, np.ndarray) else part
    return np.asarray(image.resize(size, _FILTERS[interpolation], box=box))


def _cut(pixels: Pixels, edges: Edges) -> tuple[Pixels, Edges]:
    """Returns the pixels that the edges touch, and the edges within these."""
    left, top, right, bottom = edges
    x, y = int(left), int(top)
    width, height = _size(pixels)
    hull = (x, y, min(math.ceil(right), width), min(math.ceil(bottom), height))
    box = (left - x, top - y, min(right, hull[2]) - x, min(bottom, hull[3]) - y)
    if isinstance(pixels, np.ndarray):
        return pixels[y : hull[3], x : hull[2]], box
    return pixels.crop(hull), box


def _size(pixels: Pixels) -> tuple[int, int]:
    if isinstance(pixels, np.ndarray):
        return pixels.shape[1], pixels.shape[0]
    return pixels.size


def _bilinear_by_simd(pixels: Pixels, box: Edges, size: tuple[int, int]) -> np.ndarray:
    left, top, right, bottom = box
    options = simd.ResizeOptions(
        simd.ResizeAlg.convolution(simd.FilterType.bilinear),
        crop_box=simd.CropBox(left, top, right - left, bottom - top),
    )
    source = simd.ImageData(*_size(pixels), simd.PixelType.U8x3, pixels.tobytes())
    result = simd.ImageData(*size, simd.PixelType.U8x3)
    simd.Resizer().resize(source, result, options)  # a new one: threads cannot share it
    return np.frombuffer(result.get_buffer(), np.uint8).reshape(size[1], size[0], 3)
