"""One batch over several mapped axes, of which some may be `vmap`'s: as over none."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from eight_devices import DECAY, EPSILON, FEATURES, layer
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from marks import slow, slow_but
from tolerances import PARALLEL, assert_close

import bnjax

NAMES = ("a", "b", "c")


def nested(f, mappers):
    """`f` of arrays with a leading axis for each mapper, the outermost first."""
    for mapper, name in reversed(list(zip(mappers, NAMES, strict=False))):
        f = mapper(f, axis_name=name)
    return f


def mapped_by_mesh(f, *, axis_name, check_vma=False):
    """`shard_map` with a leading axis that it cuts away, as `vmap` and `pmap` do."""

    def each(*arguments):
        out = f(*jax.tree.map(lambda leaf: leaf[0], arguments))
        return jax.tree.map(lambda leaf: leaf[None], out)

    devices = jax.make_mesh((2,), (axis_name,), (AxisType.Auto,))
    rows = P(axis_name)
    return jax.shard_map(each, mesh=devices, in_specs=rows, out_specs=rows, check_vma=check_vma)


MAPPERS = {
    "two vmaps": (jax.vmap, jax.vmap),
    "three vmaps": (jax.vmap, jax.vmap, jax.vmap),
    "vmap in pmap": (jax.pmap, jax.vmap),
    "pmap in vmap": (jax.vmap, jax.pmap),
    "vmaps in pmap": (jax.pmap, jax.vmap, jax.vmap),
    "vmap in shard_map": (mapped_by_mesh, jax.vmap),
    "vmaps around shard_map": (jax.vmap, jax.vmap, mapped_by_mesh),
}


@pytest.mark.parametrize("impl", ["fused", slow("autodiff")])
@pytest.mark.parametrize("masked", [slow(False), True])
@pytest.mark.parametrize("how", slow_but(["vmap in pmap"], MAPPERS))
def test_one_batch(how, masked, impl):
    """Forward, statistics and gradients against float64. Red: JAX's AssertionError."""
    mappers = MAPPERS[how]
    rng = np.random.default_rng(0)
    shape = (*(2,) * len(mappers), 3, FEATURES)
    x, weights = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
    mask = jnp.asarray(rng.random((*shape[:-1], 1)) < 0.7) if masked else None
    params = {"scale": rng.uniform(0.5, 2, FEATURES), "bias": rng.normal(size=FEATURES)}
    stats = {"mean": rng.normal(size=FEATURES), "var": rng.uniform(0.5, 2, FEATURES)}
    params, stats = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (params, stats))

    def each(x, weights, mask):
        names = NAMES[: len(mappers)]
        return layer(x, weights, mask, params, stats, axis_name=names, impl=impl)

    y, new, dx, dparams = nested(each, mappers)(x, weights, mask)

    rows = [None if a is None else np.asarray(a).reshape(-1, a.shape[-1]) for a in (x, mask)]
    batch = reference.forward(rows[0], **params, epsilon=EPSILON, mask=rows[1])
    weights = weights.reshape(-1, FEATURES)
    expected = reference.backward(weights, rows[0], params["scale"], epsilon=EPSILON, mask=rows[1])
    assert_close(y.reshape(-1, FEATURES), batch.y, PARALLEL, "y")
    assert_close(dx.reshape(-1, FEATURES), expected.dx, PARALLEL, "dx")
    for key, value in (("scale", expected.dscale), ("bias", expected.dbias)):
        total = np.float64(dparams[key]).reshape(-1, FEATURES).sum(0)
        assert_close(total, value, PARALLEL, key)
    moments = {"mean": batch.mean, "var": reference.running_variance(batch, "unbiased")}
    for key, value in moments.items():
        for device in np.asarray(new[key]).reshape(-1, FEATURES):
            assert_close(device, reference.ema([value], stats[key], DECAY), PARALLEL, key)


@pytest.mark.parametrize("batch", ["all", "device"])
def test_vmap_in_a_shard_map_with_types(batch):
    """JAX has no sum over such an axis: its own error is empty."""

    def each(x):
        return bnjax.batch_transform(x, {}, axis_name=NAMES[:2], batch=batch)[0]

    typed = (partial(mapped_by_mesh, check_vma=True), jax.vmap)
    with pytest.raises(ValueError, match=r"\('a', 'b'\) has \['b'\] from vmap.*check_vma=False"):
        nested(each, typed)(jnp.ones((2, 2, 3, FEATURES)))
