"""One pass in training: what `apply_train` returns for networks with and without statistics."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnjax.models import MLP, apply_train
from bnjax.models.layers import Dropout

KEY = jax.random.key(0)
X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
SMALL = partial(MLP, hidden=(4,), classes=2)


def test_a_network_with_statistics_returns_the_new_ones():
    model = SMALL(norm="batch")
    variables = model.init(KEY, X, train=False)
    logits, stats = apply_train(model, variables, X)
    expected, updates = model.apply(variables, X, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(logits, expected)
    assert np.any(stats["hidden1"]["norm"]["mean"])
    for one, other in zip(*map(jax.tree.leaves, (stats, updates["batch_stats"])), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("norm", [None, "layer"])
@pytest.mark.parametrize("given", [{}, {"batch_stats": {}}], ids=["absent", "empty"])
def test_a_network_without_statistics_returns_none(norm, given):
    """Red with `updates["batch_stats"]`."""
    model = SMALL(norm=norm)
    params = model.init(KEY, X, train=False)["params"]
    logits, stats = apply_train(model, {"params": params, **given}, X)
    assert stats == {}
    np.testing.assert_array_equal(logits, model.apply({"params": params}, X, train=True))


def test_the_key_is_that_of_dropout():
    dropped, stats = apply_train(Dropout(0.5), {}, X, KEY)
    again, _ = apply_train(Dropout(0.5), {}, X, KEY)
    other, _ = apply_train(Dropout(0.5), {}, X, jax.random.key(1))
    np.testing.assert_array_equal(dropped, again)
    assert np.any(dropped != other)
    assert stats == {}
