"""Under JAX's transformations: one trace, one value, no second update."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tolerances
from marks import slow
from tolerances import assert_close

import bnjax

IMPLS = ("fused", "autodiff")


def test_jit_traces_once_for_all_batches():
    traces = 0

    @jax.jit
    def step(x, params, stats):
        nonlocal traces
        traces += 1
        return bnjax.normalize_batch(x, params, stats, averaging="ema_debiased")

    case = cases.make("dense")
    stats = bnjax.init_stats(5, averaging="ema_debiased")
    for shift in range(4):
        _, stats = step(case.x + shift, case.params, stats)
    assert traces == 1
    np.testing.assert_array_equal(stats["count"], np.full(5, 4))


@pytest.mark.parametrize(
    ("impl", "settings"),
    [slow("fused", {}), slow("autodiff", {}), ("fused", {"batch": 6, "activation": "sigmoid"})],
)
def test_vmap_over_members_of_an_ensemble(impl, settings):
    """Each member has parameters and statistics of its own, and a batch of its own."""
    members = [cases.make("dense"), cases.make("dense")]
    members[1] = members[1]._replace(
        x=3 * members[1].x + 1, params=jax.tree.map(lambda p: p + 1, members[1].params)
    )
    stats = bnjax.init_stats(5)

    def member(x, params, weights):
        def loss(x, params):
            y, new = bnjax.normalize_batch(x, params, stats, impl=impl, **settings)
            return jnp.sum(weights * y), (y, new)

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(x, params)

    inputs = [(m.x, m.params, m.weights) for m in members]
    together = jax.jit(jax.vmap(member))(*jax.tree.map(lambda *a: jnp.stack(a), *inputs))
    for index, arguments in enumerate(inputs):
        alone = jax.jit(member)(*arguments)
        one = jax.tree.map(lambda leaf, i=index: leaf[i], together)
        jax.tree.map(lambda a, b: assert_close(a, b, tolerances.PARALLEL), one, alone)
    assert np.abs(together[1][0][0] - together[1][0][1]).max() > 0.1


@pytest.mark.parametrize("impl", IMPLS)
def test_checkpoint_updates_the_statistics_once(impl):
    """Recomputation in the backward pass must not show: values bitwise, gradients to rounding."""
    case = cases.make("channels_last")
    stats = bnjax.init_stats(5, averaging="cumulative")

    def layer(x, params):
        return bnjax.normalize_batch(x, params, stats, averaging="cumulative", impl=impl)

    def loss(layer):
        def of(x, params):
            y, new = layer(x, params)
            return jnp.sum(case.weights * jnp.tanh(y)), new

        return jax.jit(jax.grad(of, argnums=(0, 1), has_aux=True))(case.x, case.params)

    grads, new = loss(layer)
    again, recomputed = loss(jax.checkpoint(layer))
    jax.tree.map(np.testing.assert_array_equal, recomputed, new)
    jax.tree.map(lambda a, b: assert_close(a, b, tolerances.PARALLEL), again, grads)
    np.testing.assert_array_equal(new["count"], np.ones(5))


@pytest.mark.parametrize("averaging", ["ema", "ema_debiased", "cumulative"])
def test_scan_equals_the_loop(averaging):
    """Statistics are the carry; XLA may round a step in a loop otherwise than alone, once."""
    x = jnp.stack([cases.make("dense").x + shift for shift in range(5)])
    stats = bnjax.init_stats(5, averaging=averaging)

    @jax.jit
    def step(stats, x):
        y, stats = bnjax.normalize_batch(x, {}, stats, averaging=averaging)
        return stats, y

    scanned, ys = jax.lax.scan(step, stats, x)
    for batch, expected in zip(x, ys, strict=True):
        stats, y = step(stats, batch)
        np.testing.assert_allclose(y, expected, rtol=0, atol=4e-7)
    for key, value in stats.items():
        np.testing.assert_allclose(scanned[key], value, rtol=2**-22)


def test_accumulated_gradients_are_those_of_groups():
    """A scan over micro-batches of k: gradients add up to those of `batch=k`, and so do moments.

    The statistics move once for each micro-batch, where `batch=k` moves them once by the mean.
    """
    case, k, decay = cases.make("dense"), 4, 0.5
    stats = bnjax.init_stats(5, averaging="cumulative")

    def loss(params, x, weights, stats, **settings):
        settings |= {"averaging": "cumulative", "activation": "sigmoid", "decay": decay}
        y, new = bnjax.normalize_batch(x, params, stats, **settings)
        return jnp.sum(weights * y), new

    @jax.jit
    def accumulated(params, x, weights, stats):
        def micro(carry, batch):
            total, stats = carry
            grads, stats = jax.grad(loss, has_aux=True)(params, *batch, stats)
            return (jax.tree.map(jnp.add, total, grads), stats), None

        batches = tuple(a.reshape(-1, k, 5) for a in (x, weights))
        zeros = jax.tree.map(jnp.zeros_like, params)
        return jax.lax.scan(micro, (zeros, stats), batches)[0]

    grads, new = accumulated(case.params, case.x, case.weights, stats)
    whole, once = jax.jit(lambda *a: jax.grad(lambda *b: loss(*b, batch=k), has_aux=True)(*a))(
        case.params, case.x, case.weights, stats
    )
    jax.tree.map(lambda a, b: assert_close(a, np.float64(b), tolerances.PARALLEL), grads, whole)
    np.testing.assert_array_equal(new["count"], np.full(5, 16 // k))
    np.testing.assert_array_equal(once["count"], np.ones(5))
    for key in ("mean", "var"):  # of groups of one size, the mean of means is the pooled mean
        assert_close(new[key], np.float64(once[key]), tolerances.PARALLEL, key)


def test_bfloat16_parameters_stay_bfloat16():
    """Through training, its gradients and inference; the averages alone are float32."""
    case = cases.make("dense", dtype="bfloat16", params_dtype="bfloat16")

    def step(x, params, stats):
        def loss(params):
            y, new = bnjax.normalize_batch(x, params, stats, batch=8, activation="relu")
            return jnp.sum(y.astype(jnp.float32)), (y, new)

        grads, (y, new) = jax.grad(loss, has_aux=True)(params)
        updated = jax.tree.map(lambda p, g: p - g, params, grads)
        return (y, updated, bnjax.normalize_population(x, updated, new)), new

    results, new = jax.eval_shape(step, case.x, case.params, case.stats)
    assert {leaf.dtype for leaf in jax.tree.leaves(results)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype(jnp.float32)}


def test_eval_shape_allocates_nothing():
    x = jax.ShapeDtypeStruct((64, 32, 32, 16), jnp.bfloat16)
    params = jax.eval_shape(lambda: bnjax.init_params(16))
    stats = jax.eval_shape(lambda: bnjax.init_stats(16, averaging="cumulative"))

    def step(x, params, stats):
        return bnjax.normalize_batch(x, params, stats, averaging="cumulative")

    y, new = jax.eval_shape(step, x, params, stats)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert new == stats
    y = jax.eval_shape(bnjax.normalize_population, x, params, stats)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)


def test_no_tracer_leaks():
    case = cases.make("dense", mask="nan")

    def step(x, params, stats):
        def loss(x, params):
            y, new = bnjax.normalize_batch(x, params, stats, mask=case.mask)
            return jnp.sum(case.weights * y), new

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(x, params)

    with jax.checking_leaks():
        grads, _ = jax.jit(step)(case.x, case.params, case.stats)
    assert np.isfinite(grads[0]).all()
