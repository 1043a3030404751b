"""Files to decode: a folder's, or synthetic photos that cost a decoder what real ones do."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

ROUGHNESS = 1.2
"""Amplitude falls as this power of the spatial frequency; in photos it is about 1."""
SPREAD = 48.0
"""Standard deviation of the luminance, levels of 255."""
COLOUR = 0.35
"""Amplitude of what the colours do not share, over that of the luminance."""


def synthetic_photo(seed: int, *, width: int, height: int, quality: int) -> bytes:
    """A JPEG file of clouds with detail at every scale, the same for the same seed.

    Args:
        seed: of the picture.
        width: pixels.
        height: pixels.
        quality: of the JPEG; at 90 a file of 500 x 375 pixels has 85 to 100 kB, as ImageNet's.
    """
    rng = np.random.default_rng(seed)
    down, across = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    frequency = np.maximum(np.hypot(down, across), 1 / max(width, height))

    def clouds() -> np.ndarray:
        spectrum = np.fft.rfft2(rng.standard_normal((height, width))) / frequency**ROUGHNESS
        field = np.fft.irfft2(spectrum, s=(height, width))
        return field / field.std()

    shared = clouds()
    planes = np.stack([shared + COLOUR * clouds() for _ in range(3)], -1)
    pixels = np.clip(128 + SPREAD * planes, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


def read_folder(folder: Path, count: int) -> list[bytes]:
    """The first JPEG files below a folder, by name.

    Raises:
        ValueError: there are none.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[
        :count
    ]
    if not paths:
        raise ValueError(f"folder {folder} holds no .jpg or .jpeg file: give another.")
    return [path.read_bytes() for path in paths]
