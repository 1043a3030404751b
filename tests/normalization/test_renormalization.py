"""Batch renormalization against Algorithm 1 of Ioffe 2017 in float64, and against what it bounds.

Gradients are compared with finite differences of the reference with r and d held still: an
implementation that let a gradient through them would differ.
"""

import re
from functools import partial

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import tolerances
from eight_devices import (
    DECAY,
    DEVICES,
    EPSILON,
    JITTED,
    MAPPED,
    layer,
    make,
    mesh,
    rows_of,
    run,
)
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads
from tolerances import EXACT, PARALLEL, assert_bitwise, assert_close, assert_trees_close

import bnjax
from bnjax.normalization import renorm_limits, renormalize_batch

SOME = {"r_max": 1.3, "d_max": 0.4}
"""Limits that the cases reach in some features and not in others."""
NONE = {"r_max": np.inf, "d_max": np.inf}
BATCH_NORM = {"r_max": 1.0, "d_max": 0.0}

renormalize = jax.jit(renormalize_batch, static_argnames=cases.TRAIN_SETTINGS)


def loss(x, params, stats, weights, mask=None, **settings):
    y, _ = renormalize_batch(x, params, stats, mask=mask, epsilon=EPSILON, **settings)
    return jnp.sum(weights * y)


gradient = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnames=("axis", "impl", "batch"))


def correction(case, mask=None, **limits):
    stats = case.stats["mean"], case.stats["var"]
    return reference.correction(
        case.x, *stats, axis=case.axis, epsilon=EPSILON, mask=mask, **limits
    )


@pytest.mark.parametrize("limits", [SOME, NONE])
@pytest.mark.parametrize(
    ("layout", "mask"),
    [("dense", "nan"), ("channels_first", "none"), ("per_activation", "position")],
)
def test_values_are_those_of_algorithm_1(x64, layout, mask, limits):
    """Red for d over sigma_B, for r turned over, or for limits that are not applied."""
    case = cases.make(layout, mask=mask, dtype="float64")
    settings = {"axis": case.axis, "epsilon": EPSILON}
    y, stats = renormalize(case.x, case.params, case.stats, mask=case.mask, **settings, **limits)
    r, d = correction(case, case.mask, **limits)
    reached = (np.isin(r, [1 / 1.3, 1.3]) | (np.abs(d) == 0.4)).mean()
    assert 0 < reached < 1 if limits is SOME else reached == 0
    expected = reference.renormalize(case.x, **case.params, r=r, d=d, mask=case.mask, **settings)
    assert_close(y, expected, EXACT)
    _, moved = cases.train(case.x, case.params, case.stats, mask=case.mask, **settings)
    assert_bitwise(stats, moved)


def test_without_limits_training_sees_what_inference_sees(x64):
    case = cases.make("channels_last", dtype="float64")
    y, _ = renormalize(case.x, case.params, case.stats, **NONE)
    assert_close(y, cases.infer(case.x, case.params, case.stats), EXACT)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_with_limits_of_one_and_zero_it_is_batch_normalization(dtype):
    """Values and statistics bitwise, gradients to rounding."""
    case = cases.make("channels_first", mask="nan", dtype=dtype)
    arguments = case.x, case.params, case.stats
    settings = {"axis": case.axis, "activation": "relu"}
    assert_bitwise(
        renormalize(*arguments, mask=case.mask, **settings, **BATCH_NORM),
        cases.train(*arguments, mask=case.mask, **settings),
    )
    weights, axis = case.weights.astype(dtype), case.axis
    dx, dparams = gradient(*arguments, weights, case.mask, axis=axis, **BATCH_NORM)
    expected = reference.backward(
        weights, case.x, case.params["scale"], axis=axis, epsilon=EPSILON, mask=case.mask
    )
    assert_close(dx, expected.dx, tolerances.gradient(dtype))
    assert_close(dparams["scale"], expected.dscale, tolerances.gradient(dtype))


