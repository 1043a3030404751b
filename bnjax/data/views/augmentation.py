"""Views of an image: a random one in training, fixed ones in evaluation.

Host-side and pure: a view is a function of the image, the fields and the generator. Views are
uint8; `Augmentation` and the arguments hold every choice, each with where it comes from.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from bnjax.data.data_set import DataError, Image
from bnjax.data.views.crops import (
    AREA,
    ASPECT,
    ATTEMPTS,
    CENTRE,
    SCALES,
    Shape,
    Spacing,
    Window,
    central_window,
    five_windows,
    padded_rest,
    sample_window,
    scaled_size,
    squares,
    whole,
)
from bnjax.data.views.decoding import (
    MOST_PIXELS,
    DamagedImageError,
    Interpolation,
    Picture,
    open_image,
)
from bnjax.data.views.distortions import Distortion, distort
from bnjax.data.views.resizing import INTERPOLATIONS
from bnjax.scalars import check_choice, integer, number

__all__ = [
    "Augmentation",
    "DamagedImageError",
    "evaluation_view",
    "evaluation_views",
    "training_view",
]

Crop = Literal["inception", "pad", "none"]
Photometric = Literal["none", "reduced", "full"]
Crops = Literal[1, 10, 12, 144]
MOST_SIDE = math.isqrt(MOST_PIXELS)
"""Pixels of a view's side; images with more than its square are refused too."""


@dataclass(frozen=True)
class Augmentation:
    """The choices of a training view."""

    image_size: int = 224
    """Height and width of the views, pixels."""
    crop: Crop = "inception"
    """"inception": a part of the area, resized (Szegedy et al. 2014, section 6). "pad": `padding`
    black pixels around the image and a crop of the image's scale, usual for CIFAR (He et al. 2015,
    section 4.2). "none": the whole image, resized where it is of another size."""
    area: tuple[float, float] = AREA
    """Least and largest part of the image's area; for "inception"."""
    aspect: tuple[float, float] = ASPECT
    """Least and largest width over height; for "inception"."""
    aspect_spacing: Spacing = "uniform"
    """How the aspect ratio is drawn, for "inception"; the paper says "randomly"."""
    attempts: int = ATTEMPTS
    """Draws that may fail to fit into the image before the fall-back; for "inception"."""
    interpolation: Interpolation | Literal["random"] = "bilinear"
    """How a window is resized; "random": one of the four evenly, as late in GoogLeNet's training
    (Szegedy et al. 2014, section 6)."""
    padding: int = 4
    """Pixels on each side, for "pad"."""
    mirror: bool = True
    """Mirror a view from left to right, with probability 1/2."""
    photometric: Photometric = "full"
    """Strength of the distortions of colours; "reduced" is change 7 of Ioffe & Szegedy 2015,
    section 4.2.1, which gives no number."""
    distortion: Distortion = field(default_factory=Distortion)
    """Ranges that "full" means."""
    reduced: float = 0.5
    """Part of each range that "reduced" means; our choice."""

    def __post_init__(self) -> None:
        check_choice("crop", self.crop, Crop)
        check_choice("aspect_spacing", self.aspect_spacing, Spacing)
        check_choice("interpolation", self.interpolation, (*INTERPOLATIONS, "random"))
        check_choice("photometric", self.photometric, Photometric)
        _check_size(self.image_size)
        integer("attempts", self.attempts, least=1)
        integer("padding", self.padding, least=0)
        _check_range("area", self.area, most=1)
        _check_range("aspect", self.aspect)
        if not 0 <= number("reduced", self.reduced) <= 1:
            raise ValueError(f"reduced must be in [0, 1], got {self.reduced}.")

    @property
    def ranges(self) -> Distortion | None:
        """Ranges of the distortions that `photometric` means; None for none."""
        if self.photometric == "none":
            return None
        return self.distortion.scaled(1.0 if self.photometric == "full" else self.reduced)


