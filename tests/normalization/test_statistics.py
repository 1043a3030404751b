"""How statistics move: closed forms of each average, both variances, masks, dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import tolerances
from cases import train
from tolerances import assert_close, assert_trees_close

import bnjax

DECAY = 0.8
AVERAGING = ("ema", "ema_debiased", "cumulative")


def batches(count: int = 5) -> list[jax.Array]:
    """Batches of different means, variances and (two) sizes."""
    rng = np.random.default_rng(1)
    return [
        jnp.asarray(t + (1 + t) * rng.normal(size=(6 + t % 2, 3)), jnp.float32)
        for t in range(count)
    ]


def after(xs, averaging, *, decay=DECAY, **settings) -> dict[str, jax.Array]:
    stats = bnjax.init_stats(3, averaging=averaging)
    params = bnjax.init_params(3)
    for x in xs:
        _, stats = train(x, params, stats, averaging=averaging, decay=decay, **settings)
    return stats


@pytest.mark.parametrize("running_var", ["biased", "unbiased"])
@pytest.mark.parametrize("averaging", AVERAGING)
def test_averages_after_several_batches(averaging, running_var):
    """Red for an average off by one update, and for m of another batch in m/(m-1)."""
    stats = after(batches(), averaging, running_var=running_var)
    seen = [reference.forward(x, None, None) for x in batches()]
    for key, initial, values in (
        ("mean", 0.0, [batch.mean for batch in seen]),
        ("var", 1.0, [reference.running_variance(batch, running_var) for batch in seen]),
    ):
        expected = {
            "ema": reference.ema(values, initial, DECAY),
            "ema_debiased": reference.ema_debiased(values, DECAY),
            "cumulative": np.mean(values, axis=0),
        }[averaging]
        assert_close(stats[key], expected, {"rtol": 1e-6, "atol": 1e-6}, key)
    if averaging != "ema":
        np.testing.assert_array_equal(stats["count"], [5, 5, 5])


def test_the_numbers_of_one_step():
    """From (0, 1) on [0, 1, 2, 5]: the paper and torch say 1.3667, Flax 1.25, where Haiku's 3.5."""
    x = jnp.array([[0.0], [1.0], [2.0], [5.0]])
    params, stats = bnjax.init_params(1), bnjax.init_stats(1)

    def one_step(**settings):
        _, new = train(x, params, stats, decay=0.9, **settings)
        return [float(new["mean"][0]), float(new["var"][0])]

    exact = {"rtol": 1e-6, "atol": 0}
    assert_close(one_step(running_var="biased"), [0.2, 1.25], exact)
    assert_close(one_step(running_var="unbiased"), [0.2, 0.9 + 0.1 * 3.5 * 4 / 3], exact)
    assert_close(one_step(), [0.2, 0.9 + 0.1 * 3.5 * 4 / 3], exact)


@pytest.mark.parametrize(
    ("averaging", "decay"),
    [*(("ema_debiased", decay) for decay in (0.0, 0.9, 0.9999, 0.99999)), ("cumulative", 0.9)],
)
def test_the_first_update_forgets_the_initial_values(averaging, decay):
    """1 - decay^t computed as a difference is off by 1e-3 at the last decay, in float32."""
    x = batches()[1]
    stats = after([x], averaging, decay=decay, running_var="biased")
    _, moments = bnjax.batch_transform(x, {})
    assert_close(stats["mean"], moments.mean, {"rtol": 5e-7, "atol": 0})
    assert_close(stats["var"], moments.var, {"rtol": 5e-7, "atol": 0})


@pytest.mark.parametrize("averaging", ["ema_debiased", "cumulative"])
@pytest.mark.parametrize("initial", [np.nan, np.inf, -np.inf])
def test_the_first_update_forgets_whatever_they_are(averaging, initial):
    """Red for 0 * NaN; gradients with respect to the old statistics and the decay stay finite."""
    x, stats = batches()[1], bnjax.init_stats(3, averaging=averaging)
    spoilt = stats | {key: jnp.full(3, initial) for key in ("mean", "var")}
    _, moments = bnjax.batch_transform(x, {})

    @jax.jit
    def update(stats, decay):
        settings = {"averaging": averaging, "running_var": "biased"}
        return bnjax.update_stats(stats, moments, decay=decay, **settings)

    def total(averages, decay):
        new = update(averages | {"count": stats["count"]}, decay)
        return (new["mean"] + new["var"]).sum()

    new = update(spoilt, 0.9)
    for key in ("mean", "var"):
        assert_close(new[key], getattr(moments, key), {"rtol": 5e-7, "atol": 0}, key)
    averages = {key: spoilt[key] for key in ("mean", "var")}
    by_averages, by_decay = jax.grad(total, (0, 1))(averages, jnp.float32(0.9))
    assert_trees_close(
        by_averages, jax.tree.map(np.zeros_like, averages), {"rtol": 0, "atol": 1e-6}
    )
    assert np.isfinite(by_decay)
    _, kept = train(x, {}, spoilt, averaging=averaging, mask=jnp.zeros((7, 1), bool))
    jax.tree.map(np.testing.assert_array_equal, kept, spoilt)


