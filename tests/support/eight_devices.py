"""A layer on eight devices, in every way that JAX has, and on one.

Gradients are taken on each device, of a loss that sums over all: dx is the device's own, dscale
and dbias are to be summed, where JAX's types do not say that they are.
"""

import contextlib
from functools import partial

import cases
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import bnjax

DEVICES, ROWS, FEATURES = 8, 4, 4
EPSILON, DECAY = 1e-3, 0.75
MAPPED = ("vmap", "pmap", "shard_map", "typed shard_map")
"""With an axis name."""
JITTED = ("jit", "sharded jit", "sharded jit in a mesh")
"""Without: the compiler places the sums."""
PARTIAL_SUMS = {"vmap", "pmap", "shard_map"}


def mesh(*shape: int) -> jax.sharding.Mesh:
    return jax.make_mesh(shape, ("data", "model")[: len(shape)], (AxisType.Auto,) * len(shape))


def make(masked: bool) -> cases.Case:
    """[devices, rows, features]. Counts differ by device, the fourth one holds nothing but NaN."""
    rng = np.random.default_rng(5)
    shape = (DEVICES, ROWS, FEATURES)
    device = np.arange(DEVICES).reshape(-1, 1, 1)
    clean = jnp.asarray(device / 4 + rng.normal(size=shape), jnp.float32)
    mask, x = None, clean
    if masked:
        kept = np.array([4, 1, 3, 0, 4, 2, 1, 4]).reshape(-1, 1, 1)
        mask = jnp.asarray(np.arange(ROWS).reshape(1, -1, 1) < kept)
        x = jnp.where(mask, x, jnp.nan)
    params = {
        "scale": jnp.asarray(rng.uniform(0.5, 2, FEATURES), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=FEATURES), jnp.float32),
    }
    stats = {
        "mean": jnp.asarray(rng.normal(size=FEATURES), jnp.float32),
        "var": jnp.asarray(rng.uniform(0.5, 2, FEATURES), jnp.float32),
    }
    weights = jnp.asarray(rng.normal(size=shape), jnp.float32)
    return cases.Case(x, clean, mask, params, stats, weights, -1)


def layer(x, weights, mask, params, stats, normalize=bnjax.normalize_batch, **settings):
    """y, new statistics, dx and the parameters' gradients, on one device."""

    def f(x, params):
        return normalize(x, params, stats, mask=mask, epsilon=EPSILON, decay=DECAY, **settings)

    y, pullback, new = jax.vjp(f, x, params, has_aux=True)
    dx, dparams = pullback(weights)
    return y, new, dx, dparams


def run(how: str, case: cases.Case, **settings):
    """The layer on all devices; statistics as each one has them, gradients summed over them."""
    f = partial(layer, **settings)
    arguments = (case.x, case.weights, case.mask, case.params, case.stats)
    rows = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), arguments[:3])
    if how in JITTED:
        in_sight = contextlib.nullcontext()
        if how != "jit":
            rows = jax.device_put(rows, NamedSharding(mesh(DEVICES), P("data")))
        if how == "sharded jit in a mesh":
            in_sight = jax.set_mesh(mesh(DEVICES))
        with in_sight:
            y, stats, dx, dparams = jax.jit(f)(*rows, *arguments[3:])
        assert len(y.sharding.device_set) == (1 if how == "jit" else DEVICES)
    elif how in ("vmap", "pmap"):
        mapped = {"vmap": lambda *a, **k: jax.jit(jax.vmap(*a, **k)), "pmap": jax.pmap}[how]
        masked = None if case.mask is None else 0
        each = mapped(f, axis_name="data", in_axes=(0, 0, masked, None, None))
        y, stats, dx, dparams = each(*arguments)
    elif how == "shard_map":  # no types: each device returns what it has

        def untyped(x, weights, mask, params, stats):
            flat = None if mask is None else mask[0]
            out = f(x[0], weights[0], flat, params, stats)
            return jax.tree.map(lambda leaf: leaf[None], out)

        specs = (P("data"), P("data"), P("data"), P(), P())
        each = jax.shard_map(
            untyped, mesh=mesh(DEVICES), in_specs=specs, out_specs=P("data"), check_vma=False
        )
        y, stats, dx, dparams = jax.jit(each)(*arguments)
    else:  # shard_map with types: P() is granted to what is the same on all devices only
        specs = (P("data"), P("data"), P("data"), P(), P())
        each = jax.shard_map(
            f, mesh=mesh(DEVICES), in_specs=specs, out_specs=(P("data"), P(), P("data"), P())
        )
        y, stats, dx, dparams = jax.jit(each)(*rows, *arguments[3:])
    if how in PARTIAL_SUMS:
        dparams = jax.tree.map(lambda leaf: np.sum(np.float64(leaf), axis=0), dparams)
    return y, stats, dx, dparams


def rows_of(array) -> np.ndarray | None:
    return None if array is None else np.asarray(array).reshape(-1, array.shape[-1])
