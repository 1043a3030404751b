"""Crops: the sampler's distribution, and windows against coordinates worked out by hand."""

import numpy as np
import pytest
from scipy import stats

from bnjax.data.views.crops import (
    Window,
    central_window,
    five_windows,
    sample_window,
    scaled_size,
    squares,
)

DRAWS = 4_000
LEAST_P = 1e-4
"""Of a Kolmogorov-Smirnov test: seeds are fixed, so that it passes always or never."""


def sampled(width, height, seed=0, draws=DRAWS, **choices):
    rng = np.random.default_rng(seed)
    return [sample_window(width, height, rng, **choices) for _ in range(draws)]


def fit_distribution(width, height, spacing, values):
    """CDFs of area and log aspect ratio given that the window fits, by sums over a fine grid."""
    areas = np.linspace(0.08, 1, 2_000)[:, None]
    ends = (3 / 4, 4 / 3) if spacing == "uniform" else (np.log(3 / 4), np.log(4 / 3))
    ratios = np.linspace(*ends, 2_000)[None]
    ratios = ratios if spacing == "uniform" else np.exp(ratios)
    fits = (areas * height * ratios <= width) & (areas * width / ratios <= height)
    by = {"area": (areas[:, 0], fits.sum(1)), "aspect": (ratios[0], fits.sum(0))}
    return {
        name: np.interp(values[name], places, np.cumsum(mass) / mass.sum())
        for name, (places, mass) in by.items()
    }


@pytest.mark.parametrize("spacing", ["uniform", "log_uniform"])
@pytest.mark.parametrize(("width", "height"), [(5000, 3750), (3000, 6000), (4000, 4000)])
def test_area_and_aspect_are_drawn_evenly_among_those_that_fit(width, height, spacing):
    """Large images, so that rounding to whole pixels does not show."""
    windows = sampled(width, height, spacing=spacing)
    values = {
        "area": [window.width * window.height / width / height for window in windows],
        "aspect": [window.width / window.height for window in windows],
    }
    for name, quantiles in fit_distribution(width, height, spacing, values).items():
        assert stats.kstest(quantiles, "uniform").pvalue > LEAST_P, name


def test_area_is_even_from_8_to_100_percent_where_every_window_fits():
    windows = sampled(4000, 4000, aspect=(1, 1))
    areas = [window.width * window.height / 4000**2 for window in windows]
    assert stats.kstest(areas, stats.uniform(0.08, 0.92).cdf).pvalue > LEAST_P


def test_the_spacing_of_the_aspect_ratio_shows():
    """Windows of a small part all fit: half of the logarithms are below 0, of the ratios 3/7."""
    few = {"area": (0.08, 0.2)}
    shares = {
        spacing: np.mean([w.width < w.height for w in sampled(4000, 4000, spacing=spacing, **few)])
        for spacing in ("uniform", "log_uniform")
    }
    bound = 4 * 0.5 / np.sqrt(DRAWS)  # four standard deviations
    assert shares["log_uniform"] == pytest.approx(1 / 2, abs=bound)
    assert shares["uniform"] == pytest.approx(3 / 7, abs=bound)


def test_places_are_even_and_reach_both_ends():
    windows = sampled(10, 8, area=(0.3, 0.3), aspect=(1, 1))  # 5 x 5: 6 places by 4
    counts = np.zeros((6, 4))
    for window in windows:
        assert window[2:] == (5, 5)
        counts[window.left, window.top] += 1
    assert stats.chisquare(counts.ravel()).pvalue > LEAST_P


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 50), (3, 2), (500, 375), (64, 1000)])
def test_windows_lie_within_the_image_in_whole_pixels(width, height):
    for window in sampled(width, height, draws=300):
        assert all(isinstance(value, int) for value in window)
        left, top, right, bottom = window.edges
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height


@pytest.mark.parametrize(
    ("size", "window"),
    [
        ((400, 90), (140, 0, 120, 90)),  # as wide as 4/3 of the height
        ((90, 400), (0, 140, 90, 120)),  # as high as 4/3 of the width
        ((100, 100), (0, 0, 100, 100)),  # all, for its ratio is allowed
    ],
)
def test_what_never_fits_falls_back_to_the_largest_allowed_window(size, window):
    class Unlucky:
        def uniform(self, low, high):
            return high

    chosen = sample_window(*size, Unlucky(), attempts=3, area=(1, 1))
    assert chosen == window


def test_the_same_generator_gives_the_same_windows():
    assert sampled(500, 375, 3, draws=20) == sampled(500, 375, 3, draws=20)
    assert sampled(500, 375, 3, draws=20) != sampled(500, 375, 4, draws=20)


def test_central_windows_by_hand():
    assert central_window(512, 256, shape="square") == (144, 16, 224, 224)
    assert central_window(512, 256, shape="image") == (32, 16, 448, 224)
    assert central_window(100, 60, fraction=0.5, shape="image") == (25, 15, 50, 30)


def test_scaled_sizes_by_hand():
    assert scaled_size(500, 375, 256) == (341, 256)  # 341.33
    assert scaled_size(375, 500, 288) == (288, 384)


def test_squares_and_their_windows_by_hand():
    assert squares(341, 256) == ((0, 0, 256, 256), (42, 0, 256, 256), (85, 0, 256, 256))
    assert squares(256, 341) == ((0, 0, 256, 256), (0, 42, 256, 256), (0, 85, 256, 256))
    assert list(five_windows(Window(85, 0, 256, 256), 224)) == [
        (85, 0, 224, 224),
        (117, 0, 224, 224),
        (85, 32, 224, 224),
        (117, 32, 224, 224),
        (101, 16, 224, 224),
    ]