@pytest.mark.parametrize(
    ("impl", "mask", "limits"),
    [
        ("fused", "none", SOME),
        ("fused", "nan", SOME),
        ("fused", "nan", NONE),
        ("autodiff", "nan", SOME),
    ],
)
def test_gradients_by_finite_differences_with_r_and_d_held_still(x64, impl, mask, limits):
    """Red if a gradient flows through r or d, or does not reach scale and bias through them."""
    case = cases.make("dense", mask=mask, dtype="float64")
    dx, dparams = gradient(
        case.x, case.params, case.stats, case.weights, case.mask, impl=impl, **limits
    )
    r, d = correction(case, case.mask, **limits)

    def at(x, scale, bias):
        y = reference.renormalize(x, scale, bias, r, d, epsilon=EPSILON, mask=case.mask)
        return np.sum(np.asarray(case.weights) * y)

    point = [np.asarray(a) for a in (case.x, case.params["scale"], case.params["bias"])]
    for i, actual in enumerate((dx, dparams["scale"], dparams["bias"])):
        expected = np.zeros(point[i].shape)
        for place in np.ndindex(expected.shape):
            step = np.zeros(expected.shape)
            step[place] = 1e-5
            ends = ([*point[:i], point[i] + s * step, *point[i + 1 :]] for s in (1, -1))
            ahead, behind = (at(*end) for end in ends)
            expected[place] = (ahead - behind) / 2e-5
        # Central differences of 1e-5: 1e-10 times a third derivative, and 1e-16 / 1e-5.
        assert_close(actual, expected, {"rtol": 1e-7, "atol": 1e-8})


def test_statistics_and_limits_have_no_gradient():
    case = cases.make("dense")

    @jax.jit
    @partial(jax.grad, argnums=(0, 1))
    def of(stats, limits):
        return loss(case.x, case.params, stats, case.weights, **limits)

    for leaf in jax.tree.leaves(of(case.stats, SOME)):
        np.testing.assert_array_equal(leaf, 0)


def test_second_derivatives_where_all_is_clipped(x64):
    """There r and d are constants indeed, so that differences of the function itself hold."""
    case = cases.make("dense", mask="position", dtype="float64")
    tight = {"r_max": 1.01, "d_max": 0.01}
    r, d = correction(case, case.mask, **tight)
    assert np.isin(r, [1 / 1.01, 1.01]).all()
    assert (np.abs(d) == 0.01).all()

    @jax.jit
    def f(x):
        return loss(x, case.params, case.stats, case.weights, case.mask, **tight)

    check_grads(f, (case.x,), order=2, modes=["rev"])


@pytest.mark.parametrize("keys", [("scale",), ("bias",), ()])
def test_without_scale_or_bias(x64, keys):
    case = cases.make("dense", dtype="float64")
    params = {key: case.params[key] for key in keys}
    y, _ = renormalize(case.x, params, case.stats, epsilon=EPSILON, **SOME)
    r, d = correction(case, **SOME)
    scale, bias = params.get("scale"), params.get("bias")
    assert_close(y, reference.renormalize(case.x, scale, bias, r, d, epsilon=EPSILON), EXACT)
    dx, dparams = gradient(case.x, params, case.stats, case.weights, **SOME)
    factor = r if scale is None else r * np.asarray(scale)
    expected = reference.backward(case.weights, case.x, factor, epsilon=EPSILON)
    assert_close(dx, expected.dx, EXACT)
    assert set(dparams) == set(keys)


@pytest.mark.parametrize("averaging", ["ema", "ema_debiased", "cumulative"])
def test_statistics_without_an_update_are_not_used(averaging):
    """With a count. Without one, the initial mean and variance are taken for the population's."""
    case = cases.make("dense")
    settings = {"averaging": averaging}
    fresh = bnjax.init_stats(5, averaging=averaging)
    y, stats = renormalize(case.x, case.params, fresh, **NONE, **settings)
    seen = fresh if averaging == "ema" else stats  # then one batch's, moved there in one go
    again, _ = renormalize(case.x, case.params, seen, **NONE, **settings)
    expected = cases.infer(case.x, case.params, seen)
    assert_close(again, np.float64(expected), PARALLEL)
    if averaging == "ema":
        assert_close(y, np.float64(expected), PARALLEL)
    else:
        assert_bitwise(y, cases.train(case.x, case.params, fresh, **settings)[0])


def test_features_that_are_masked_as_a_whole_are_not_corrected():
    case = cases.make("dense", mask="nan")
    nothing = jnp.zeros((16, 1), bool)
    arguments = case.x, case.params, case.stats
    y, stats = renormalize(*arguments, mask=nothing, **SOME)
    assert_bitwise((y, stats), cases.train(*arguments, mask=nothing))


