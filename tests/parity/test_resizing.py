"""cykooz_resizer resizes as Pillow does, which tests/data holds against float64."""

import importlib.metadata
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from bnjax.data import resizing
from bnjax.data.crops import Window
from bnjax.data.decoding import open_image
from bnjax.evidence.records import environment

pytest.importorskip("cykooz_resizer", reason="no wheels for Linux on ARM")
pytestmark = pytest.mark.parity

WINDOWS = {
    "whole": Window(0, 0, 90, 70),
    "part": Window(11, 7, 60, 45),
    "fractions": Window(2.25, 3.5, 80.5, 61.75),
    "enlarged": Window(50, 40, 10, 8),
    "pixel": Window(89, 69, 1, 1),
}


def photo():
    """Smooth, with detail in each channel."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (9, 11, 3), np.uint8)).resize((90, 70))
    return np.clip(np.asarray(smooth) + rng.normal(0, 12, (70, 90, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("size", [(20, 24), (120, 100), (1, 1)])
def test_pixels_are_pillows_within_one_level(monkeypatch, window, size):
    picture = open_image(photo())
    fast = picture.resized(window, size).astype(int)
    monkeypatch.setattr(resizing, "simd", None)
    slow = picture.resized(window, size)
    np.testing.assert_allclose(fast, slow, rtol=0, atol=1)


def test_it_is_what_resizes(monkeypatch):
    """Rounding tells the two apart."""
    picture, window = open_image(photo()), WINDOWS["fractions"]
    fast = picture.resized(window, (20, 24))
    monkeypatch.setattr(resizing, "simd", None)
    assert (fast != picture.resized(window, (20, 24))).any()


def test_many_threads_may_resize():
    pictures = [open_image(np.roll(photo(), shift, axis=1)) for shift in range(16)]

    def view(picture):
        return picture.resized(WINDOWS["part"], (48, 48))

    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(view, pictures * 8))
    for got, picture in zip(together, pictures * 8, strict=True):
        np.testing.assert_array_equal(got, view(picture))


def test_a_record_names_its_version():
    version = importlib.metadata.version("cykooz-resizer")
    assert environment()["versions"]["cykooz-resizer"] == version
