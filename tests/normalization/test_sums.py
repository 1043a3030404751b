"""Large arrays, which are summed in another way on CPU: by slices, as complex numbers.

The sums are tested by themselves, and then the layer, against float64.
"""

import contextlib
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from eight_devices import mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from marks import slow
from tolerances import EXACT, PARALLEL, assert_close

import bnjax
from bnjax.normalization.fast.sums import pair_of_sums

LAST, FIRST = (0, 1, 2), (0, 2, 3)
MEANS = {"rtol": 0, "atol": 2e-6}
"""Means of some ten thousand float32 values of size one differ less; a lost slice is 1e-2."""

SHAPES = {  # and the number of slices, of one row each up to 64 rows
    "rows": ((16, 14, 16, 32), LAST, 14),
    "64 rows": ((8, 64, 5, 32), LAST, 64),
    "prime rows": ((16, 13, 11, 32), LAST, 13),
    "8 slices": ((8, 72, 4, 32), LAST, 8),
    "7 slices": ((8, 70, 4, 32), LAST, 7),
    "6 slices": ((8, 66, 4, 32), LAST, 6),
    "5 slices": ((8, 65, 4, 32), LAST, 5),
    "4 slices": ((8, 68, 4, 32), LAST, 4),
    "3 slices": ((8, 69, 4, 32), LAST, 3),
    "2 slices": ((8, 74, 4, 32), LAST, 2),
    "a prime height": ((4, 67, 12, 32), LAST, 6),
    "primes": ((4, 67, 11, 32), LAST, 1),
    "channels first": ((16, 32, 12, 14), FIRST, 12),
    "sequence": ((32, 64, 32), (0, 1), 64),
    "long sequence": ((16, 72, 64), (0, 1), 8),
    "no positions": ((1024, 80), (0,), 1),
    "features first": ((32, 64, 64), (1, 2), 64),
    "small": ((4, 8, 4, 3), LAST, 1),
}


def values(shape, seed=0) -> np.ndarray:
    return np.float32(0.3 + np.random.default_rng(seed).normal(size=shape))


def terms(x, weights):
    return weights * x, weights * x**2


@pytest.mark.parametrize("name", SHAPES)
def test_sums_match_float64(name):
    """Whatever the number of slices. Red if one is lost, or the two sums change places."""
    shape, axes, number = SHAPES[name]
    x, weights = values(shape), values(shape, 1)
    lowered = jax.jit(lambda *arrays: pair_of_sums(terms, arrays, axes)).lower(x, weights)
    assert lowered.as_text().count("stablehlo.complex ") == (number if number > 1 else 0)
    program = lowered.compile()
    first, second = program(x, weights)
    exact_x, exact_weights = np.float64(x), np.float64(weights)
    count = math.prod(shape[a] for a in axes)
    assert_close(first / count, (exact_weights * exact_x).mean(axes), MEANS)
    assert_close(second / count, (exact_weights * exact_x**2).mean(axes), MEANS)


SHAPE = (16, 14, 10, 32)
X, WEIGHTS = values(SHAPE), values(SHAPE, 1)
COUNT = X.size // 32


def means(x, weights):
    """Both means of each feature, in one array."""
    return jnp.stack(pair_of_sums(terms, (x, weights), LAST)) / COUNT


def test_sums_have_derivatives():
    """Forward, reverse, and forward over reverse: through slices, windows and parts of numbers."""
    x, tangent, weights = np.float64(X), np.float64(values(SHAPE, 2)), np.float64(WEIGHTS)
    mix = np.random.default_rng(3).normal(size=(2, 32)).astype(np.float32)

    def loss(x):
        return jnp.sum(mix * means(x, WEIGHTS))

    @jax.jit
    def derivatives(x, tangent):
        forward = jax.jvp(lambda x: means(x, WEIGHTS), (x,), (tangent,))[1]
        return forward, *jax.jvp(jax.grad(loss), (x,), (tangent,))

    forward, gradient, second = derivatives(X, tangent.astype(np.float32))
    assert_close(forward[0], (weights * tangent).mean(LAST), MEANS)
    assert_close(forward[1], (2 * weights * x * tangent).mean(LAST), {"rtol": 0, "atol": 4e-6})
    exact = {"rtol": 1e-5, "atol": 1e-9}
    assert_close(gradient, (mix[0] + 2 * mix[1] * x) * weights / COUNT, exact)
    assert_close(second, 2 * mix[1] * weights * tangent / COUNT, exact)


@pytest.mark.parametrize("how", ["vmap", "scan", "shard_map", "typed shard_map"])
def test_sums_under_a_transformation(how):
    """Two batches, each twice, one after the other or side by side."""
    xs = np.stack([X, 2 * X])
    each = {
        "vmap": jax.vmap(lambda x: means(x, WEIGHTS)),
        "scan": lambda xs: jax.lax.scan(lambda c, x: (c, means(x, WEIGHTS)), 0, xs)[1],
        **{
            name: jax.shard_map(
                lambda x: means(x[0], WEIGHTS)[None],
                mesh=jax.make_mesh((2,), ("data",), (jax.sharding.AxisType.Auto,)),
                in_specs=P("data"),
                out_specs=P("data"),
                check_vma=name != "shard_map",
            )
            for name in ("shard_map", "typed shard_map")
        },
    }[how]
    result = jax.jit(each)(xs)
    for index, x in enumerate(np.float64(xs)):
        assert_close(result[index, 0], (np.float64(WEIGHTS) * x).mean(LAST), MEANS)
        assert_close(result[index, 1], (WEIGHTS * x**2).mean(LAST), {"rtol": 0, "atol": 8e-6})


