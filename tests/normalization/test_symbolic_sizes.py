"""Training steps that `jax.export` writes once for all sizes."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from eight_devices import layer
from marks import slow
from tolerances import PARALLEL, assert_trees_close

import bnjax

EXAMPLES = ("b", [(4,), (6,)])
IMAGES = ("b, h, w", [(4, 3, 2), (6, 8, 40)])


@pytest.mark.parametrize(
    "sizes", [slow(EXAMPLES, id="examples"), pytest.param(IMAGES, id="images")]
)
@pytest.mark.parametrize(
    ("settings", "masked"),
    [
        ({}, False),
        slow({}, True),
        slow({"activation": "relu"}, False),
        ({"activation": "relu", "averaging": "cumulative"}, True),
        slow({"impl": "autodiff", "running_var": "biased"}, True),
    ],
)
def test_one_step_for_all_sizes(sizes, settings, masked):
    """`y`, the statistics and all gradients are those without symbols.

    Red: InconclusiveDimensionOperation, from comparisons of shapes.
    """
    symbols, concrete = sizes
    features = 5
    shape = (*jax.export.symbolic_shape(symbols), features)
    params = bnjax.init_params(features)
    stats = bnjax.init_stats(features, averaging=settings.get("averaging", "ema"))

    def step(x, weights, mask, params, stats):
        return layer(x, weights, mask, params, stats, **settings)

    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    mask = jax.ShapeDtypeStruct((*shape[:-1], 1), jnp.bool_) if masked else None
    exported = jax.export.export(jax.jit(step))(x, x, mask, params, stats)
    exported = jax.export.deserialize(exported.serialize())
    rng = np.random.default_rng(0)
    for size in concrete:
        x, weights = (jnp.asarray(rng.normal(size=(*size, features)), "float32") for _ in "ab")
        mask = jnp.asarray(rng.random((*size, 1)) < 0.8) if masked else None
        expected = jax.jit(step)(x, weights, mask, params, stats)
        actual = exported.call(x, weights, mask, params, stats)
        assert_trees_close(actual, jax.tree.map(np.float64, expected), PARALLEL)


@pytest.mark.parametrize("shape", ["b, 8, 8, 5", "8, h, w, 5", "b, 5, h, 5"])
def test_some_sizes_open(shape):
    """Sums over images of known sizes are cut as ever; positions alone may be open."""
    shape = jax.export.symbolic_shape(shape)
    stats = bnjax.init_stats(5)

    def step(x):
        return bnjax.normalize_batch(x, {}, stats)

    exported = jax.export.export(jax.jit(step))(jax.ShapeDtypeStruct(shape, jnp.float32))
    size = tuple(n if isinstance(n, int) else 6 for n in shape)
    x = jnp.asarray(np.random.default_rng(0).normal(size=size), jnp.float32)
    expected = jax.tree.map(np.float64, step(x))
    assert_trees_close(exported.call(x), expected, PARALLEL)


def test_groups_of_an_open_number_of_examples():
    x = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 5"), jnp.float32)
    step = jax.jit(lambda x: bnjax.batch_transform(x, {}, batch=4)[0])
    with pytest.raises(ValueError, match="batch=4 needs a known number of examples, got b: "):
        jax.export.export(step)(x)


def test_groups_of_known_examples_at_open_positions():
    x = jax.ShapeDtypeStruct(jax.export.symbolic_shape("7, h, 5"), jnp.float32)
    step = jax.jit(lambda x: bnjax.batch_transform(x, {}, batch=3))
    exported = jax.export.export(step)(x)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(7, 2, 5)), jnp.float32)
    assert_trees_close(exported.call(x), jax.tree.map(np.float64, step(x)), PARALLEL)
