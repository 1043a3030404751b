"""Photometric distortions: brightness, contrast, saturation and hue, drawn at random.

GoogLeNet used those of Howard (2013) and gives no numbers. These operations, their ranges and
their two orders are those of the Inception code that its authors published.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Distortion:
    """How far colours are moved; zeros move nothing.

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
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be in [0, {most}], got {getattr(self, name)}.")

    def scaled(self, factor: float) -> "Distortion":
        """All ranges times a factor."""
        return Distortion(
            factor * self.brightness,
            factor * self.contrast,
            factor * self.saturation,
            factor * self.hue,
        )


def distort(image: np.ndarray, distortion: Distortion, rng: np.random.Generator) -> np.ndarray:
    """A photometric distortion drawn evenly from its ranges.

    The brightness first, then contrast before or after saturation and hue, as a coin falls. The
    generator is called five times, whatever the ranges are.

    Args:
        image: uint8 [height, width, 3].
        distortion: the ranges.
        rng: what draws.

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
    planes = np.moveaxis(image, -1, 0).astype(np.float32, order="C")
    planes *= np.float32(1 / 255)
    if added:
        planes = add_brightness(planes, added)
    if contrast and contrast_first:
        planes = scale_contrast(planes, 1 + contrast)
    if saturation or turn:
        planes = turn_colours(planes, turn, 1 + saturation)
    if contrast and not contrast_first:
        planes = scale_contrast(planes, 1 + contrast)
    planes *= 255
    return np.ascontiguousarray(np.moveaxis(np.rint(planes).astype(np.uint8), 0, -1))


def add_brightness(planes: np.ndarray, added: float) -> np.ndarray:
    """Adds to every value and cuts to [0, 1].

    Args:
        planes: float32 [3, height, width] in [0, 1], as for all three operations.
        added: part of the full intensity.
    """
    return np.clip(planes + np.float32(added), 0, 1)


def scale_contrast(planes: np.ndarray, factor: float) -> np.ndarray:
    """Scales the distance to each channel's mean and cuts to [0, 1]."""
    mean = planes.mean((1, 2), keepdims=True, dtype=np.float64).astype(np.float32)
    return np.clip((planes - mean) * np.float32(factor) + mean, 0, 1)


def turn_colours(planes: np.ndarray, turn: float, factor: float) -> np.ndarray:
    """Turns the hue and scales the saturation in the HSV model; the value stays.

    Args:
        planes: float32 [3, height, width] in [0, 1].
        turn: part of the circle; red to green is a third.
        factor: on the saturation, which is cut to 1.
    """
    red, green, blue = planes
    value = planes.max(0)
    chroma = value - planes.min(0)
    safe = np.where(chroma > 0, chroma, np.float32(1))  # gray has no hue: any will do
    is_red, is_green = value == red, value == green
    difference = np.where(is_red, green - blue, np.where(is_green, blue - red, red - green))
    sector = np.where(is_red, np.float32(0), np.where(is_green, np.float32(2), np.float32(4)))
    hue = difference / safe + sector + np.float32(6 * turn)  # sixths of the circle
    chroma = np.minimum(chroma * np.float32(factor), value)
    turned = np.empty_like(planes)
    for plane, corner in zip(turned, (5, 3, 1), strict=True):
        # A channel is at the value in two sixths, at its lowest in two, on a slope in the others.
        away = np.mod(hue + np.float32(corner), np.float32(6))
        np.subtract(value, chroma * np.clip(np.minimum(away, 4 - away), 0, 1), out=plane)
    return turned