# --- the layer --------------------------------------------------------------------------------

IMAGES = (64, 14, 10, 60)
"""Over 2^16 values on each of eight devices."""


def layer(x, weights, mask=None, **settings):
    """Output, gradients of a random linear loss, and new statistics."""

    def loss(x, params):
        stats = bnjax.init_stats(60)
        y, stats = bnjax.normalize_batch(x, params, stats, mask=mask, decay=0.0, **settings)
        return jnp.sum(weights * y), (y, stats)

    grads, (y, stats) = jax.grad(loss, argnums=(0, 1), has_aux=True)(x, bnjax.init_params(60))
    return y, *grads, stats


def assert_layer(result, x, weights, mask=None):
    y, dx, dparams, stats = result
    batch = reference.forward(x, None, None, mask=mask)
    gradients = reference.backward(weights, x, None, mask=mask)
    assert_close(y, batch.y, PARALLEL, "y")
    assert_close(dx, gradients.dx, PARALLEL, "dx")
    sums = {"rtol": 1e-5, "atol": 2e-3}  # of 9000 terms, whose sum is some 100
    assert_close(dparams["scale"], gradients.dscale, sums, "dscale")
    assert_close(dparams["bias"], gradients.dbias, sums, "dbias")
    assert_close(stats["mean"], batch.mean, PARALLEL, "mean")
    assert_close(stats["var"], reference.running_variance(batch, "unbiased"), PARALLEL, "var")


@pytest.mark.parametrize("how", ["jit", "sharded jit", "sharded jit in a mesh", "masked"])
def test_a_large_layer_is_the_same_on_one_device_and_eight(how):
    x, weights, mask = values(IMAGES), values(IMAGES, 1), None
    given = x
    if how == "masked":
        mask = np.random.default_rng(0).random((64, 14, 1, 1)) < 0.7
        given = np.where(mask, x, np.nan).astype(np.float32)
    arguments = [given, weights]
    if how.startswith("sharded"):
        arguments = jax.device_put(arguments, NamedSharding(mesh(8), P("data")))
    in_sight = jax.set_mesh(mesh(8)) if how.endswith("mesh") else contextlib.nullcontext()
    with in_sight:
        program = jax.jit(layer).lower(*arguments, mask).compile()
    assert_layer(program(*arguments, mask), given, weights, mask)
    others = r" (all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
    assert not re.findall(others, program.as_text())  # slices stay on their device
    gathered = len(re.findall(r" all-gather(?:-start)?\(", program.as_text()))
    assert gathered == (1 if how.endswith("mesh") else 0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_large_layers_of_other_types(x64, dtype):
    """bfloat16 is summed in float32, and slices of it are not added up among themselves."""
    x, weights = (jnp.asarray(values(SHAPE, seed), dtype) for seed in (0, 1))

    @jax.jit
    def both(x, weights):
        y, pullback, moments = jax.vjp(lambda x: bnjax.batch_transform(x, {}), x, has_aux=True)
        return y, *pullback(weights), moments

    y, dx, moments = both(x, weights)
    assert y.dtype == dx.dtype == dtype
    rounding = {"rtol": 2.0**-8, "atol": 1e-5} if dtype == "bfloat16" else EXACT
    batch = reference.forward(x, None, None)
    assert_close(y, batch.y, rounding)
    assert_close(dx, reference.backward(weights, x, None).dx, rounding)
    assert_close(moments.var, batch.var, MEANS if dtype == "bfloat16" else EXACT)


@pytest.mark.parametrize("impl", ["fused", slow("autodiff")])
def test_checkpoint_leaves_the_statistics_bitwise(impl):
    """And an ensemble of one: vmap batches the branches for each platform."""
    x, weights = values(SHAPE), values(SHAPE, 1)

    def of(wrap, x):
        def block(x):
            stats = bnjax.init_stats(32)
            return bnjax.normalize_batch(jnp.sin(x), {}, stats, decay=0.5, impl=impl)

        def loss(x):
            y, stats = wrap(block)(x)
            return jnp.sum(weights * jnp.tanh(y)), stats

        return jax.grad(loss, has_aux=True)(x)

    plain = jax.jit(functools.partial(of, lambda f: f))
    dx, stats = plain(x)
    again, recomputed = jax.jit(functools.partial(of, jax.checkpoint))(x)
    jax.tree.map(np.testing.assert_array_equal, recomputed, stats)
    assert_close(again, np.float64(dx), PARALLEL)
    ensemble = jax.jit(jax.vmap(plain))(jnp.stack([x, 2 * x]))
    assert_close(ensemble[0][0], np.float64(dx), PARALLEL)
    assert_close(ensemble[1]["var"][0], np.float64(stats["var"]), PARALLEL)
