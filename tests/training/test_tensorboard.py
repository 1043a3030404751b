"""Curves for TensorBoard: what they say of a state, and that it is what is written."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from events import scalars

from bnjax.training.objectives import Metrics
from bnjax.training.optimizers import (
    ExponentialDecay,
    make_optimizer,
    momentum_sgd,
    rate_in_use,
    rmsprop,
    sgd,
)
from bnjax.training.state import TrainState
from bnjax.training.tensorboard import TensorBoard, watched

DECAY = ExponentialDecay(0.5, every=2, staircase=False)
PARAMS = {"layer": {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}}


@pytest.mark.parametrize(
    ("rule", "rates"),
    [
        (sgd(0.3), [0.3] * 4),
        (momentum_sgd(0.3, schedule=DECAY), [0.3 * 0.5 ** (n / 2) for n in (0, 0, 1, 2)]),
        (make_optimizer(rmsprop(0.3), l2=0.1, train=("kernel",)), [0.3] * 4),
        (optax.sgd(0.3), [None] * 4),
    ],
    ids=["sgd", "momentum", "rmsprop", "unknown"],
)
def test_the_rate_in_use_is_that_of_the_last_update(rule, rates):
    """Red for the rate of the next one; before any, it is the first."""
    state, found = rule.init(PARAMS), []
    for _ in range(4):
        found.append(rate_in_use(state))
        _, state = rule.update(PARAMS, state, PARAMS)
    if rates[0] is None:
        assert found == rates
    else:
        np.testing.assert_allclose(found, rates, rtol=1e-6)


def test_moments_are_told_by_mean_and_spread_over_features():
    mean, var = np.float32([1, 2, 6]), np.float32([4, 4, 1])
    stats = {"block": {"norm": {"mean": mean, "var": var, "count": np.int32(7)}}}
    state = TrainState(np.int32(3), {}, stats, sgd(0.25).init({}))
    assert watched(state) == {
        "learning_rate": 0.25,
        "moments/block/norm/mean": 3.0,
        "moments/block/norm/mean_spread": pytest.approx(np.sqrt(14 / 3), rel=1e-12),
        "moments/block/norm/var": 3.0,
        "moments/block/norm/var_spread": pytest.approx(np.sqrt(2), rel=1e-12),
    }
    assert watched(state._replace(batch_stats={}, opt_state=())) == {}


def test_complex_moments_are_told_by_their_absolute_values():
    """Red if the imaginary part is dropped."""
    stats = {"norm": {"mean": np.complex64([3 + 4j, 0, -1j]), "var": np.float32([4, 4, 1])}}
    shown = watched(TrainState(np.int32(3), {}, stats, ()))
    assert shown["moments/norm/mean"] == 2
    assert shown["moments/norm/mean_spread"] == pytest.approx(np.std([5, 0, 1]), rel=1e-12)


def test_what_is_logged_can_be_read(tmp_path):
    """Losses and accuracies by the example; what counts none is left out."""
    with TensorBoard(tmp_path / "run", first_step=0) as board:
        nothing = Metrics(np.float32(0), np.int32(0), np.int32(0))
        board.log(5, {"test": Metrics(np.float32(6), np.int32(3), np.int32(4)), "train": nothing})
        board.show(5, {"learning_rate": 0.5})
        board.show(6, {"learning_rate": 0.25})
    assert scalars(tmp_path / "run") == {
        "loss/test": {5: 1.5},
        "accuracy/test": {5: 0.75},
        "learning_rate": {5: 0.5, 6: 0.25},
    }
