"""The state of a training run: arrays only."""

from typing import Any, NamedTuple

import jax


class TrainState(NamedTuple):
    """What a step reads and returns.

    Attributes:
        step: steps taken, int32.
        params: the model's parameters.
        batch_stats: running statistics; an empty dict without normalization.
        opt_state: the optimizer's state, hyperparameters included.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
