"""What docs/others.md says of Flax's layer, shown by Flax's layer; of other peers: tests/parity.

A test that fails here means that Flax has changed: then change the page's row.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

DEVICES, ROWS, FEATURES = 8, 4, 3
RNG = np.random.default_rng(3)
X = np.float32(np.arange(DEVICES).reshape(-1, 1, 1) + RNG.normal(size=(DEVICES, ROWS, FEATURES)))
FRESH = {
    "params": {"scale": np.ones(FEATURES, np.float32), "bias": np.zeros(FEATURES, np.float32)},
    "batch_stats": {"mean": np.zeros(FEATURES, np.float32), "var": np.ones(FEATURES, np.float32)},
}
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
"""What is told apart differs by more than 0.1."""


def normalized(rows: np.ndarray) -> np.ndarray:
    return (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5)


def flax(x, mask=None, **settings):
    """Output, and the statistics that decay 0 makes of this batch alone."""
    layer = nn.BatchNorm(use_running_average=False, momentum=0.0, **settings)
    y, new = layer.apply(FRESH, x, mask=mask, mutable=["batch_stats"])
    return y, new["batch_stats"]


def test_flax_normalizes_the_whole_batch_in_jit_and_each_devices_in_pmap():
    whole, _ = jax.jit(flax)(X.reshape(-1, FEATURES))
    np.testing.assert_allclose(whole, normalized(X.reshape(-1, FEATURES)), **CLOSE)
    apart, _ = jax.pmap(flax)(X)
    np.testing.assert_allclose(apart, [normalized(rows) for rows in X], **CLOSE)


@pytest.mark.parametrize(
    ("counts", "finite"), [([4, 2, 1, 3, 4, 4, 2, 1], True), ([4, 2, 1, 3, 4, 4, 2, 0], False)]
)
def test_flax_averages_the_devices_means(counts, finite):
    """Each device counts as much as any other; one that holds nothing makes all of them NaN."""
    masks = np.arange(ROWS) < np.reshape(counts, (-1, 1))

    def device(x, mask):
        return flax(x, mask[:, None], axis_name="devices")[1]["mean"]

    means = np.asarray(jax.pmap(device, axis_name="devices")(X, masks))
    if not finite:
        assert np.isnan(means).all()
        return
    of_devices = np.stack([rows[mask].mean(0) for rows, mask in zip(X, masks, strict=True)])
    np.testing.assert_allclose(means, np.tile(of_devices.mean(0), (DEVICES, 1)), **CLOSE)
    assert (np.abs(of_devices.mean(0) - X[masks].mean(0)) > 0.1).all()


def test_flax_after_10_steps_is_still_mostly_zero_and_one():
    layer = nn.BatchNorm(use_running_average=False)
    variables = FRESH
    rows = X.reshape(-1, FEATURES)
    for _ in range(10):
        _, new = layer.apply(variables, rows, mutable=["batch_stats"])
        variables = {**variables, **new}
    kept = 0.99**10
    assert kept > 0.9
    stats = variables["batch_stats"]
    np.testing.assert_allclose(stats["mean"], (1 - kept) * rows.mean(0), **CLOSE)
    np.testing.assert_allclose(stats["var"], kept + (1 - kept) * rows.var(0), **CLOSE)


def test_flax_keeps_the_biased_variance():
    """torch the unbiased: tests/parity/test_torch.py."""
    _, stats = flax(X[0])
    np.testing.assert_allclose(stats["var"], X[0].var(0), **CLOSE)


def test_flax_of_one_example_is_bias_and_a_variance_of_zero():
    bias = np.array([1, 2, 3], np.float32)
    layer = nn.BatchNorm(use_running_average=False, momentum=0.0)
    variables = {**FRESH, "params": {**FRESH["params"], "bias": bias}}
    y, new = layer.apply(variables, X[0, :1], mutable=["batch_stats"])
    np.testing.assert_array_equal(y[0], bias)
    np.testing.assert_array_equal(new["batch_stats"]["var"], 0)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_flax_has_one_switch_for_the_moments_and_the_update(kind):
    """What normalizes by the batch updates; what does not, does not."""
    for running in (False, True):
        if kind == "linen":
            layer = nn.BatchNorm(use_running_average=running)
            y, new = layer.apply(FRESH, X[7], mutable=["batch_stats"])
            mean = new.get("batch_stats", FRESH["batch_stats"])["mean"]
        else:
            layer = nnx.BatchNorm(FEATURES, use_running_average=running, rngs=nnx.Rngs(0))
            y, mean = layer(jnp.asarray(X[7])), layer.mean[...]
        by_batch = np.allclose(y, normalized(X[7]), **CLOSE)
        assert by_batch == bool(np.any(np.asarray(mean) != 0)) == (not running)
