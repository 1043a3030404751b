"""Averages of parameters against their definitions as weighted sums, in float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnjax.linen import BatchNorm
from bnjax.recalibration import recalibrate
from bnjax.training.averaging import start_average, update_average

TREES = [np.random.default_rng(step).normal(size=(3, 2)).astype(np.float32) for step in range(25)]
START, *REST = TREES
CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # float32, 24 updates


def average_of(averaging, decay=0.9, rest=REST, start=START):
    @jax.jit
    def run(start, rest):
        def step(average, tree):
            return update_average(average, tree, averaging=averaging, decay=decay), None

        return jax.lax.scan(step, start_average({"w": start}), {"w": rest})[0]

    return run(jnp.asarray(start), jnp.stack([jnp.asarray(tree) for tree in rest]))


def weighted(weights, trees):
    return sum(weight * np.float64(tree) for weight, tree in zip(weights, trees, strict=True))


def test_ema_starts_from_the_initial_values():
    n = len(REST)
    weights = [0.9**n, *(0.1 * 0.9 ** (n - t) for t in range(1, n + 1))]
    average = average_of("ema")
    np.testing.assert_allclose(average.values["w"], weighted(weights, TREES), **CLOSE)
    assert average.updates == n


def test_debiased_ema_forgets_the_initial_values():
    n = len(REST)
    weights = np.array([0.9 ** (n - t) for t in range(1, n + 1)])
    average = average_of("ema_debiased").values["w"]
    np.testing.assert_allclose(average, weighted(weights / weights.sum(), REST), **CLOSE)
    np.testing.assert_allclose(
        average_of("ema_debiased", rest=REST[:1]).values["w"], REST[0], **CLOSE
    )


@pytest.mark.parametrize("averaging", ["ema_debiased", "cumulative"])
@pytest.mark.parametrize("initial", [np.nan, 1e30])
def test_initial_values_that_do_not_count_do_no_harm(averaging, initial):
    """Red where NaN stays, or the first values are lost in the rounding of large ones."""
    start = np.full_like(START, initial)
    first = average_of(averaging, rest=REST[:1], start=start).values["w"]
    np.testing.assert_array_equal(first, REST[0])
    later = [average_of(averaging, start=tree).values["w"] for tree in (start, START)]
    np.testing.assert_array_equal(*later)


def test_debiasing_a_decay_close_to_one():
    """Red for 1 - decay^t in float32 below the exact 1 - decay: off by 3 % at the first update."""
    average = average_of("ema_debiased", decay=0.999999, rest=REST[:3]).values["w"]
    np.testing.assert_allclose(average, np.mean(np.float64(REST[:3]), 0), rtol=1e-4, atol=1e-5)


def test_tensorflows_rule():
    """By its own recursion; the decay of 0.7 takes over at update 20."""
    shadow = np.float64(START)
    used = []
    for updates, tree in enumerate(REST, start=1):
        decay = min(0.7, (1 + updates) / (10 + updates))
        shadow -= (1 - decay) * (shadow - tree)
        used.append(decay)
    assert used[0] == 2 / 11
    assert used[18] < used[19] == used[-1] == 0.7
    average = average_of("ema_tensorflow", decay=0.7).values["w"]
    np.testing.assert_allclose(average, shadow, **CLOSE)


def test_polyaks_average_is_the_arithmetic_mean():
    np.testing.assert_allclose(
        average_of("cumulative").values["w"], np.mean(np.float64(REST), 0), **CLOSE
    )


def test_narrow_parameters_are_averaged_in_float32():
    """Red in bfloat16, where a change of 1e-4 is lost."""
    start = jnp.ones((3, 2), jnp.bfloat16)
    ahead = 2 * start
    average = average_of("ema", decay=0.9999, rest=[ahead] * 10, start=start).values["w"]
    assert average.dtype == jnp.float32
    np.testing.assert_allclose(average, 2 - 0.9999**10, rtol=1e-6)


def test_complex_numbers_are_averaged():
    """Both parts; red where they are taken over as counts are."""
    trees = [tree + 1j * tree[::-1] for tree in TREES]
    average = average_of("cumulative", rest=trees[1:], start=trees[0]).values["w"]
    assert average.dtype == jnp.complex64
    np.testing.assert_allclose(average, np.mean(np.complex128(trees[1:]), 0), **CLOSE)


def test_counts_are_taken_over():
    average = start_average({"count": jnp.int32(1)})
    average = update_average(average, {"count": jnp.int32(7)}, averaging="ema")
    assert average.values["count"] == 7
    assert average.values["count"].dtype == jnp.int32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"averaging": "polyak"}, r"averaging must be one of 'ema', .* got 'polyak'"),
        ({"averaging": "ema", "decay": 1.0}, r"decay must be in \[0, 1\), got 1.0"),
        ({"averaging": "ema", "decay": "0.9"}, r"decay must be a number, got '0.9'"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        update_average(start_average({"w": jnp.zeros(2)}), {"w": jnp.zeros(2)}, **options)


class Model(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(1, use_bias=False, name="dense")(x)
        return BatchNorm(not train, name="norm")(x)


def test_averaged_statistics_are_not_those_of_averaged_weights():
    """Weights w and -w: the mean ones give zeros, whose variance recalibration finds."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 2)), jnp.float32)
    model = Model()
    first = model.init(jax.random.key(0), x, train=False)
    average = None
    for sign in (1.0, -1.0):
        variables = jax.tree.map(lambda leaf: leaf, first)
        variables["params"]["dense"]["kernel"] = jnp.array([[sign], [2 * sign]])
        variables = recalibrate(model, variables, [x], train=True)
        average = start_average(variables) if average is None else average
        average = update_average(average, variables, averaging="cumulative")
    averaged = average.values["batch_stats"]["norm"]["var"]
    own = recalibrate(model, average.values, [x], train=True)["batch_stats"]["norm"]["var"]
    np.testing.assert_allclose(averaged, np.var(np.asarray(x) @ [1, 2], ddof=1)[None], rtol=1e-5)
    np.testing.assert_allclose(own, 0, atol=1e-6)


@pytest.mark.parametrize("leaf", [1.0, "w"])
def test_a_leaf_that_is_no_array_is_refused_by_its_path(leaf):
    kind = type(leaf).__name__
    with pytest.raises(ValueError, match=rf"tree\['w'\] must be an array, got {kind}"):
        start_average({"v": jnp.ones(2), "w": leaf})
    average = start_average({"v": jnp.ones(2), "w": jnp.ones(())})
    with pytest.raises(ValueError, match=rf"tree\['w'\] must be an array, got {kind}"):
        update_average(average, {"v": jnp.ones(2), "w": leaf}, averaging="ema")
