"""Distortions of colours against float64, the HSV ones against Python's own colorsys."""

import colorsys

import numpy as np
import pytest

from bnjax.data.views.distortions import (
    Distortion,
    add_brightness,
    distort,
    scale_contrast,
    turn_colours,
)

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (9, 11, 3), dtype=np.uint8)
IMAGE[0] = RNG.integers(0, 256, (11, 1))  # grays
IMAGE[1, :6] = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0], [255, 255, 255], [7, 7, 3]]


def planes():
    return np.moveaxis(IMAGE, -1, 0).astype(np.float32) / np.float32(255)


def brightness(pixels, added):
    return np.clip(pixels + added, 0, 1)


def contrast(pixels, factor):
    mean = pixels.mean((0, 1))
    return np.clip(mean + factor * (pixels - mean), 0, 1)


def colours(pixels, turn, factor):
    result = np.empty_like(pixels)
    for place in np.ndindex(pixels.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixels[place])
        result[place] = colorsys.hsv_to_rgb(
            (hue + turn) % 1.0, min(saturation * factor, 1.0), value
        )
    return result


@pytest.mark.parametrize("added", [-0.3, 0.0, 0.125])
def test_brightness(added):
    got = np.moveaxis(add_brightness(planes(), added), 0, -1)
    np.testing.assert_allclose(got, brightness(IMAGE / 255, added), rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5])
def test_contrast_is_around_each_channels_mean(factor):
    got = np.moveaxis(scale_contrast(planes(), factor), 0, -1)
    np.testing.assert_allclose(got, contrast(IMAGE / 255, factor), rtol=0, atol=1e-6)


@pytest.mark.parametrize("turn", [-0.2, 0.0, 0.07, 1 / 3])
@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 1.5])
def test_hue_and_saturation(turn, factor):
    got = np.moveaxis(turn_colours(planes(), turn, factor), 0, -1)
    np.testing.assert_allclose(got, colours(IMAGE / 255, turn, factor), rtol=0, atol=2e-6)


def test_a_third_of_the_circle_turns_red_to_green():
    red = np.zeros((3, 1, 1), np.float32)
    red[0] = 1
    np.testing.assert_allclose(turn_colours(red, 1 / 3, 1)[:, 0, 0], [0, 1, 0], atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_a_distortion_is_its_operations_in_one_of_two_orders(seed):
    """Both orders occur among these seeds. Rounded once: 0.5 levels."""
    rng = np.random.default_rng(seed)
    first = rng.random() < 0.5
    added, strength, saturation, turn = rng.uniform(-1, 1, 4) * (32 / 255, 0.5, 0.5, 0.2)
    pixels = brightness(IMAGE / 255, added)
    if first:
        pixels = contrast(pixels, 1 + strength)
    pixels = colours(pixels, turn, 1 + saturation)
    if not first:
        pixels = contrast(pixels, 1 + strength)
    got = distort(IMAGE, Distortion(), np.random.default_rng(seed))
    assert got.dtype == np.uint8
    assert got.flags.c_contiguous
    np.testing.assert_allclose(got, 255 * pixels, rtol=0, atol=0.501)


def test_both_orders_occur_among_those_seeds():
    assert {np.random.default_rng(seed).random() < 0.5 for seed in range(6)} == {True, False}


def test_ranges_are_those_of_the_public_inception_code():
    assert Distortion() == Distortion(brightness=32 / 255, contrast=0.5, saturation=0.5, hue=0.2)


def test_nothing_moves_without_ranges():
    still = Distortion(0, 0, 0, 0)
    np.testing.assert_array_equal(distort(IMAGE, still, np.random.default_rng(0)), IMAGE)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_range_moves_by_itself_and_the_others_draw_alike(name):
    """Half the range moves colours in the same direction, by less."""
    image = np.full((2, 2, 3), (90, 120, 150), np.uint8)
    image[0] -= 60
    one = Distortion(**{"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, name: 0.2})
    whole, half = (
        distort(image, ranges, np.random.default_rng(2)).astype(int) - image
        for ranges in (one, one.scaled(0.5))
    )
    assert np.abs(whole).max() > np.abs(half).max() > 0
    assert np.all(whole * half >= 0)


@pytest.mark.parametrize(
    ("name", "value"), [("hue", 0.6), ("brightness", -0.1), ("contrast", 2), ("saturation", 1.1)]
)
def test_a_range_that_has_no_meaning_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be in .*got {value}"):
        Distortion(**{name: value})
