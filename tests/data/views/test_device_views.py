"""Views made on the device, held against the host's: the same for the same draws, drawn alike."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from scipy import stats

from bnjax.data import DataError
from bnjax.data.views import augmentation as host
from bnjax.data.views.augmentation import Augmentation
from bnjax.data.views.crops import sample_window
from bnjax.data.views.device_crops import draw_window
from bnjax.data.views.on_device import draw, evaluation_views, training_views, view_keys

HEIGHT, WIDTH, SIZE = 12, 16, 8
IMAGES = np.random.default_rng(0).integers(0, 256, (32, HEIGHT, WIDTH, 3), np.uint8)
IMAGES[:4] = IMAGES[:4, :, :, :1]  # grays
IMAGES[4:8] = np.where(IMAGES[4:8] < 128, 0, 255)  # full colours
POSITIONS = jnp.arange(len(IMAGES), dtype=jnp.uint32)
DRAWS = 4_000
LEAST_P = 1e-4
"""Of a test of distributions: seeds are fixed, so that it passes always or never."""


@partial(jax.jit, static_argnums=2)
def drawn(seed, positions, augmentation):
    view = partial(draw, width=WIDTH, height=HEIGHT, augmentation=augmentation)
    return jax.vmap(view)(view_keys(seed, positions))


@partial(jax.jit, static_argnums=2)
def made(images, positions, augmentation):
    """Views with what was drawn for them."""
    views = training_views(images, view_keys(3, positions), augmentation)
    return views, drawn(3, positions, augmentation)


class Replay:
    """A generator that gives the host, call by call, what the device drew."""

    def __init__(self, draws, augmentation):
        left, top, width, height = (int(value) for value in draws.window)
        values = []
        if augmentation.crop == "inception":
            values = [width * height / (WIDTH * HEIGHT), width / height, left, top]
        elif augmentation.crop == "pad":
            values = [top + augmentation.padding, left + augmentation.padding]
        if draws.interpolation is not None:
            values.append(int(draws.interpolation))
        if draws.mirrored is not None:
            values.append(0.0 if draws.mirrored else 1.0)
        if draws.changes is not None:
            first, added, contrast, saturation, turn = draws.changes
            ranges = augmentation.ranges
            values.append(0.0 if first else 1.0)
            values.append(
                np.array([added, contrast - 1, saturation - 1, turn], np.float64)
                / (ranges.brightness, ranges.contrast, ranges.saturation, ranges.hue)
            )
        self.values = iter(values)

    def uniform(self, *_):
        return next(self.values)

    integers = random = uniform


@pytest.mark.parametrize(
    ("channels", "levels", "choices"),
    [
        (3, 1, {"photometric": "none", "interpolation": "random"}),
        (3, 4, {"photometric": "full"}),  # a level of the crop, times 1.5 twice, rounded
        (3, 0, {"photometric": "none", "crop": "pad"}),
        (3, 1, {"photometric": "full", "crop": "pad", "mirror": False}),
        (1, 2, {"photometric": "reduced", "crop": "none"}),  # a level, times 1.25, rounded
    ],
)
def test_the_same_draws_give_the_hosts_view(channels, levels, choices):
    """But for rounding: the host resizes in integers, rounds more often, and cuts in between."""
    augmentation = Augmentation(SIZE, **choices)
    images = IMAGES[..., :channels]
    if augmentation.interpolation == "random":
        images = 85 + images // 3  # so that "bicubic" stays within 0 .. 255
    got, draws = jax.device_get(made(images, POSITIONS, augmentation))
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], draws) for i in range(len(images))]
    want = np.stack(
        [
            host.training_view(image, Replay(draws, augmentation), augmentation)
            for image, draws in zip(images, each, strict=True)
        ]
    )
    assert np.abs(got.astype(int) - want).max() <= levels


@pytest.mark.parametrize(
    ("channels", "fraction", "size"), [(3, 224 / 256, 8), (3, 0.7, 5), (1, 1, 16), (3, 1 / 3, 12)]
)
def test_evaluation_is_the_hosts(channels, fraction, size):
    images = IMAGES[:4, ..., :channels]
    views = jax.jit(partial(evaluation_views, image_size=size, fraction=fraction))
    got = np.asarray(views(images)).astype(int)
    want = np.stack([host.evaluation_view(image, size, fraction=fraction) for image in images])
    assert np.abs(got - want).max() <= 1


def test_an_image_of_the_views_size_keeps_its_pixels():
    square = IMAGES[:, :, :HEIGHT]
    np.testing.assert_array_equal(evaluation_views(square, HEIGHT, fraction=1), square)
    still = Augmentation(HEIGHT, crop="none", mirror=False, photometric="none")
    np.testing.assert_array_equal(made(square, POSITIONS, still)[0], square)


def windows(width, height, attempts, **choices):
    uniforms = jax.random.uniform(jax.random.key(0), (DRAWS, 1 + attempts, 2))
    window = partial(draw_window, width=width, height=height, **choices)
    return np.asarray(jax.jit(jax.vmap(window))(uniforms))


def test_windows_reach_both_ends_evenly():
    drawn = windows(10, 8, 1, area=(0.3, 0.3), aspect=(1, 1))
    assert np.all(drawn[:, 2:] == 5)
    counts = np.zeros((6, 4))
    np.add.at(counts, (drawn[:, 0], drawn[:, 1]), 1)
    assert stats.chisquare(counts.ravel()).pvalue > LEAST_P


@pytest.mark.parametrize(
    ("width", "height", "choices"),
    [
        (60, 40, {"spacing": "uniform"}),
        (60, 40, {"spacing": "log_uniform"}),
        (10, 40, {"area": (0.3, 0.9), "aspect": (0.5, 2.0)}),  # many fall back
    ],
)
def test_windows_are_drawn_as_on_the_host(width, height, choices):
    rng = np.random.default_rng(0)
    want = [sample_window(width, height, rng, attempts=3, **choices) for _ in range(DRAWS)]
    want = np.array(want)
    got = windows(width, height, 3, **choices)
    assert np.all((got[:, :2] >= 0) & (got[:, 2:] >= 1))
    assert np.all(got[:, :2] + got[:, 2:] <= (width, height))
    for quantity in (
        lambda window: window[:, 2] * window[:, 3],
        lambda window: window[:, 2] / window[:, 3],
        lambda window: window[:, 0] / (width + 1 - window[:, 2]),
        lambda window: window[:, 1] / (height + 1 - window[:, 3]),
    ):
        assert stats.ks_2samp(quantity(got), quantity(want)).pvalue > LEAST_P


def test_places_flips_orders_and_changes_are_even_and_independent():
    augmentation = Augmentation(SIZE, crop="pad", padding=1, interpolation="random")
    draws = jax.device_get(drawn(0, jnp.arange(DRAWS, dtype=jnp.uint32), augmentation))
    left, top = draws.window[:, 0], draws.window[:, 1]
    for values, first, end in ((left, -1, 10), (top, -1, 6), (draws.interpolation, 0, 4)):
        counts = np.bincount(values - first)
        assert len(counts) == end - first
        assert stats.chisquare(counts).pvalue > LEAST_P
    first, *changes = draws.changes
    for share in (draws.mirrored, first):
        assert stats.binomtest(int(share.sum()), DRAWS).pvalue > LEAST_P
    ranges = augmentation.ranges
    spans = (ranges.brightness, ranges.contrast, ranges.saturation, ranges.hue)
    for values, middle, span in zip(changes, (0, 1, 1, 0), spans, strict=True):
        even = stats.uniform(middle - span, 2 * span)
        assert stats.kstest(values, even.cdf).pvalue > LEAST_P
    together = np.corrcoef([left, top, draws.interpolation, draws.mirrored, first, *changes])
    assert np.abs(together - np.eye(9)).max() < 5 / np.sqrt(DRAWS)  # five standard deviations


def test_a_choice_that_is_not_drawn_moves_no_other():
    one, other = (
        drawn(0, POSITIONS, Augmentation(SIZE, crop="pad", photometric=kind, interpolation=how))
        for kind, how in (("full", "random"), ("none", "bilinear"))
    )
    np.testing.assert_array_equal(one.window, other.window)
    np.testing.assert_array_equal(one.mirrored, other.mirrored)


def test_views_depend_on_image_seed_and_position_alone():
    """Not on the batch that they are in, nor on its devices."""
    augmentation = Augmentation(SIZE)
    want, _ = made(IMAGES, POSITIONS, augmentation)

    def step(_, batch):
        return None, made(*batch, augmentation)[0]

    batches = IMAGES.reshape(4, 8, *IMAGES.shape[1:]), POSITIONS.reshape(4, 8)
    scanned = jax.jit(lambda batches: jax.lax.scan(step, None, batches)[1])(batches)
    np.testing.assert_array_equal(scanned.reshape(want.shape), want)

    lying = NamedSharding(jax.make_mesh((8,), ("data",), (AxisType.Auto,)), P("data"))
    sharded, _ = made(*jax.device_put((IMAGES, POSITIONS), lying), augmentation)
    assert len(sharded.sharding.device_set) == 8
    np.testing.assert_array_equal(sharded, want)


@pytest.mark.slow
def test_compiled_and_eager_views_are_the_same():
    """But for a level: a compiled program rounds fewer of the numbers in between."""
    augmentation = Augmentation(SIZE, photometric="none")
    eager = training_views(jnp.asarray(IMAGES), view_keys(3, POSITIONS), augmentation)
    compiled, _ = made(IMAGES, POSITIONS, augmentation)
    assert np.abs(np.asarray(eager).astype(int) - np.asarray(compiled)).max() <= 1


@pytest.mark.parametrize("seed", [-1, 2**32, 2**64, 1.5, None], ids=str)
def test_bad_seeds_are_refused(seed):
    """JAX would cut 2^32 to 0."""
    with pytest.raises(ValueError, match=r"seed must be (in 0 \.\. 2\*\*32 - 1|an integer), got"):
        view_keys(seed, POSITIONS)


def test_keys_differ_by_seed_and_position_and_by_nothing_else():
    keys = {
        tuple(data)
        for seed in (0, 1)
        for data in np.asarray(jax.random.key_data(view_keys(seed, POSITIONS)))
    }
    assert len(keys) == 2 * len(IMAGES)
    want = jax.random.key_data(view_keys(1, POSITIONS))
    for seed in (jnp.int32(1), jnp.uint32(1)):
        np.testing.assert_array_equal(jax.random.key_data(view_keys(seed, POSITIONS)), want)
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(jax.random.key_data(view_keys(1, POSITIONS)), want)


def test_what_cannot_be_made_is_refused():
    keys = view_keys(0, POSITIONS)
    with pytest.raises(ValueError, match=r"positions must be uint32 \[n\], got int32 \[3\]"):
        view_keys(0, jnp.arange(3))
    with pytest.raises(ValueError, match=r"images must be uint8 .*got float32"):
        training_views(IMAGES.astype(np.float32), keys, Augmentation(SIZE))
    with pytest.raises(ValueError, match=r"images must be uint8 \[n, .*got uint8 \[12, 16, 3\]"):
        evaluation_views(IMAGES[0], SIZE)
    with pytest.raises(ValueError, match=r"one for each of 31 images; got key<fry> \[32\]"):
        training_views(IMAGES[1:], keys, Augmentation(SIZE))
    with pytest.raises(ValueError, match=r"keys must be those of view_keys.*got uint32 \[32, 2\]"):
        training_views(IMAGES, jax.random.key_data(keys), Augmentation(SIZE))
    with pytest.raises(DataError, match=r"16 x 12 pixels with padding=1 .*more padding"):
        training_views(IMAGES, keys, Augmentation(15, crop="pad", padding=1))
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\], got 0"):
        evaluation_views(IMAGES, SIZE, fraction=0)
