"""haiku.BatchNorm: the same numbers with averaging="ema_debiased", running_var="biased".

Its variance is that of one pass, so it is compared in float64 and near zero.
"""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import ours
import pytest

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("x64", "promotion")]


@pytest.mark.parametrize("shape", [(12, 5), (4, 3, 2, 5)])
def test_training_statistics_and_inference(shape):
    given = ours.data(shape, 5)
    broadcast = (1,) * (len(shape) - 1) + (5,)  # the shape of its parameters and statistics

    def forward(x, is_training):
        return hk.BatchNorm(True, True, decay_rate=ours.DECAY, eps=ours.EPSILON)(x, is_training)

    network = hk.without_apply_rng(hk.transform_with_state(forward))
    params, state = network.init(jax.random.key(0), jnp.asarray(given.xs[0]), True)
    params["batch_norm"] = {
        "scale": jnp.asarray(given.scale).reshape(broadcast),
        "offset": jnp.asarray(given.bias).reshape(broadcast),
    }

    @jax.jit
    def step(x, weights, state):
        def loss(x, params):
            y, new = network.apply(params, state, x, True)
            return jnp.sum(weights * y), (y, new)

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(x, params)

    steps = []
    for x, weights in zip(given.xs, given.weights, strict=True):
        (dx, dparams), (y, state) = step(x, weights, state)
        dparams = dparams["batch_norm"]
        steps.append((y, dx, np.ravel(dparams["scale"]), np.ravel(dparams["offset"])))
    inferred, _ = network.apply(params, state, jnp.asarray(given.xs[0]), False)

    run = ours.run(given, averaging="ema_debiased", running_var="biased")
    ours.assert_same_training(run, *zip(*steps, strict=True))
    mean, var = (state[f"batch_norm/~/{key}_ema"]["average"] for key in ("mean", "var"))
    ours.assert_same(run.stats["mean"], np.ravel(mean), "mean")
    ours.assert_same(run.stats["var"], np.ravel(var), "var")
    ours.assert_same(run.inferred, inferred, "inference")
