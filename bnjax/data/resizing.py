"""A part of an image resized: by Pillow, and "bilinear" by cykooz_resizer where it is installed.

Both compute in integers. The second does it with SIMD instructions, several times faster, and
gives the same bits on every processor; its pixels differ from Pillow's by rounding, one level of
255 at most. So a run's record names its version.
"""

from typing import Literal

import numpy as np
from PIL import Image as Pillow

try:
    import cykooz_resizer as simd
except ImportError:
    simd = None

Interpolation = Literal["bilinear", "area", "nearest", "bicubic"]
"""How an image is resized. All but "nearest" average over what an output pixel covers."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge, pixels."""

_FILTERS = {
    "bilinear": Pillow.Resampling.BILINEAR,
    "area": Pillow.Resampling.BOX,
    "nearest": Pillow.Resampling.NEAREST,
    "bicubic": Pillow.Resampling.BICUBIC,
}


def resize(
    image: Pillow.Image, box: Box, size: tuple[int, int], interpolation: Interpolation
) -> np.ndarray:
    """A box of an RGB image at another size.

    Pixel centres are at halves, and the filter's support grows with the scale: Pillow's rule, by
    which a smaller image has no aliases. Pixels outside the box count where the support reaches
    them.

    Args:
        image: mode "RGB".
        box: within the image.
        size: (width, height) of the result.
        interpolation: how.

    Returns:
        uint8 [size[1], size[0], 3].
    """
    if simd is not None and interpolation == "bilinear":
        return _bilinear_by_simd(image, box, size)
    return np.asarray(image.resize(size, _FILTERS[interpolation], box=box))


def _bilinear_by_simd(image: Pillow.Image, box: Box, size: tuple[int, int]) -> np.ndarray:
    left, top, right, bottom = box
    options = simd.ResizeOptions(
        simd.ResizeAlg.convolution(simd.FilterType.bilinear),
        crop_box=simd.CropBox(left, top, right - left, bottom - top),
    )
    source = simd.ImageData(*image.size, simd.PixelType.U8x3, image.tobytes())
    result = simd.ImageData(*size, simd.PixelType.U8x3)
    simd.Resizer().resize(source, result, options)  # a new one: threads cannot share it
    return np.frombuffer(result.get_buffer(), np.uint8).reshape(size[1], size[0], 3)
