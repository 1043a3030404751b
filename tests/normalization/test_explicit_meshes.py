"""Arrays whose type says how a mesh divides them: the numbers of one device."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eight_devices import layer
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from marks import slow
from tolerances import PARALLEL, assert_trees_close

import bnjax

EXPLICIT, AUTO = AxisType.Explicit, AxisType.Auto
BOTH = (EXPLICIT, EXPLICIT)
SMALL, LARGE = (16, 4, 2, 4), (16, 32, 32, 4)


def mesh_of(shape, types):
    return jax.make_mesh(shape, ("data", "model")[: len(shape)], types)


def case(shape, masked=False):
    rng = np.random.default_rng(0)
    x, weights = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
    mask = jnp.asarray(rng.random((*shape[:-1], 1)) < 0.8) if masked else None
    features = shape[-1]
    params = {
        "scale": jnp.asarray(rng.uniform(0.5, 2, features), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=features), jnp.float32),
    }
    return (x, weights, mask), (params, bnjax.init_stats(features))


def on_mesh(divided, whole, mesh, spec, **settings):
    divided = jax.device_put(divided, NamedSharding(mesh, spec))
    whole = jax.device_put(whole, NamedSharding(mesh, P()))
    with jax.set_mesh(mesh):
        return jax.jit(lambda *a: layer(*a, **settings))(*divided, *whole)


GROUPS = [2, 4, 6, 7, 8, 16, "all"]


@pytest.mark.parametrize(
    ("batch", "settings", "masked"),
    [
        *(slow(k, {}, False) for k in GROUPS),
        (7, {"activation": "relu"}, True),
        *(slow(k, {"activation": "relu"}, True) for k in (4, 8)),
        (6, {"impl": "autodiff"}, True),
        slow(8, {"impl": "autodiff"}, True),
    ],
)
@pytest.mark.parametrize(  # on meshes of automatic axes they are in test_groups.py too
    "types",
    [
        pytest.param((EXPLICIT,), id="explicit"),
        slow((AUTO,), id="auto"),
    ],
)
def test_groups_of_k_are_the_same_on_any_mesh(types, batch, settings, masked):
    """16 examples on 4 devices: groups lie within a device, on two, across borders, and on all.

    `y`, the statistics and all gradients. Red: JAX's ShardingTypeError for 6, 7 and 8.
    """
    divided, whole = case((16, 3), masked)
    expected = jax.jit(lambda *a: layer(*a, batch=batch, **settings))(*divided, *whole)
    actual = on_mesh(divided, whole, mesh_of((4,), types), P("data"), batch=batch, **settings)
    assert_trees_close(actual, jax.tree.map(np.float64, expected), PARALLEL)


@pytest.mark.parametrize(
    ("types", "spec", "batch", "shape"),
    [
        *itertools.product([BOTH], [P("data"), P(("data", "model"))], [7], [SMALL]),
        *itertools.starmap(
            slow, itertools.product([BOTH], [P("data"), P(("data", "model"))], [4, "all"], [SMALL])
        ),
        ((EXPLICIT, AUTO), P("data"), 8, SMALL),
        *itertools.product([BOTH], [P(None, "data"), P(None, None, "model")], [5, "all"], [SMALL]),
        (BOTH, P(None, "data", "model"), "all", LARGE),
        (BOTH, P("data", None, None, "model"), 4, SMALL),
        *(slow(BOTH, P(None, None, None, "model"), batch, SMALL) for batch in (4, 7)),
        *(
            slow(BOTH, spec, batch, LARGE)
            for spec, batch in [
                *itertools.product([P("data")], [6, "all"]),
                (P(None, "data", "model"), 6),
                (P(None, None, None, "model"), "all"),
            ]
        ),
    ],
)
def test_images_on_a_mesh_of_two_axes(types, spec, batch, shape):
    """Over examples, rows, columns or features: what comes back lies as it came.

    The large ones are summed in slices. Red where an axis is sliced that devices divide, and where
    the groups' sizes lie otherwise than their means.
    """
    divided, whole = case(shape)
    expected = jax.jit(lambda *a: layer(*a, batch=batch))(*divided, *whole)
    mesh = mesh_of((4, 2), types)
    actual = on_mesh(divided, whole, mesh, spec, batch=batch)
    sums = PARALLEL if shape == SMALL else {"rtol": 1e-5, "atol": 1e-3}  # of 16,384 terms
    assert_trees_close(actual, jax.tree.map(np.float64, expected), sums)
    given = jax.device_put(divided[0], NamedSharding(mesh, spec))
    for array in (actual[0], actual[2]):  # y and dx
        assert array.sharding.is_equivalent_to(given.sharding, array.ndim)