def test_each_group_has_its_own_correction():
    case = cases.make("dense")  # 16 examples: groups of 6, 6 and 4
    arguments = case.params, case.stats
    y, stats = renormalize(case.x, *arguments, batch=6, **SOME)
    parts = [renormalize(case.x[i : i + 6], *arguments, **SOME)[0] for i in (0, 6, 12)]
    assert_close(y, np.float64(np.concatenate(parts)), PARALLEL)
    assert_bitwise(stats, cases.train(case.x, *arguments, batch=6)[1])


EXPLICIT = "explicit mesh"


@pytest.mark.parametrize("how", [*MAPPED, *JITTED, EXPLICIT])
def test_eight_devices_are_one(how):
    """Red if r and d are those of a device's own examples, or gradients are summed otherwise."""
    case = make(masked=True)
    settings = {"normalize": renormalize_batch, **SOME}
    if how in MAPPED:
        settings["axis_name"] = "data"
    if how == EXPLICIT:
        with jax.set_mesh(jax.make_mesh((DEVICES,), ("data",), (AxisType.Explicit,))):
            flat = [a.reshape(-1, a.shape[-1]) for a in (case.x, case.weights, case.mask)]
            rows = jax.device_put(flat, P("data"))
            f = partial(layer, **settings)
            y, stats, dx, dparams = jax.jit(f)(*rows, case.params, case.stats)
    else:
        y, stats, dx, dparams = run(how, case, **settings)

    x, mask, weights = map(rows_of, (case.x, case.mask, case.weights))
    known = {"epsilon": EPSILON, "mask": mask}
    r, d = reference.correction(x, case.stats["mean"], case.stats["var"], **SOME, **known)
    assert_close(rows_of(y), reference.renormalize(x, **case.params, r=r, d=d, **known), PARALLEL)
    expected = reference.backward(weights, x, r * np.asarray(case.params["scale"]), **known)
    assert_close(rows_of(dx), expected.dx, PARALLEL)
    assert_close(dparams["scale"], r * expected.dscale + d * expected.dbias, PARALLEL)
    assert_close(dparams["bias"], expected.dbias, PARALLEL)
    batch = reference.forward(x, None, None, **known)
    moved = reference.ema([batch.mean], case.stats["mean"], DECAY)
    assert_close(np.asarray(stats["mean"]).reshape(-1, 4)[0], moved, PARALLEL)


@pytest.mark.parametrize("mapped", [False, True])
def test_moments_are_taken_once(mapped):
    """XLA merges those of the correction with those of the transform: sums and collectives alike.

    Red if they differ by anything, such as the type of `x`.
    """
    case, axis_name = make(masked=False), "data" if mapped else None
    given = (case.x.reshape(-1, 4), case.weights.reshape(-1, 4), case.params, case.stats)

    def counts(normalize, **settings):
        def both(x, weights, params, stats):
            f = partial(normalize, stats=stats, axis_name=axis_name, **settings)
            y, pullback, new = jax.vjp(lambda x, params: f(x, params), x, params, has_aux=True)
            return y, new, pullback(weights)

        if mapped:
            rows, same = P("data"), P()
            both = jax.shard_map(
                both,
                mesh=mesh(DEVICES),
                in_specs=(rows, rows, same, same),
                out_specs=(rows, same, (rows, same)),
            )
        program = jax.jit(both).lower(*given).compile().as_text()
        kinds = ("reduce", "all-gather", "all-reduce")
        return [len(re.findall(rf" {kind}(?:-start)?\(", program)) for kind in kinds]

    assert counts(renormalize_batch, **SOME) == counts(bnjax.normalize_batch)


def test_scan_over_steps_with_a_schedule_equals_the_loop():
    x = jnp.stack([cases.make("dense").x + shift for shift in range(4)])
    stats = bnjax.init_stats(5, averaging="ema_debiased")

    @jax.jit
    def step(stats, numbered):
        number, x = numbered
        r_max, d_max = renorm_limits(number, start=1, r_end=4, d_end=3)
        y, stats = renormalize_batch(
            x, {}, stats, r_max=r_max, d_max=d_max, decay=0.5, averaging="ema_debiased"
        )
        return stats, y

    scanned, ys = jax.lax.scan(step, stats, (jnp.arange(4), x))
    for number, batch in enumerate(x):
        before = stats
        stats, y = step(stats, (number, batch))
        assert_close(ys[number], np.float64(y), PARALLEL)
    assert_trees_close(scanned, stats, PARALLEL)
    plain, _ = cases.train(x[3], {}, before)
    assert np.abs(ys[3] - plain).max() > 0.1


