"""Views: made of crop, mirror and distortion, each by itself against plain NumPy."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from made_images import encode, picture
from PIL import Image

from bnjax.data import DataError
from bnjax.data.views import resizing
from bnjax.data.views.augmentation import (
    Augmentation,
    DamagedImageError,
    evaluation_view,
    evaluation_views,
    training_view,
)
from bnjax.data.views.crops import Window, sample_window
from bnjax.data.views.decoding import open_image
from bnjax.data.views.distortions import Distortion, distort

PHOTO = picture(0, 60, 80)
PLAIN = {"mirror": False, "photometric": "none"}


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("photometric", "factor"), [("full", 1.0), ("reduced", 0.5)])
def test_a_view_is_crop_then_mirror_then_distortion(seed, photometric, factor):
    draws = rng(seed)
    window = sample_window(80, 60, draws)
    expected = open_image(PHOTO).resized(window, (16, 16))
    expected = expected[:, ::-1] if draws.random() < 0.5 else expected
    expected = distort(expected, Distortion().scaled(factor), draws)
    got = training_view(PHOTO, rng(seed), Augmentation(image_size=16, photometric=photometric))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("photometric", ["full", "reduced"])
def test_distortions_of_no_range_leave_the_colours(photometric):
    """Red where a view has the ranges of `Distortion()`, whatever is given."""
    choices = Augmentation(
        image_size=60,
        crop="none",
        mirror=False,
        photometric=photometric,
        distortion=Distortion(0, 0, 0, 0),
    )
    view = training_view(PHOTO[:, :60], rng(), choices)
    np.testing.assert_array_equal(view, PHOTO[:, :60])


def test_both_mirror_images_occur_evenly():
    choices = Augmentation(image_size=60, crop="none", photometric="none")
    square = np.ascontiguousarray(PHOTO[:, :60])
    views = [training_view(square, rng(seed), choices) for seed in range(200)]
    mirrored = sum(np.array_equal(view, square[:, ::-1]) for view in views)
    assert sum(np.array_equal(view, square) for view in views) == 200 - mirrored
    assert abs(mirrored - 100) < 4.5 * np.sqrt(50)


@pytest.mark.parametrize(("size", "padding"), [(8, 2), (2, 3)])
def test_padded_crops_are_those_of_the_padded_image_and_all_occur(size, padding):
    """Also where some of them lie in the padding alone."""
    image = picture(3, 8, 8)
    choices = Augmentation(image_size=size, crop="pad", padding=padding, **PLAIN)
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    rest = 8 + 2 * padding - size
    places = [
        padded[top : top + size, left : left + size].tobytes()
        for top in range(rest + 1)
        for left in range(rest + 1)
    ]
    seen = {training_view(image, rng(seed), choices).tobytes() for seed in range(12 * len(places))}
    assert seen == set(places)


def test_a_crop_of_a_long_image_takes_no_more_memory_than_the_image():
    """One row, as large an image as is opened: padded, it would be nine times as large."""
    image = np.zeros((1, 2_000_000, 3), np.uint8)
    choices = Augmentation(image_size=8, crop="pad", **PLAIN)
    tracemalloc.start()
    try:
        assert training_view(image, rng(), choices).shape == (8, 8, 3)
        assert tracemalloc.get_traced_memory()[1] < 1.5 * image.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("crops", [10, 144])
def test_an_image_too_long_to_be_resized_is_refused(crops):
    """Its shorter side, one pixel, would become 256."""
    with pytest.raises(DataError, match=r"5000 x 1 pixels has 1280000 x 256, more than 67108864"):
        evaluation_views(np.zeros((1, 5_000, 3), np.uint8), 224, crops)


def test_interpolations_are_drawn_evenly():
    choices = Augmentation(image_size=24, crop="none", interpolation="random", **PLAIN)
    whole = Window(0, 0, 80, 60)
    names = {
        open_image(PHOTO).resized(whole, (24, 24), name).tobytes(): name
        for name in ("bilinear", "area", "nearest", "bicubic")
    }
    views = [training_view(PHOTO, rng(seed), choices).tobytes() for seed in range(200)]
    counts = Counter(names[view] for view in views)
    assert len(counts) == 4
    assert all(abs(count - 50) < 4.5 * np.sqrt(200 * 3 / 16) for count in counts.values())


def test_a_view_of_a_jpeg_is_that_of_its_pixels():
    data = encode(PHOTO)
    pixels = open_image(data).pixels()
    for seed in range(4):
        choices = Augmentation(image_size=48)
        np.testing.assert_array_equal(
            training_view(data, rng(seed), choices), training_view(pixels, rng(seed), choices)
        )


def test_the_single_crop_is_the_centre_of_the_resized_image():
    """224 of 256: of an image whose shorter side is 64, 56 x 56 in the middle."""
    image = picture(1, 64, 96)
    np.testing.assert_array_equal(evaluation_view(image, 56), image[4:60, 20:76])
    squeezed = evaluation_view(image, 56, shape="image")
    by_hand = Image.fromarray(image[4:60, 6:90]).resize((56, 56), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(squeezed, np.asarray(by_hand))
    np.testing.assert_array_equal(evaluation_view(image, 64, fraction=1.0), image[:, 16:80])


def test_ten_crops_by_hand():
    """Of 64 x 64 resized to itself: corners and centre of 56, each followed by its mirror image."""
    image = picture(2, 64, 64)
    views = evaluation_views(image, 56, 10)
    corners = [(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)]
    for place, (top, left) in enumerate(corners):
        window = image[top : top + 56, left : left + 56]
        np.testing.assert_array_equal(views[2 * place], window)
        np.testing.assert_array_equal(views[2 * place + 1], window[:, ::-1])
    assert views.shape == (10, 56, 56, 3)
    twelve = evaluation_views(image, 56, 12)
    np.testing.assert_array_equal(twelve[:10], views)
    square = open_image(image).resized(Window(0, 0, 64, 64), (56, 56))
    np.testing.assert_array_equal(twelve[10], square)
    np.testing.assert_array_equal(twelve[11], twelve[10][:, ::-1])


def test_144_crops_by_hand(monkeypatch):
    """4 scales x 3 squares x (4 corners, centre, whole) x 2. Of 32 x 48 at 28: the first is 32."""
    monkeypatch.setattr(resizing, "simd", None)  # Pillow's pixels, bit by bit
    image = picture(4, 32, 48)
    views = evaluation_views(image, 28, 144)
    assert views.shape == (144, 28, 28, 3)
    np.testing.assert_array_equal(views[1::2], views[::2, :, ::-1])
    place = 0
    for scale in (32, 36, 40, 44):
        size = (scale * 48 // 32, scale)
        scaled = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
        pixels = np.asarray(scaled)
        for left in (0, (size[0] - scale) // 2, size[0] - scale):
            rest = scale - 28
            for top, right in ((0, 0), (0, rest), (rest, 0), (rest, rest), (rest // 2, rest // 2)):
                window = pixels[top : top + 28, left + right : left + right + 28]
                np.testing.assert_array_equal(views[place], window)
                place += 2
            square = Image.fromarray(pixels[:, left : left + scale])
            whole = np.asarray(square.resize((28, 28), Image.Resampling.BILINEAR))
            np.testing.assert_array_equal(views[place], whole)
            place += 2
    assert place == 144


def test_portraits_have_top_centre_and_bottom_squares():
    image = picture(5, 48, 32)
    turned = np.ascontiguousarray(np.swapaxes(image, 0, 1))
    views, others = evaluation_views(image, 28, 144), evaluation_views(turned, 28, 144)
    for first in range(0, 144, 12):  # the whole squares, whose place is the same in both
        np.testing.assert_allclose(
            views[first + 10].astype(int), np.swapaxes(others[first + 10], 0, 1), atol=1
        )


def test_one_crop_is_the_single_crop():
    np.testing.assert_array_equal(evaluation_views(PHOTO, 32, 1)[0], evaluation_view(PHOTO, 32))


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"crop": "random"}, "crop must be one of 'inception', 'pad', 'none', got 'random'"),
        ({"interpolation": "lanczos"}, "interpolation must be one of"),
        ({"photometric": "strong"}, "photometric must be one of 'none', 'reduced', 'full'"),
        ({"aspect_spacing": "even"}, "aspect_spacing must be one of"),
        ({"image_size": 0}, "image_size must be in 1 .. 8192, got 0"),
        ({"image_size": 10**6}, "image_size must be in 1 .. 8192, got 1000000"),
        ({"attempts": 0}, "attempts must be >= 1"),
        ({"padding": -1}, "padding must be >= 0, got -1"),
        ({"area": (0, 1)}, "area must be two numbers"),
        ({"area": (0.5, 0.1)}, "area must be two numbers"),
        ({"aspect": (2, 1)}, "aspect must be two numbers"),
        *(
            ({name: value}, f"{name} must be two numbers, 0 < low <= high.*; got {said}")
            for name in ("area", "aspect")
            for value, said in (
                ((0.5,), r"\(0.5,\)"),
                ("ab", "'ab'"),
                (0.5, "0.5"),
                (None, "None"),
                ((0.1, 0.2, 0.3), r"\(0.1, 0.2, 0.3\)"),
                (("a", 1), r"\('a', 1\)"),
                ((0.5, float("inf")), r"\(0.5, inf\)"),
            )
        ),
        ({"reduced": 1.5}, r"reduced must be in \[0, 1\], got 1.5"),
    ],
)
def test_bad_choices_are_refused(choices, said):
    with pytest.raises(ValueError, match=said):
        Augmentation(**choices)


def test_bad_arguments_of_views_are_refused():
    with pytest.raises(DataError, match="smaller than image_size=64: choose crop='inception'"):
        training_view(picture(0, 32, 32), rng(), Augmentation(image_size=64, crop="pad"))
    for choices, said in (
        ({"image_size": 0}, "image_size must be in 1 .. 8192, got 0"),
        ({"image_size": 10**6}, "image_size must be in 1 .. 8192, got 1000000"),
        ({"image_size": 8, "fraction": 0.0}, r"fraction must be in \(0, 1\], got 0.0"),
        (
            {"image_size": 8, "shape": "round"},
            "shape must be one of 'square', 'image', got",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            evaluation_view(PHOTO, **choices)
    with pytest.raises(ValueError, match="crops must be 1, 10, 12 or 144, got 5"):
        evaluation_views(PHOTO, 8, 5)
    with pytest.raises(ValueError, match="fraction must be in"):
        evaluation_views(PHOTO, 8, 10, fraction=2)


def test_damage_is_found():
    with pytest.raises(DamagedImageError):
        training_view(encode(PHOTO)[:300], rng(), Augmentation(image_size=16))