def _check_range(name: str, value: Any, *, most: float = math.inf) -> None:
    """Raises ValueError unless it is two numbers, the lower one first."""
    try:
        low, high = (number(name, bound) for bound in value)
        valid = 0 < low <= high <= most and high < math.inf
    except (TypeError, ValueError):
        valid = False
    if not valid:
        above = f" <= {most}" if most < math.inf else ""
        raise ValueError(f"{name} must be two numbers, 0 < low <= high{above}; got {value!r}.")


def training_view(image: Image, rng: np.random.Generator, augmentation: Augmentation) -> np.ndarray:
    """Draws a random view of an image: crop, mirror, distortion of colours, in this order.

    Args:
        image: a JPEG or PNG file, or uint8 [height, width, 1 or 3].
        rng: a generator of this view alone: how often it is called depends on what it draws.
        augmentation: the choices; `partial(training_view, augmentation=...)` is what
            `training_batches` takes.

    Returns:
        uint8 [image_size, image_size, 3].

    Raises:
        DataError: the image cannot be decoded, or is smaller than a crop after padding.
        ValueError: the array is no image.
    """
    picture = open_image(image)
    if augmentation.crop == "inception":
        view = _inception_crop(picture, augmentation, rng)
    elif augmentation.crop == "pad":
        view = _padded_crop(picture, augmentation, rng)
    else:
        view = _whole(picture, augmentation.image_size, _draw_interpolation(augmentation, rng))
    if augmentation.mirror and rng.random() < 0.5:
        view = view[:, ::-1]
    ranges = augmentation.ranges
    return np.ascontiguousarray(view) if ranges is None else distort(view, ranges, rng)


def evaluation_view(
    image: Image,
    image_size: int,
    *,
    fraction: float = CENTRE,
    shape: Shape = "square",
) -> np.ndarray:
    """Returns the central crop of an image: the single crop of all published numbers.

    Args:
        image: a JPEG or PNG file, or uint8 [height, width, 1 or 3].
        image_size: height and width of the view, pixels.
        fraction: part of the side that stays; 1 for images that their subject fills, as CIFAR's.
        shape: "square" keeps that part of the shorter side, which is the crop of 224 pixels out of
            256 (Krizhevsky et al. 2012); "image" that of each side, and squeezes it, as the public
            Inception code does.

    Returns:
        uint8 [image_size, image_size, 3].

    Raises:
        DamagedImageError: the image cannot be decoded.
        ValueError: an argument is out of its range.
    """
    check_view(image_size, fraction)
    check_choice("shape", shape, Shape)
    picture = open_image(image)
    window = central_window(picture.width, picture.height, fraction=fraction, shape=shape)
    if window == whole(picture.width, picture.height):
        return _whole(picture, image_size, "bilinear")
    return picture.resized(window, (image_size, image_size))


