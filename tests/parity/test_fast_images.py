"""The extra fast-images against Pillow, which tests/data holds against float64: simplejpeg decodes
the same bits and finds the same files damaged; cykooz_resizer resizes the same within a level."""

import importlib.metadata
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from bnjax.data.views import decoding, resizing
from bnjax.data.views.crops import Window
from bnjax.data.views.decoding import DamagedImageError, open_image
from bnjax.evidence.environment import environment

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


def test_its_bits_do_not_depend_on_instructions(monkeypatch):
    class Plain(resizing.simd.Resizer):
        def __init__(self):
            super().__init__()
            self.cpu_extensions = resizing.simd.CpuExtensions.none

    picture, window = open_image(photo()), WINDOWS["fractions"]
    fast = picture.resized(window, (20, 24))
    monkeypatch.setattr(resizing.simd, "Resizer", Plain)
    np.testing.assert_array_equal(fast, picture.resized(window, (20, 24)))


def test_many_threads_may_resize():
    pictures = [open_image(np.roll(photo(), shift, axis=1)) for shift in range(16)]

    def view(picture):
        return picture.resized(WINDOWS["part"], (48, 48))

    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(view, pictures * 8))
    for got, picture in zip(together, pictures * 8, strict=True):
        np.testing.assert_array_equal(got, view(picture))


def encoded(kind="RGB", **options):
    file = io.BytesIO()
    Image.fromarray(photo()).convert(kind).save(file, "JPEG", quality=90, **options)
    return file.getvalue()


JPEGS = {
    "420": encoded(subsampling=2),
    "422": encoded(subsampling=1),
    "444": encoded(subsampling=0),
    "progressive": encoded(progressive=True),
    "restarts": encoded(restart_marker_blocks=3),
    "gray": encoded("L"),
    "cmyk": encoded("CMYK"),
}


def by_both(monkeypatch, function):
    """What it gives with simplejpeg and with Pillow alone."""
    given = function()
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "simplejpeg", None)
        return given, function()


@pytest.mark.parametrize("data", JPEGS.values(), ids=JPEGS)
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_decoded_pixels_are_pillows(monkeypatch, window, data):
    fast, slow = by_both(monkeypatch, lambda: open_image(data).resized(window, (64, 48), "area"))
    np.testing.assert_array_equal(fast, slow)


@pytest.mark.parametrize("data", JPEGS.values(), ids=JPEGS)
def test_whole_images_are_pillows(monkeypatch, data):
    np.testing.assert_array_equal(*by_both(monkeypatch, lambda: open_image(data).pixels()))


def test_it_is_what_decodes(monkeypatch):
    """A decoder that is never asked would pass the other tests."""
    asked = []

    class Spy:
        decode_jpeg_header = staticmethod(simplejpeg.decode_jpeg_header)

        @staticmethod
        def decode_jpeg(data, **options):
            asked.append(options)
            return simplejpeg.decode_jpeg(data, **options)

    monkeypatch.setattr(decoding, "simplejpeg", Spy)
    for window in (WINDOWS["part"], WINDOWS["whole"]):
        open_image(JPEGS["420"]).resized(window, (64, 48))
    assert asked == [{"strict": False}, {"strict": True}]


@pytest.mark.parametrize("kind", ["420", "progressive", "gray"])
@pytest.mark.parametrize("part", [0.6, 0.9, 0.99])
def test_a_file_cut_off_is_damaged_to_both(monkeypatch, kind, part):
    data = JPEGS[kind][: int(part * len(JPEGS[kind]))]

    def said():
        with pytest.raises(DamagedImageError) as refusal:
            open_image(data).resized(WINDOWS["part"], (20, 24))
        return str(refusal.value)

    fast, slow = by_both(monkeypatch, said)
    assert fast == slow


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("window", ["part", "whole"])
def test_flipped_bits_give_the_same_picture_or_the_same_refusal(monkeypatch, seed, window):
    rng = np.random.default_rng(seed)
    data = bytearray(JPEGS["420"])
    data[rng.integers(len(data) // 2, len(data) - 2)] ^= 1 << rng.integers(8)

    def outcome():
        try:
            return open_image(bytes(data)).resized(WINDOWS[window], (20, 24), "area").tolist()
        except DamagedImageError as error:
            return str(error)

    fast, slow = by_both(monkeypatch, outcome)
    assert fast == slow


@pytest.mark.parametrize("name", ["simplejpeg", "cykooz-resizer"])
def test_a_record_names_the_version(name):
    assert environment()["versions"][name] == importlib.metadata.version(name)
