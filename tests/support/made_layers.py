"""Layers of other libraries, as arrays by their own names, and what to train them on."""

import jax.numpy as jnp
import numpy as np

import bnjax

FEATURES, UPDATES = 4, 5
KEPT = 0.8


def some_batches(shape=(12, FEATURES), updates=UPDATES) -> list[np.ndarray]:
    """Batches whose means and variances differ, few enough that m/(m-1) shows."""
    rng = np.random.default_rng(3)
    return [batch + (1 + batch / 2) * rng.normal(size=shape) for batch in range(updates)]


def some_stats(shape=(FEATURES,), dtype=np.float64) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(8)
    return {
        "mean": rng.normal(size=shape).astype(dtype),
        "var": rng.uniform(0.5, 2, shape).astype(dtype),
    }


def torch_state(count=7, dtype=np.float32) -> dict[str, np.ndarray]:
    stats = some_stats(dtype=dtype)
    return {
        "weight": np.arange(1, 1 + FEATURES).astype(dtype),
        "bias": np.arange(FEATURES).astype(dtype),
        "running_mean": stats["mean"],
        "running_var": stats["var"],
        "num_batches_tracked": np.int64(count),
    }


def keras_weights() -> dict[str, np.ndarray]:
    names = ("weight", "bias", "running_mean", "running_var")
    arrays = torch_state()
    return {
        new: arrays[old]
        for new, old in zip(("gamma", "beta", "moving_mean", "moving_variance"), names, strict=True)
    }


def flax_variables() -> dict:
    arrays = torch_state()
    return {
        "params": {"scale": arrays["weight"], "bias": arrays["bias"]},
        "batch_stats": {"mean": arrays["running_mean"], "var": arrays["running_var"]},
    }


def haiku_layer(count=3, decay=KEPT, shape=(1, 1, 1, FEATURES), dtype=np.float32):
    """Parameters and state; the averages are some_stats, debiased."""
    params = {"scale": np.full(shape, 2, dtype), "offset": np.full(shape, 3, dtype)}
    state = {
        f"{key}_ema": {
            "average": value.reshape(shape),
            "hidden": (value * (1 - decay**count)).reshape(shape).astype(dtype),
            "counter": np.int32(count),
        }
        for key, value in some_stats(dtype=dtype).items()
    }
    return params, state


HAIKU = {"create_scale": True, "create_offset": True, "decay_rate": KEPT}


def updated(layer, batches):
    """The statistics after training on by the converted settings."""
    stats = layer.stats
    for x in batches:
        x = jnp.asarray(x, stats["mean"].dtype)
        _, stats = bnjax.normalize_batch(x, layer.params, stats, **layer.settings)
    return stats


def notes(layer) -> str:
    return "\n".join(layer.notes)
