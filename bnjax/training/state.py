"""The state of a training run: arrays only."""

from typing import Any, NamedTuple

import jax


class TrainState(NamedTuple):
    """The state that a step reads and returns.

    Attributes:
        step: steps taken, int32.
        params: the model's parameters.
        batch_stats: running statistics; an empty dict without normalization.
        opt_state: the optimizer's state, hyperparameters included.
        key: PRNG key of the run's dropout and the like, the same at every step, which folds its
            number in; None without.
        fault: int32, what was not finite first, zero for nothing, see
            `bnjax.training.divergence`; None for a run that is not watched.

    Example:
        >>> TrainState(jnp.int32(0), params={}, batch_stats={}, opt_state=()).step
        Array(0, dtype=int32)
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    key: Any = None
    fault: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """What a model of Flax Linen is applied to: parameters and running statistics."""
        return {"params": self.params, "batch_stats": self.batch_stats}