@pytest.mark.parametrize("averaging", AVERAGING)
def test_statistics_wider_than_the_batch_keep_their_digits(x64, averaging):
    """Red where they are rounded to the batch's float32 before they are averaged.

    Quarters, of four examples: their moments are float32's exactly, by any program.
    """
    rng = np.random.default_rng(3)
    x, count = np.float32(rng.integers(-8, 8, (4, 3)) / 4), jnp.full(3, 4, jnp.int32)
    stats = {"mean": jnp.asarray(rng.normal(size=3)), "var": jnp.asarray(rng.uniform(size=3))}
    stats |= {} if averaging == "ema" else {"count": count}
    assert stats["mean"].dtype == jnp.float64
    settings = {"averaging": averaging, "decay": DECAY}
    _, kept = train(x, {}, stats, mask=jnp.zeros((4, 1), bool), **settings)
    jax.tree.map(np.testing.assert_array_equal, kept, stats)
    _, new = train(x, {}, stats, running_var="biased", **settings)
    weight = {"ema": 1 - DECAY, "cumulative": 1 / 5}.get(averaging, (1 - DECAY) / (1 - DECAY**5))
    for key, batch in (("mean", np.float64(x).mean(0)), ("var", np.float64(x).var(0))):
        expected = (1 - weight) * np.asarray(stats[key]) + weight * batch
        assert new[key].dtype == jnp.float64
        assert_close(new[key], expected, {"rtol": 1e-14, "atol": 1e-15}, key)


def test_debiased_weights_of_a_decay_close_to_one():
    """Then the average is the mean, almost."""
    stats = after(batches(4), "ema_debiased", decay=0.99999, running_var="biased")
    seen = [reference.forward(x, None, None).mean for x in batches(4)]
    assert_close(stats["mean"], reference.ema_debiased(seen, 0.99999), {"rtol": 1e-5, "atol": 1e-6})


def test_cumulative_ignores_decay():
    several = [after(batches(3), "cumulative", decay=decay) for decay in (0.0, 0.5)]
    jax.tree.map(np.testing.assert_array_equal, *several)


def test_decay_zero_keeps_nothing():
    stats = after(batches(3), "ema", decay=0.0, running_var="biased")
    last = reference.forward(batches(3)[-1], None, None)
    assert_close(stats["mean"], last.mean, tolerances.mean(10))
    assert_close(stats["var"], last.var, tolerances.variance())


@pytest.mark.parametrize("averaging", AVERAGING)
@pytest.mark.parametrize("steps", [0, 2])
def test_a_batch_that_is_masked_as_a_whole_keeps_the_statistics(averaging, steps):
    """Bitwise, and the count: red if the update is weighted by zero after 0/0."""
    stats = after(batches(steps), averaging)
    x, mask = jnp.full((4, 3), jnp.nan), jnp.zeros((4, 1), bool)
    y, new = train(x, {}, stats, mask=mask, averaging=averaging)
    assert set(new) == set(stats)
    jax.tree.map(np.testing.assert_array_equal, new, stats)
    np.testing.assert_array_equal(y, 0)


