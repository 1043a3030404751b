"""equinox.nn.BatchNorm(mode="batch"): the same outputs, gradients and running mean.

Its running variance starts at one and is then divided by 1 - momentum^t, as if it had started at
zero: too large by momentum^t/(1 - momentum^t). It is compared after that is taken off, and
inference is not.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import ours
import pytest

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("x64")]


@pytest.mark.parametrize("shape", [(12, 5), (4, 5, 3, 2)])
def test_training_and_running_mean(shape):
    """Channels first, one example a call, the batch being the mapped axis."""
    given = ours.data(shape, 5)
    layer, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(
        5, axis_name="batch", mode="batch", momentum=ours.DECAY, eps=ours.EPSILON
    )
    where = lambda layer: (layer.weight, layer.bias)  # noqa: E731
    layer = eqx.tree_at(where, layer, (jnp.asarray(given.scale), jnp.asarray(given.bias)))

    @eqx.filter_jit
    def step(x, weights, state):
        def loss(differentiated):
            x, (scale, bias) = differentiated
            own = eqx.tree_at(where, layer, (scale, bias))
            each = jax.vmap(own, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
            y, new = each(x, state)
            return jnp.sum(weights * y), (y, new)

        return jax.grad(loss, has_aux=True)((x, where(layer)))

    steps = []
    for x, weights in zip(given.xs, given.weights, strict=True):
        (dx, dparams), (y, state) = step(jnp.asarray(x), jnp.asarray(weights), state)
        steps.append((y, dx, *dparams))

    run = ours.run(given, axis=1, averaging="ema_debiased", running_var="biased")
    ours.assert_same_training(run, *zip(*steps, strict=True))
    mean, var = state.get(layer.batch_state_index)
    forgotten = ours.DECAY ** len(given.xs)
    ours.assert_same(run.stats["mean"], mean / (1 - forgotten), "mean")
    ours.assert_same(run.stats["var"], (var - forgotten) / (1 - forgotten), "var, repaired")
    assert np.min(var / (1 - forgotten) - run.stats["var"]) > 0.5  # else drop the repair
