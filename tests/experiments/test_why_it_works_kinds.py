"""Kinds of networks, each at a rate of its own: what is trained, on what, and what is compared."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bnjax.data import in_memory, open_data
from bnjax.models import MLP
from bnjax.training.optimizers import sgd
from experiments.why_it_works.experiment import QUESTIONS
from experiments.why_it_works.group_normalization import windows
from experiments.why_it_works.rates import hold_out, trained_at_best_rate
from experiments.why_it_works.scale_bias_alone import only, parts
from experiments.why_it_works.side_by_side import Digits, start, trained

BY_NAME = {question.name: question for question in QUESTIONS}
SEEDS = (4, 7)


@pytest.fixture(scope="module")
def data():
    return in_memory(open_data("mnist5k", data_dir=None))


@pytest.fixture(scope="module")
def digits(data):
    return Digits.of(data.train)


def same(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def test_what_is_held_out_is_not_trained_on():
    digits = Digits(jnp.arange(50.0).reshape(50, 1, 1, 1), jnp.arange(50))
    train, held_out = hold_out(digits, 20, seed=1)
    assert (len(train.labels), len(held_out.labels)) == (30, 20)
    assert sorted([*map(int, train.labels), *map(int, held_out.labels)]) == list(range(50))
    np.testing.assert_array_equal(held_out.images.ravel(), held_out.labels)
    assert set(map(int, held_out.labels)) != set(range(20))
    other = hold_out(digits, 20, seed=2)[1]
    assert set(map(int, other.labels)) != set(map(int, held_out.labels))


@pytest.mark.slow
@pytest.mark.parametrize("rates", [(1e-5, 0.2), (0.2, 1e-5)])
def test_the_best_rate_is_chosen_and_its_networks_returned(digits, rates):
    """Seen red with the worst rate, and with the first rate's networks."""
    train, held_out = hold_out(digits, 500, seed=0)
    length = {"steps": 40, "batch_size": 20}
    model = MLP((16,), norm="batch")
    rate, state = trained_at_best_rate(model, sgd(1.0), rates, train, held_out, SEEDS, **length)
    expected = trained(model, optax.sgd(0.2), train, SEEDS, **length)
    assert rate == 0.2
    jax.tree.map(
        lambda own, other: np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-5),
        state.params,
        expected.params,
    )


def test_a_product_with_windows_is_a_convolution():
    """Seen red with the windows of odd positions."""
    rng = np.random.default_rng(0)
    x, kernel = (
        rng.normal(size=shape).astype(np.float32) for shape in ((2, 7, 6, 3), (3, 3, 3, 5))
    )
    found = windows(jnp.asarray(x)) @ jnp.asarray(kernel.reshape(27, 5))
    padded = np.pad(x.astype(float), ((0, 0), (1, 1), (1, 1), (0, 0)))
    assert found.shape == (2, 4, 3, 5)
    for i in range(4):
        for j in range(3):
            window = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            expected = np.einsum("nhwc,hwcd->nd", window, kernel)
            np.testing.assert_allclose(found[:, i, j], expected, atol=1e-5)


SEEN = np.arange(9) > 3
"""Of nine pixels those that differ between images."""


def test_parts_of_a_network_that_are_trained():
    """Six units a layer, nine pixels, ten classes. Seen red with biases of the last layer out."""
    model = MLP((6, 6), norm="batch")
    variables = model.init(jax.random.key(0), jnp.zeros((2, 3, 3, 1)), train=False)
    params = variables["params"]

    def counts(part):
        ones = jax.tree.map(np.asarray, parts(0, SEEN)[part](params))
        assert all(np.isin(leaf, (0, 1)).all() for leaf in jax.tree.leaves(ones))
        return {name: int(sum(map(np.sum, jax.tree.leaves(ones[name])))) for name in params}

    frozen = dict.fromkeys(params, 0)
    own = frozen | {"hidden1": 12, "hidden2": 12}
    assert counts("scale, bias") == own
    assert counts("scale, bias, last") == own | {"logits": 70}
    assert counts("last") == frozen | {"logits": 70}
    assert counts("all") == own | {"dense1": 54, "dense2": 36, "logits": 70}
    control = frozen | {"dense1": 12, "dense2": 12}
    assert counts("as many") == control
    assert counts("as many, last") == control | {"logits": 70}


def test_the_control_trains_two_weights_of_each_unit_that_can_act():
    """Seen red with weights of pixels that are the same in all images."""
    params = MLP((6, 6), norm="batch").init(
        jax.random.key(0), jnp.zeros((2, 3, 3, 1)), train=False
    )["params"]
    first, second = (parts(seed, SEEN)["as many"](params) for seed in (0, 1))
    for layer in ("dense1", "dense2"):
        kernel = np.asarray(first[layer]["kernel"])
        assert (kernel.sum(0) == 2).all()
        assert (kernel != np.asarray(second[layer]["kernel"])).any()
    assert not np.asarray(first["dense1"]["kernel"])[~SEEN].any()