def test_vmap_and_checkpoint_leave_values_and_gradients():
    """Members that differ in limits and statistics; recomputation in the backward pass."""
    case = cases.make("dense")
    limits = {"r_max": jnp.array([1.0, 1.3, 3.0]), "d_max": jnp.array([0.0, 0.4, 5.0])}
    means = jnp.stack([case.stats["mean"] + i for i in range(3)])

    def member(x, mean, limits, wrap=lambda f: f):
        def of(x, params):
            stats = {"mean": mean, "var": case.stats["var"]}
            y, new = wrap(partial(renormalize_batch, **limits))(x, params, stats)
            return jnp.sum(case.weights * jnp.tanh(y)), new

        return jax.grad(of, argnums=(0, 1), has_aux=True)(x, case.params)

    together = jax.jit(jax.vmap(member, in_axes=(None, 0, 0)))(case.x, means, limits)
    wrapped = jax.jit(partial(member, wrap=jax.checkpoint))
    for i in range(3):
        alone = wrapped(case.x, means[i], {key: value[i] for key, value in limits.items()})
        one = jax.tree.map(lambda leaf, i=i: leaf[i], together)
        assert_trees_close(one, jax.tree.map(np.float64, alone), PARALLEL)


def test_the_schedule_is_the_papers():
    """Section 4: 1 and 0 for 5,000 steps; r_max 3 at 40,000; d_max 5 at 25,000."""
    steps = jnp.array([0, 5_000, 15_000, 22_500, 25_000, 40_000, 10**7])
    r_max, d_max = jax.vmap(renorm_limits)(steps)
    np.testing.assert_allclose(r_max, [1, 1, 1 + 4 / 7, 2, 1 + 8 / 7, 3, 3], rtol=1e-6)
    np.testing.assert_allclose(d_max, [0, 0, 2.5, 4.375, 5, 5, 5], rtol=1e-6)
    np.testing.assert_allclose(renorm_limits(3, start=2, r_end=4, d_end=6, r_max=2), [1.5, 1.25])


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"r_max": 0.9}, "r_max must be >= 1, got 0.9"),
        ({"r_max": float("nan")}, "r_max must be >= 1, got nan"),
        ({"r_max": jnp.float32(0.5)}, "r_max must be >= 1, got 0.5"),
        ({"r_max": jnp.ones(5)}, "r_max must be a number"),
        ({"r_max": "3"}, "r_max must be a number, got '3'"),
        ({"r_max": True}, "r_max must be a number, got True"),
        ({"d_max": -0.1}, "d_max must be >= 0, got -0.1"),
        ({"d_max": float("nan")}, "d_max must be >= 0, got nan"),
        ({"d_max": None}, "d_max must be a number, got None"),
    ],
)
def test_bad_limits_are_refused_by_name(limits, message):
    case = cases.make("dense")
    with pytest.raises(ValueError, match=message):
        renormalize_batch(case.x, case.params, case.stats, **SOME | limits)
    if "None" not in message:
        with pytest.raises(ValueError, match=message):
            renorm_limits(0, **limits)


def test_other_mistakes_are_those_of_normalize_batch():
    case = cases.make("dense")
    for changes, message in (
        ({"averaging": "cumulative"}, r"averaging='cumulative' needs stats\['count'\]"),
        ({"decay": 1.0}, "decay must be in"),
        ({"mask": jnp.ones(16)}, "mask must be bool"),
    ):
        with pytest.raises(ValueError, match=message):
            renormalize_batch(case.x, case.params, case.stats, **SOME, **changes)
    with pytest.raises(ValueError, match="r_end=40000 and d_end=9 must be after start=10"):
        renorm_limits(0, start=10, d_end=9)
    with pytest.raises(ValueError, match=r"r_max=inf and d_max=5.0 must be finite"):
        renorm_limits(0, r_max=np.inf)
