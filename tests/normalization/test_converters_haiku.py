"""Layers of Haiku go on; their state tells how it was averaged. Haiku itself: tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from made_layers import FEATURES, HAIKU, KEPT, haiku_layer, notes, some_batches, some_stats, updated
from tolerances import PARALLEL, assert_close

from bnjax.normalization import converters


@pytest.mark.parametrize(
    ("shape", "axis", "features"),
    [
        ((1, FEATURES), None, (FEATURES,)),
        ((1, FEATURES, 1, 1), None, (FEATURES,)),
        ((1, 2, 1, 2), (0, 2), (2, 2)),
        ((1, 2, 1, 2), (0,), (2, 1, 2)),
        ((1, 4, 1), (0, -1), (4,)),
    ],
)
def test_haiku_shapes(shape, axis, features):
    params, state = haiku_layer(shape=shape)
    layer = converters.from_haiku(params, state, **HAIKU, axis=axis)
    for array in jax.tree.leaves(layer[:2]):
        assert array.shape == features
    assert f"arrays of shape {shape} have lost their axes of size one." in layer.notes


def test_one_feature_keeps_its_axis():
    ema = {"average": np.ones((1, 1)), "hidden": np.full((1, 1), 1 - KEPT), "counter": 1}
    flags = HAIKU | {"create_scale": False, "create_offset": False}
    layer = converters.from_haiku({}, {"mean_ema": ema, "var_ema": ema}, **flags)
    assert layer.stats["mean"].shape == (1,)


@pytest.mark.parametrize("count", [81, 1000, 3500])
@pytest.mark.parametrize("decay", [0.999, 0.9999])
def test_haikus_decay_is_rounded(decay, count):
    """Haiku rounds it to the state's type and takes its power there: 1 - 0.999^1000 is off by 50
    roundings."""
    params, state = haiku_layer(count=count, decay=decay)
    for key, value in some_stats(dtype=np.float32).items():
        hidden = jnp.float32(value) * (1 - jnp.power(jnp.float32(decay), count))
        state[f"{key}_ema"]["hidden"] = hidden.reshape(params["scale"].shape)
    layer = converters.from_haiku(params, state, **HAIKU | {"decay_rate": decay})
    assert layer.settings["decay"] == decay
    with pytest.raises(ValueError, match="does not fit"):
        converters.from_haiku(params, state, **HAIKU | {"decay_rate": decay - 1e-4})


def test_a_haiku_state_that_does_not_fit_is_refused():
    """The state itself tells by which decay_rate it was made."""
    params, state = haiku_layer(count=3, decay=0.9)
    with pytest.raises(ValueError, match=r"decay_rate=0.8 does not fit mean_ema.*decay_rate\^3"):
        converters.from_haiku(params, state, **HAIKU)
    converters.from_haiku(params, state, **HAIKU | {"decay_rate": 0.9})
    params, state = haiku_layer()
    state["var_ema"]["counter"] = np.int32(4)
    with pytest.raises(ValueError, match="counters differ: 3 in mean_ema, 4 in var_ema"):
        converters.from_haiku(params, state, **HAIKU)
    params, state = haiku_layer(shape=(1, 2, 1, 2))
    with pytest.raises(ValueError, match=r"several axes of features: give `axis`"):
        converters.from_haiku(params, state, **HAIKU)
    with pytest.raises(ValueError, match=r"axis=\(0, 1\) must name axes of size 1"):
        converters.from_haiku(params, state, **HAIKU, axis=(0, 1))


def test_a_haiku_layer_that_saw_no_batch():
    """Its zeros are forgotten by the first update."""
    params, state = haiku_layer(count=0)
    state = jax.tree.map(np.zeros_like, state)
    layer = converters.from_haiku(params, state, **HAIKU)
    assert "no batch was seen" in notes(layer)
    x = some_batches()[1]
    expected = reference.forward(x, None, None)
    new = updated(layer, [x])
    assert_close(new["mean"], expected.mean, PARALLEL)
    assert_close(new["var"], expected.var, PARALLEL)