@pytest.mark.parametrize("averaging", AVERAGING)
def test_each_feature_counts_its_own_updates(averaging):
    """A feature without a value keeps its statistics; when one comes, its average begins there.

    Red if all features share a count: the initial values then stay in a debiased average.
    """
    seen, unseen = batches(2)[0], batches(3)[2]
    stats = bnjax.init_stats(3, averaging=averaging)
    settings = {"averaging": averaging, "decay": DECAY}
    mask = jnp.array([[True, False, True]])
    _, once = train(seen, {}, stats, mask=mask, **settings)
    for key in stats:
        assert once[key][1] == stats[key][1]
    _, twice = train(unseen, {}, once, mask=~mask, **settings)
    expected = [train(x, {}, stats, **settings)[1] for x in (seen, unseen, seen)]
    for key in stats:
        alone = [new[key][feature] for feature, new in enumerate(expected)]
        np.testing.assert_allclose(twice[key], alone, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("averaging", AVERAGING)
def test_structure_and_dtypes_stay(averaging, dtype):
    """So that statistics can be the carry of a scan; narrow ones are made as float32."""
    stats = bnjax.init_stats((2, 3), averaging=averaging, dtype=dtype)
    x = jnp.ones((4, 2, 3)).at[0].set(3.0).astype(jnp.bfloat16)
    _, new = train(x, {}, stats, axis=(1, 2), averaging=averaging)
    described = [jax.tree.map(lambda a: (a.shape, a.dtype), tree) for tree in (stats, new)]
    assert described[0] == described[1]
    assert new["mean"].dtype == jnp.float32
    assert float(new["mean"][0, 0]) > 0


def test_bfloat16_statistics_are_averaged_in_float32():
    """And rounded once: (1 - w) old + w new in bfloat16 would be off by several roundings."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(3, 1, size=(32, 64)), jnp.float32)
    stats = {"mean": jnp.asarray(rng.normal(size=64), jnp.bfloat16)}
    stats["var"] = jnp.asarray(rng.uniform(1, 2, 64), jnp.bfloat16)
    _, new = train(x, {}, stats, decay=0.7, running_var="biased")
    batch = reference.forward(x, None, None)
    for key in ("mean", "var"):
        expected = reference.ema([getattr(batch, key)], stats[key], 0.7)
        assert_close(new[key], expected, tolerances.output(jnp.bfloat16), key)


def test_the_unbiased_variance_uses_each_features_own_count():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)
    mask = jnp.asarray(np.arange(8)[:, None] < np.array([8, 4, 2]))
    _, new = train(x, {}, bnjax.init_stats(3), mask=mask, decay=0.0)
    expected = [np.var(np.float64(x[:n, f]), ddof=1) for f, n in enumerate((8, 4, 2))]
    assert_close(new["var"], expected, tolerances.variance())


def test_update_stats_is_what_normalize_batch_does():
    x = batches()[2]
    params, stats = bnjax.init_params(3), bnjax.init_stats(3, averaging="cumulative")
    y, new = train(x, params, stats, averaging="cumulative")
    z, moments = bnjax.batch_transform(x, params)
    parts = bnjax.update_stats(stats, moments, averaging="cumulative")
    # In one program or in several: XLA may round otherwise.
    assert_close(y, z, tolerances.output("float32"))
    assert_trees_close(new, parts, tolerances.variance())


def test_initial_values():
    params = bnjax.init_params((2, 3), dtype=jnp.bfloat16)
    np.testing.assert_array_equal(params["scale"], np.ones((2, 3)))
    np.testing.assert_array_equal(params["bias"], np.zeros((2, 3)))
    assert params["scale"].dtype == params["bias"].dtype == jnp.bfloat16
    assert set(bnjax.init_params(2, use_scale=False)) == {"bias"}
    assert set(bnjax.init_params(2, use_bias=False)) == {"scale"}
    stats = bnjax.init_stats(4, averaging="ema_debiased")
    np.testing.assert_array_equal(stats["mean"], np.zeros(4))
    np.testing.assert_array_equal(stats["var"], np.ones(4))
    np.testing.assert_array_equal(stats["count"], np.zeros(4))
    assert set(bnjax.init_stats(4)) == {"mean", "var"}


def test_training_statistics_of_another_average_keep_their_count():
    """A count that is not needed is carried along, not dropped: the structure stays."""
    stats = bnjax.init_stats(3, averaging="cumulative")
    _, new = train(batches()[0], {}, stats, averaging="ema")
    assert set(new) == set(stats)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("decay", [0.99, 0.999])
def test_narrow_statistics_do_not_stick(dtype, decay):
    """In bfloat16 an average with decay 0.999 would stop at a mean of 2.8."""
    x = jnp.asarray(np.random.default_rng(0).normal(10, 3, (512, 4)), "float32")
    start = jax.tree.map(lambda a: a.astype(dtype), bnjax.init_stats(4))
    step = jax.jit(lambda stats: bnjax.normalize_batch(x, {}, stats, decay=decay)[1])
    stats = step(start)
    assert stats["mean"].dtype == stats["var"].dtype == jnp.float32
    steps = int(8 / (1 - decay))
    stats = jax.jit(lambda stats: jax.lax.fori_loop(1, steps, lambda _, s: step(s), stats))(stats)
    true = np.asarray(x, np.float64)
    np.testing.assert_allclose(stats["mean"], true.mean(0), rtol=1e-3)
    np.testing.assert_allclose(stats["var"], true.var(0, ddof=1), rtol=1e-3)


@pytest.mark.parametrize("averaging", ["ema", "ema_debiased", "cumulative"])
def test_a_traced_decay(averaging):
    x = jnp.asarray(np.random.default_rng(0).normal(1, 2, (16, 4)), "float32")
    stats = bnjax.init_stats(4, averaging=averaging)

    @jax.jit
    def update(decay):
        return bnjax.normalize_batch(x, {}, stats, decay=decay, averaging=averaging)[1]

    expected = bnjax.normalize_batch(x, {}, stats, decay=0.9, averaging=averaging)[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), update(0.9), expected)
