"""Decodes images to uint8 RGB, and no more of them than a window needs.

Of a JPEG file, the rows down to the window's end are decoded, by Pillow or, where it is installed
and the file has no faults, by simplejpeg: faster, the same bits. Or all of it at a half, a quarter
or an eighth of the size, by Pillow, where the window stays as large as what is asked for.

- Colours: grayscale is repeated, CMYK, YCCK and palettes are converted, an alpha channel is
  dropped and the colours under it are kept, as in TensorFlow and torchvision.
- The orientation that EXIF data gives is not applied, as in TensorFlow, Caffe and torchvision:
  ImageNet's published numbers are of pixels as stored.

Damage that is found: a file that is cut off, a header that cannot be read, whatever a checksum of
PNG tells, and its missing rows. Damage inside a JPEG is not: the format has no checksum, any bits
decode to some pixels. Of 1,000 files with eight zeroed bytes, a flipped bit, a lost byte or four
random ones inside, all decoded wrong, 5 stopped the decoder and 2 made libjpeg warn of anything
but bytes left over before the end, of which it also warns in sound files. So its warnings are no
verdict, and such an image is taken for whole, everywhere alike. Records of array_record have
checksums of their own.
"""

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnjax.data.data_set import DataError, Image
from bnjax.data.views.crops import Window
from bnjax.data.views.jpeg import keep_rows
from bnjax.data.views.png import check_rows
from bnjax.data.views.resizing import Interpolation, Pixels, resize
from bnjax.extras import extra

with extra("data"):
    from PIL import Image as Pillow
    from PIL.ImageFile import ImageFile
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

MOST_PIXELS = 1 << 26
"""Images with more are refused: a file of a few bytes can claim any size. ImageNet's largest has
below a third of it."""

_JPEG = b"\xff\xd8"
_COLOURS = ("Gray", "YCbCr", "RGB")  # CMYK becomes RGB in ways that differ
_FORMATS = {_JPEG: JpegImageFile, b"\x89P": PngImageFile}


class DamagedImageError(DataError):
    """An image cannot be decoded; the message says why. The caller adds the record's name."""


@dataclass(frozen=True)
class Picture:
    """An image of which the header is read.

    Attributes:
        image: what it was made from.
        width: pixels.
        height: pixels.
    """

    image: Image
    width: int
    height: int

    def pixels(self) -> np.ndarray:
        """Decodes the whole image to uint8 [height, width, 3].

        Raises:
            DamagedImageError: the file is cut off, or damaged where that can be known.
        """
        if isinstance(self.image, bytes):
            return np.array(_decode_rows(self.image, self.height))
        return np.repeat(self.image, 3 // self.image.shape[-1], axis=-1)

    def resized(
        self, window: Window, size: tuple[int, int], interpolation: Interpolation = "bilinear"
    ) -> np.ndarray:
        """Decodes and resizes a window of the image.

        Without aliases, as `resize` does, and pixels outside the window do not count.

        Args:
            window: within the image; a fraction of a pixel may be cut.
            size: (width, height) of the result.
            interpolation: how.

        Returns:
            uint8 [size[1], size[0], 3].

        Raises:
            DamagedImageError: the file is cut off, or damaged where that can be known.
        """
        pixels, scale = _decode_window(self, window, None if interpolation == "nearest" else size)
        left, top, right, bottom = (edge / scale for edge in window.edges)
        return resize(pixels, (left, top, right, bottom), size, interpolation)


def open_image(image: Image) -> Picture:
    """Reads an image's size and refuses what cannot be an image.

    Raises:
        DamagedImageError: the bytes are no JPEG or PNG file, the header is damaged, or the image
            has more than `MOST_PIXELS`.
        ValueError: an array is not uint8 [height, width, 1 or 3], or is empty.
    """
    if isinstance(image, bytes):
        return Picture(image, *_open(image).size)
    if not isinstance(image, np.ndarray):
        raise ValueError(f"image must be bytes or a NumPy array, got {type(image).__name__}.")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(
            f"image must be uint8 [height, width, 1 or 3], got {image.dtype} {list(image.shape)}."
        )
    if not image.size:
        raise ValueError(f"image has no pixels: its shape is {list(image.shape)}.")
    return Picture(image, image.shape[1], image.shape[0])


def decode_image(image: Image) -> np.ndarray:
    """Decodes a whole image, of whatever size it turns out to be.

    Returns:
        uint8 [height, width, 3], which may not be writable.

    Raises:
        DamagedImageError, ValueError: as `open_image` and `Picture.pixels`.
    """
    if not isinstance(image, bytes):
        return open_image(image).pixels()
    return np.asarray(_decode_rows(image, MOST_PIXELS))


def _decode_window(
    picture: Picture, window: Window, least: tuple[int, int] | None
) -> tuple[Pixels, float]:
    """Decodes the part with the window; returns it with the image's pixels over its own."""
    if not isinstance(picture.image, bytes):
        return picture.pixels(), 1.0
    factor = min(window.width // least[0], window.height // least[1]) if least else 1
    if factor < 2 or not picture.image.startswith(_JPEG):
        return _decode_rows(picture.image, math.ceil(window.edges[3])), 1.0
    file = _open(picture.image)
    drafted = file.draft(None, (int(picture.width // factor), int(picture.height // factor)))
    return _rgb(file), picture.width / drafted[1][2] if drafted else 1.0


def _decode_rows(data: bytes, rows: int) -> Pixels:
    """Decodes at least so many rows. A JPEG file that simplejpeg refuses is left to Pillow."""
    kept = keep_rows(data, rows)
    if simplejpeg is None or not data.startswith(_JPEG):
        return _decode(kept)
    try:
        if simplejpeg.decode_jpeg_header(kept)[2] in _COLOURS:
            return simplejpeg.decode_jpeg(kept, strict=kept is data)  # else it wants the cut rows
    except ValueError:
        pass
    return _decode(kept)


def _decode(data: bytes) -> Pillow.Image:
    return _rgb(_open(data))


def _rgb(file: ImageFile) -> Pillow.Image:
    """Decodes; any error of a plug-in of Pillow means that the file is damaged."""
    try:
        stream: Any = file.fp  # which Pillow forgets
        file.load()
        if isinstance(file, PngImageFile):
            check_rows(stream.getvalue())
        if file.mode.startswith("I"):  # 16 bits: Pillow's own conversion cuts at 255
            gray = (np.asarray(file) >> 8).astype(np.uint8)
            return Pillow.fromarray(gray).convert("RGB")
        return file if file.mode == "RGB" else file.convert("RGB")
    except MemoryError:
        raise
    except DataError as error:
        raise DamagedImageError(str(error)) from error
    except Exception as error:
        raise _damaged(error) from error


def _damaged(error: Exception) -> DamagedImageError:
    return DamagedImageError(f"{type(error).__name__}: {error}")


def _open(data: bytes) -> ImageFile:
    """Reads the header by the format's own class: `Image.open` would warn of sizes refused here."""
    kind = _FORMATS.get(data[:2])
    if kind is None:
        raise DamagedImageError(
            f"neither a JPEG nor a PNG file: {len(data)} bytes that begin with {data[:8]!r}"
        )
    try:
        file = kind(io.BytesIO(data))
    except Exception as error:
        raise _damaged(error) from error
    file.decodermaxblock = len(data)  # read at once, not in pieces that are joined again
    if file.width * file.height > MOST_PIXELS:
        raise DamagedImageError(
            f"{file.width} x {file.height} pixels, more than {MOST_PIXELS} in all, "
            f"in {len(data)} bytes"
        )
    return file
