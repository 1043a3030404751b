"""What a peer is compared with: several training steps and inference of bnjax, in float64."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bnjax

EPSILON, DECAY = 1e-3, 0.8


class Run(NamedTuple):
    """Per step: output and gradients. Then the statistics, and inference on the first batch."""

    outputs: list
    dxs: list
    dscales: list
    dbiases: list
    stats: dict
    inferred: jax.Array


class Data(NamedTuple):
    """Batches of different means, random weights for their outputs, scale and bias."""

    xs: list[np.ndarray]
    weights: list[np.ndarray]
    scale: np.ndarray
    bias: np.ndarray


def data(shape: tuple[int, ...], features: int, steps: int = 3) -> Data:
    rng = np.random.default_rng(11)
    xs = [t / 2 + (1 + t / 4) * rng.normal(size=shape) for t in range(steps)]
    weights = [rng.normal(size=shape) for _ in range(steps)]
    return Data(xs, weights, rng.uniform(-2, 2, features), rng.normal(size=features))


def run(given: Data, *, axis: int = -1, masks=None, **settings) -> Run:
    """`settings` are those of the statistics; the rest is fixed."""
    params = {"scale": jnp.asarray(given.scale), "bias": jnp.asarray(given.bias)}
    averaging = settings.get("averaging", "ema")
    stats = bnjax.init_stats(len(given.scale), averaging=averaging, dtype=jnp.float64)

    @jax.jit
    def step(x, weights, mask, stats):
        def loss(x, params):
            y, new = bnjax.normalize_batch(
                x, params, stats, axis=axis, epsilon=EPSILON, decay=DECAY, mask=mask, **settings
            )
            return jnp.sum(weights * y), (y, new)

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(x, params)

    collected = []
    for index, (x, weights) in enumerate(zip(given.xs, given.weights, strict=True)):
        mask = None if masks is None else masks[index]
        (dx, dparams), (y, stats) = step(x, weights, mask, stats)
        collected.append((y, dx, dparams["scale"], dparams["bias"]))
    x = jnp.asarray(given.xs[0])
    inferred = bnjax.normalize_population(x, params, stats, axis=axis, epsilon=EPSILON)
    return Run(*map(list, zip(*collected, strict=True)), stats, inferred)


def assert_same(actual, expected, name: str, tolerance: float = 1e-9) -> None:
    actual, expected = np.asarray(actual), np.asarray(expected)
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance, err_msg=name)


def assert_same_training(ours: Run, outputs, dxs, dscales, dbiases, tolerance=1e-9) -> None:
    theirs = {"outputs": outputs, "dxs": dxs, "dscales": dscales, "dbiases": dbiases}
    for name, values in theirs.items():
        for step, (actual, expected) in enumerate(zip(getattr(ours, name), values, strict=True)):
            assert_same(actual, expected, f"{name}, step {step}", tolerance)
