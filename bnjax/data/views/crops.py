"""Windows to cut out of an image: drawn at random for training, fixed for evaluation.

Coordinates are in pixels from the upper left corner; a pixel is a square of side one.
"""

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from bnjax.data.data_set import DataError

Spacing = Literal["uniform", "log_uniform"]
Shape = Literal["square", "image"]
AREA = (0.08, 1.0)
"""Part of the image's area that a training crop covers (Szegedy et al. 2014, section 6)."""
ASPECT = (3 / 4, 4 / 3)
"""Width over height of a training crop (Szegedy et al. 2014, section 6)."""
ATTEMPTS = 100
"""Draws after which `sample_window` falls back; TensorFlow's number. Of an image of 4:3 a draw
fits in three of four cases, so that one in 1e60 crops is a fall-back."""
CENTRE = 224 / 256
"""Side of the central crop over the image's: 224 of 256 pixels (Krizhevsky et al. 2012); the 87.5 %
of the public Inception code are the same number."""
SCALES = (256 / 224, 288 / 224, 320 / 224, 352 / 224)
"""Shorter sides over the crop's side, in GoogLeNet's 144 crops (Szegedy et al. 2014, section 7)."""


class Window(NamedTuple):
    """A rectangle in an image, pixels."""

    left: float
    top: float
    width: float
    height: float

    @property
    def edges(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom."""
        return self.left, self.top, self.left + self.width, self.top + self.height


def sample_window(
    width: int,
    height: int,
    rng: np.random.Generator,
    *,
    area: tuple[float, float] = AREA,
    aspect: tuple[float, float] = ASPECT,
    spacing: Spacing = "uniform",
    attempts: int = ATTEMPTS,
) -> Window:
    """Draws a training crop as in GoogLeNet: a part of the area, an aspect ratio, then a place.

    Area and aspect ratio are drawn together, again and again until the window fits, then the place
    evenly. Large areas fit with fewer aspect ratios, so of an image that is not square they are
    drawn less often than small ones. Where no draw fits, the window is the largest in the middle of
    the image whose aspect ratio is allowed.

    Args:
        width: of the image.
        height: of the image.
        rng: the generator; how often it is called varies.
        area: least and largest part of the image's area, uniform between them.
        aspect: least and largest width over height.
        spacing: how the aspect ratio is drawn: "uniform" is the plain reading of the paper and
            TensorFlow's; "log_uniform" makes portrait and landscape equally likely, as
            torchvision does.
        attempts: draws before the fall-back.

    Returns:
        Whole pixels, at least one each way.
    """
    low, high = aspect if spacing == "uniform" else (math.log(aspect[0]), math.log(aspect[1]))
    for _ in range(attempts):
        target = rng.uniform(*area) * width * height
        ratio = rng.uniform(low, high)
        if spacing == "log_uniform":
            ratio = math.exp(ratio)
        across = max(1, round(math.sqrt(target * ratio)))
        down = max(1, round(math.sqrt(target / ratio)))
        if across <= width and down <= height:
            left = int(rng.integers(width - across + 1))
            return Window(left, int(rng.integers(height - down + 1)), across, down)
    return largest_window(width, height, aspect)


def largest_window(width: int, height: int, aspect: tuple[float, float]) -> Window:
    """Returns the largest window in the middle whose width over height is allowed."""
    ratio = min(max(width / height, aspect[0]), aspect[1])
    across = min(width, max(1, round(height * ratio)))
    down = min(height, max(1, round(width / ratio)))
    return Window((width - across) // 2, (height - down) // 2, across, down)


def padded_rest(width: int, height: int, size: int, padding: int) -> tuple[int, int]:
    """Returns how far a crop can move to the right and down in an image with padding, pixels.

    Raises:
        DataError: the crop is larger.
    """
    rest = width + 2 * padding - size, height + 2 * padding - size
    if min(rest) < 0:
        raise DataError(
            f"an image of {width} x {height} pixels with padding={padding} is smaller than "
            f"image_size={size}: choose crop='inception', a smaller image_size or more padding."
        )
    return rest


def whole(width: int, height: int) -> Window:
    """Returns the window that is the whole image."""
    return Window(0, 0, width, height)


def central_window(width: int, height: int, *, fraction: float = CENTRE, shape: Shape) -> Window:
    """Returns the middle of an image.

    Args:
        width: of the image.
        height: of the image.
        fraction: part of the side that stays.
        shape: "square": of the shorter side; that is what resizing the shorter side to 256 and
            cutting 224 x 224 out of the middle keeps. "image": of each side, and the result will be
            squeezed into a square: the public Inception code.
    """
    across, down = fraction * width, fraction * height
    if shape == "square":
        across = down = min(across, down)
    return Window((width - across) / 2, (height - down) / 2, across, down)


def scaled_size(width: int, height: int, shorter: int) -> tuple[int, int]:
    """Returns the size of an image that is resized to a shorter side, its aspect ratio kept."""
    least = min(width, height)
    return round(width * shorter / least), round(height * shorter / least)


def squares(width: int, height: int) -> tuple[Window, Window, Window]:
    """Returns the left, centre and right square of an image; in portrait top, centre and bottom."""
    side = min(width, height)
    lefts = (0, (width - side) // 2, width - side)
    tops = (0, (height - side) // 2, height - side)
    first, middle, last = (
        Window(left, top, side, side) for left, top in zip(lefts, tops, strict=True)
    )
    return first, middle, last


def five_windows(square: Window, size: int) -> Iterator[Window]:
    """Yields the corners of a square, upper left and right before lower, then its centre.

    Args:
        square: in whole pixels.
        size: side of each window, at most that of the square.
    """
    rest = int(square.width) - size
    for right, down in ((0, 0), (rest, 0), (0, rest), (rest, rest), (rest // 2, rest // 2)):
        yield Window(square.left + right, square.top + down, size, size)