def evaluation_views(
    image: Image, image_size: int, crops: Crops, *, fraction: float = CENTRE
) -> np.ndarray:
    """Returns the crops over which probabilities are averaged in evaluation.

    - 1: `evaluation_view`.
    - 10: the shorter side is resized to `image_size / fraction`; the corners and the centre of the
      central square, and their mirror images (Krizhevsky et al. 2012).
    - 12: those, and that square resized and its mirror image. Szegedy et al. 2016 evaluate over 12
      crops and do not say which; these are what the 144 have of one square.
    - 144: the shorter side is resized to 256, 288, 320 and 352 for views of 224, for others in
      proportion; of each the left, centre and right square (top, centre, bottom in portrait); of
      each the corners, the centre, and the square resized (Szegedy et al. 2014, section 7).

    Corners go upper left, upper right, lower left, lower right; each view's mirror image follows
    it.

    Args:
        image: a JPEG or PNG file, or uint8 [height, width, 1 or 3].
        image_size: height and width of the views, pixels.
        crops: how many.
        fraction: part of the shorter side that stays, for 1, 10 and 12 crops.

    Returns:
        uint8 [crops, image_size, image_size, 3].

    Raises:
        DataError: the image cannot be decoded, or is too long to be resized to a shorter side.
        ValueError: an argument is out of its range.
    """
    if crops == 1:
        return evaluation_view(image, image_size, fraction=fraction)[None]
    if crops not in (10, 12, 144):
        raise ValueError(f"crops must be 1, 10, 12 or 144, got {crops}.")
    check_view(image_size, fraction)
    pixels = open_image(image).pixels()
    if crops == 144:
        views = [*_googlenet(pixels, image_size)]
    else:
        views = [*_six(pixels, image_size, fraction)][: crops // 2]
    return np.stack([turned for view in views for turned in (view, view[:, ::-1])])


def _inception_crop(
    picture: Picture, augmentation: Augmentation, rng: np.random.Generator
) -> np.ndarray:
    window = sample_window(
        picture.width,
        picture.height,
        rng,
        area=augmentation.area,
        aspect=augmentation.aspect,
        spacing=augmentation.aspect_spacing,
        attempts=augmentation.attempts,
    )
    size = augmentation.image_size
    return picture.resized(window, (size, size), _draw_interpolation(augmentation, rng))


def _padded_crop(
    picture: Picture, augmentation: Augmentation, rng: np.random.Generator
) -> np.ndarray:
    size, padding = augmentation.image_size, augmentation.padding
    across, down = padded_rest(picture.width, picture.height, size, padding)
    top, left = (int(rng.integers(most + 1)) - padding for most in (down, across))
    bottom, right = max(top + size, 0), max(left + size, 0)
    part = picture.pixels()[max(top, 0) : bottom, max(left, 0) : right]
    view = np.zeros((size, size, 3), np.uint8)
    view[max(-top, 0) :, max(-left, 0) :][: part.shape[0], : part.shape[1]] = part
    return view


def _whole(picture: Picture, size: int, interpolation: Interpolation) -> np.ndarray:
    """Resizes the whole image, or keeps its pixels where it has the size."""
    if (picture.width, picture.height) == (size, size):
        return picture.pixels()
    window = whole(picture.width, picture.height)
    return picture.resized(window, (size, size), interpolation)


def _draw_interpolation(augmentation: Augmentation, rng: np.random.Generator) -> Interpolation:
    if augmentation.interpolation == "random":
        return INTERPOLATIONS[int(rng.integers(len(INTERPOLATIONS)))]
    return augmentation.interpolation


def _six(pixels: np.ndarray, size: int, fraction: float) -> Iterator[np.ndarray]:
    scaled = _resized_to(pixels, round(size / fraction))
    _, centre, _ = squares(scaled.width, scaled.height)
    yield from _of_square(scaled, centre, size)


def _googlenet(pixels: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for scale in SCALES:
        scaled = _resized_to(pixels, round(scale * size))
        for square in squares(scaled.width, scaled.height):
            yield from _of_square(scaled, square, size)


def _of_square(picture: Picture, square: Window, size: int) -> Iterator[np.ndarray]:
    """Corners and centre of a square, then the square resized."""
    for window in five_windows(square, size):
        yield _cut(picture, window)
    yield picture.resized(square, (size, size))


def _resized_to(pixels: np.ndarray, shorter: int) -> Picture:
    picture = open_image(pixels)
    size = scaled_size(picture.width, picture.height, shorter)
    if size[0] * size[1] > MOST_PIXELS:
        raise DataError(
            f"an image of {picture.width} x {picture.height} pixels has {size[0]} x {size[1]}, "
            f"more than {MOST_PIXELS} in all, when its shorter side has {shorter}."
        )
    return open_image(picture.resized(whole(picture.width, picture.height), size))


def _cut(picture: Picture, window: Window) -> np.ndarray:
    left, top, right, bottom = (int(edge) for edge in window.edges)
    return picture.pixels()[top:bottom, left:right]


def check_view(image_size: int, fraction: float) -> None:
    """Refuses, with a ValueError, what no evaluation can use."""
    _check_size(image_size)
    if not 0 < number("fraction", fraction) <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}.")


def _check_size(image_size: int) -> None:
    if not 1 <= integer("image_size", image_size) <= MOST_SIDE:
        raise ValueError(f"image_size must be in 1 .. {MOST_SIDE}, got {image_size}.")
