"""Photometric distortions: brightness, contrast, saturation and hue, drawn at random.

GoogLeNet used those of Howard (2013) and gives no numbers. These operations, their ranges and
their two orders are those of the Inception code that its authors published.
"""

from dataclasses import dataclass

import numpy as np

from bnjax.scalars import number


@dataclass(frozen=True)
class Distortion:
    """The largest changes of colours; zeros change nothing.

    Brightness is added; the contrast's factor is on the difference to each channel's mean over the
    image; the saturation's is on that of the HSV model, in which the hue is turned. Values are cut
    to [0, 1] after each operation, and rounded once.
    """

    brightness: float = 32 / 255
    """Largest change, either way, as part of the full intensity."""
    contrast: float = 0.5
    """Factors are from 1 - this to 1 + this."""
    saturation: float = 0.5
    """Factors are from 1 - this to 1 + this."""
    hue: float = 0.2
    """Largest turn, either way, as part of the circle."""

    def __post_init__(self) -> None:
        for name, most in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0.5)):
            if not 0 <= number(name, getattr(self, name)) <= most:
                raise ValueError(f"{name} must be in [0, {most}], got {getattr(self, name)}.")

    def scaled(self, factor: float) -> "Distortion":
        """Returns all ranges times a factor."""
        return Distortion(
            factor * self.brightness,
            factor * self.contrast,
            factor * self.saturation,
            factor * self.hue,
        )


def distort(image: np.ndarray, distortion: Distortion, rng: np.random.Generator) -> np.ndarray:
    """Distorts colours, with changes drawn evenly from their ranges.

    The brightness comes first, then the contrast before or after saturation and hue, with
    probability 1/2 each. The
    generator is called five times, whatever the ranges are.

    Args:
        image: uint8 [height, width, 3].
        distortion: the ranges.
        rng: the generator.

    Returns:
        uint8 of the same shape.
    """
    contrast_first = rng.random() < 0.5
    added, contrast, saturation, turn = rng.uniform(-1, 1, 4) * (
        distortion.brightness,
        distortion.contrast,
        distortion.saturation,
        distortion.hue,
    )
    planes = np.empty((3, *image.shape[:2]), np.float32)
    np.multiply(np.moveaxis(image, -1, 0), np.float32(1 / 255), out=planes)
    if added:
        planes = add_brightness(planes, added)
    if contrast and contrast_first:
        planes = scale_contrast(planes, 1 + contrast)
    if saturation or turn:
        planes = turn_colours(planes, turn, 1 + saturation)
    if contrast and not contrast_first:
        planes = scale_contrast(planes, 1 + contrast)
    planes *= 255
    result = np.empty(image.shape, np.uint8)
    for channel, plane in enumerate(np.rint(planes, out=planes)):
        result[..., channel] = plane
    return result


def add_brightness(planes: np.ndarray, added: float) -> np.ndarray:
    """Adds to every value and cuts to [0, 1].

    Args:
        planes: float32 [3, height, width] in [0, 1], as for all three operations.
        added: part of the full intensity.
    """
    return np.clip(planes + np.float32(added), 0, 1)


def scale_contrast(planes: np.ndarray, factor: float) -> np.ndarray:
    """Scales the distance to each channel's mean and cuts to [0, 1]."""
    mean = planes.mean((1, 2), keepdims=True)
    scaled = planes * np.float32(factor)
    scaled += (1 - np.float32(factor)) * mean
    return np.clip(scaled, 0, 1, out=scaled)


def turn_colours(planes: np.ndarray, turn: float, factor: float) -> np.ndarray:
    """Turns the hue and scales the saturation in the HSV model; the value stays.

    Args:
        planes: float32 [3, height, width] in [0, 1].
        turn: part of the circle; red to green is a third.
        factor: on the saturation, which is cut to 1.
    """
    red, green, blue = planes
    value = np.maximum(np.maximum(red, green), blue)
    chroma = value - np.minimum(np.minimum(red, green), blue)
    # Where the hue is, in sixths of the circle: 0 is red, 2 green, 4 blue.
    is_red = value == red
    is_green = (value == green) & ~is_red
    is_blue = ~(is_red | is_green)
    hue = is_red * (green - blue) + is_green * (blue - red) + is_blue * (red - green)
    hue /= np.maximum(chroma, np.finfo(np.float32).tiny)  # gray has no hue: any will do
    hue += is_green * np.float32(2) + is_blue * np.float32(4)
    hue += np.float32(6 * turn)
    chroma *= np.float32(factor)
    np.minimum(chroma, value, out=chroma)
    turned = np.empty_like(planes)
    for channel, plane in enumerate(turned):
        # A channel is highest within a sixth of its own hue, lowest beyond two, on a slope between.
        away = hue - np.float32(2 * channel)
        away -= 6 * np.rint(away * np.float32(1 / 6))
        np.abs(away, out=away)
        away -= 1
        np.multiply(np.clip(away, 0, 1, out=away), chroma, out=plane)
        np.subtract(value, plane, out=plane)
    return turned