@pytest.mark.slow
@pytest.mark.parametrize("part", [*parts(0, SEEN)])
def test_what_is_not_trained_stays_as_it_was_drawn(digits, part):
    """Seen red without the mask."""
    model = MLP((8, 8), norm="batch")
    mask = parts(0, np.ptp(np.asarray(digits.images), axis=0).ravel() > 0)[part]
    tx = optax.chain(only(mask), sgd(0.1))
    before = start(model, tx, SEEDS, digits).params
    after = trained(model, tx, digits, SEEDS, steps=3, batch_size=20).params
    one = jax.tree.map(lambda leaf: leaf[0], before)

    def check(was, now, mask):
        moved = np.asarray(was != now).any(0)
        assert not moved[np.asarray(mask) == 0].any()
        assert moved.any() == (np.asarray(mask) == 1).any()

    jax.tree.map(check, before, after, mask(one))


@pytest.mark.slow
def test_dropout_acts_in_training_alone():
    model, _ = BY_NAME["dropout_gain"].network("batch", 0.5)
    plain, _ = BY_NAME["dropout_gain"].network("batch", 0.0)
    images = jax.random.uniform(jax.random.key(0), (6, 4, 4, 1))
    variables = model.init(jax.random.key(1), images, train=False)

    def logits(model, key):
        rngs = {"dropout": jax.random.key(key)}
        return model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)[0]

    assert (logits(model, 0) != logits(model, 1)).any()
    same(logits(plain, 0), logits(plain, 1))
    same(*(network.apply(variables, images, train=False) for network in (model, plain)))


@pytest.mark.parametrize(("drawn", "low", "high"), [(0.0, 0, 0), (0.5, 0.35, 0.55), (1.0, 0.8, 1)])
def test_part_of_the_labels_is_drawn(digits, drawn, low, high):
    """Of those drawn a tenth is right by chance. Seen red with all drawn, and with none."""
    question = replace(BY_NAME["dropout_gain"], examples=400, drawn=drawn)
    labels = question.labels(3, digits)
    assert (labels.shape, labels.dtype) == ((400,), jnp.int32)
    wrong = float(np.mean(np.asarray(labels != digits.labels[:400])))
    assert low <= wrong <= high


def test_l2_pulls_kernels_alone():
    """By rate times strength of each kernel, where the loss has no slope."""
    question = replace(BY_NAME["l2_gain"], rates=(0.5,))
    model, tx = question.network("batch", 0.1)
    params = model.init(jax.random.key(1), jnp.zeros((2, 4, 4, 1)), train=False)["params"]
    flat = jax.tree.map(jnp.zeros_like, params)
    moved, _ = tx.update(flat, tx.init(params), params)

    def check(path, step, weight):
        expected = -0.05 * weight if path[-1].key == "kernel" else 0 * weight
        np.testing.assert_allclose(step, expected, rtol=1e-6)

    jax.tree_util.tree_map_with_path(check, moved, params)


SMALL = {
    "group_normalization": {"examples": (2, 8), "widths": (8,)},
    "group_normalization_convolutions": {"examples": (2, 8), "widths": (4,)},
    "ghost_batches": {"large": 20, "small": 4, "widths": (8,)},
    "scale_bias_alone": {"widths": (8,)},
    "scale_bias_last": {"widths": (8,)},
    "dropout_gain": {"widths": (8,), "examples": 40, "batch_size": 10},
    "l2_gain": {"widths": (8,), "examples": 40, "batch_size": 10},
}


def by_claim(name, told):
    """The effect by what the answer tells: above zero where the claim holds."""
    a = {key.removeprefix("accuracy, "): value for key, value in told.items()}
    if name.startswith("group"):
        return min(a["groups of 8"], a["group normalization"]) - a["groups of 2"]
    if name == "ghost_batches":
        return a["ghost batches"] - a["large batches"]
    if name.startswith("scale_bias"):
        last = ", last" if name == "scale_bias_last" else ""
        return a[f"scale, bias{last}"] - a[f"as many{last}"]
    kind = {"dropout_gain": "dropout", "l2_gain": "L2"}[name]
    reached = {key.removeprefix("test accuracy "): value for key, value in told.items()}
    gains = {w: reached[f"{w}, {kind}"] - reached[f"{w}, plain"] for w in ("with", "without")}
    return gains["without"] - gains["with"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_an_effect_has_the_direction_of_its_claim(name, data):
    """Seen red with each difference the other way round."""
    question = replace(BY_NAME[name], networks=1, steps=12, rates=(0.1, 0.3), **SMALL[name])
    found = question.answer(0, data)
    assert found.effect == pytest.approx(by_claim(name, found.numbers))
    assert found.effect != 0


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "fits"), [(100, True), (2, False)])
def test_random_labels_are_fitted_by_training(data, steps, fits):
    question = replace(
        BY_NAME["random_labels"], networks=2, examples=30, steps=steps, tests=1, batch_size=10
    )
    found = question.answer(0, data)
    assert [check.what for check in found.checks] == ["all labels, with", "all labels, without"]
    assert [check.deviation <= check.bound for check in found.checks] == [fits, fits]
    assert all(found.numbers[f"test accuracy {kind}"] < 30 for kind in ("with", "without"))
