"""keras.layers.BatchNormalization on JAX: the same numbers with running_var="biased"."""

import os

os.environ["KERAS_BACKEND"] = "jax"  # read when keras is imported

import jax
import jax.numpy as jnp
import keras
import numpy as np
import ours
import pytest

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("x64")]

TOLERANCE = 1e-5  # Keras computes in float32, and adds 1e-7 to the count of a mask

SETTINGS = {
    "dense": ((12, 5), -1, False),
    "images": ((4, 3, 2, 5), -1, False),
    "channels first": ((4, 5, 3, 2), 1, False),
    "masked steps": ((6, 4, 5), -1, True),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_training_statistics_and_inference(name):
    """Masks are finite here, with one flag a step."""
    shape, axis, masked = SETTINGS[name]
    given = ours.data(shape, 5)
    rng = np.random.default_rng(0)
    masks = [rng.random(shape[:2]) < 0.7 for _ in given.xs] if masked else [None] * len(given.xs)
    layer = keras.layers.BatchNormalization(
        axis=axis, momentum=ours.DECAY, epsilon=ours.EPSILON, dtype="float64"
    )
    layer.build(shape)
    assert [v.name for v in layer.trainable_variables] == ["gamma", "beta"]
    assert [v.name for v in layer.non_trainable_variables] == ["moving_mean", "moving_variance"]
    params = [jnp.asarray(given.scale), jnp.asarray(given.bias)]
    state = [v.value for v in layer.non_trainable_variables]

    @jax.jit
    def step(x, weights, mask, state):
        def loss(x, params):
            y, new = layer.stateless_call(params, state, x, training=True, mask=mask)
            return jnp.sum(weights * y), (y, new)

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(x, params)

    steps = []
    for x, weights, mask in zip(given.xs, given.weights, masks, strict=True):
        (dx, dparams), (y, state) = step(x, weights, mask, state)
        steps.append((y, dx, *dparams))
    inferred, _ = layer.stateless_call(params, state, jnp.asarray(given.xs[0]), training=False)

    ours_masks = [mask[:, :, None] for mask in masks] if masked else None
    run = ours.run(given, axis=axis, masks=ours_masks, running_var="biased")
    ours.assert_same_training(run, *zip(*steps, strict=True), TOLERANCE)
    ours.assert_same(run.stats["mean"], state[0], "moving_mean", TOLERANCE)
    ours.assert_same(run.stats["var"], state[1], "moving_variance", TOLERANCE)
    ours.assert_same(run.inferred, inferred, "inference", TOLERANCE)
