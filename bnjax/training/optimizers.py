"""Optimizers of the Inception papers; the learning rate lies in the state.

So runs of different rates share a program. The released Inception-v3 code combines them like this:

    tx = make_optimizer(
        rmsprop(0.045, schedule=ExponentialDecay(0.94, every=2 * epoch, staircase=True)),
        l2=4e-5,
    )

with `epoch` in updates. Other settings that the papers name:

- GoogLeNet: `momentum_sgd(rate, schedule=ExponentialDecay(0.96, every=8 * epoch, staircase=True))`.
- BN-x5 and BN-x30: its schedule six times faster, `every=8 * epoch / 6`; rates 0.0075 and 0.045,
  where Inception has 0.0015. What "faster" refers to is our reading, the paper gives no constants.
- "Rethinking": RMSProp as above and `clip_norm=2.0`; the released code does not clip.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bnjax.scalars import check_decay, number
from bnjax.training.roles import ROLES, Role, Roles, check_roles, parameter_roles, role_mask


def sgd(learning_rate: float | jax.Array) -> optax.GradientTransformation:
    """Stochastic gradient descent; the learning rate is an array in the state."""
    return optax.inject_hyperparams(optax.sgd)(learning_rate=learning_rate)


@dataclass(frozen=True)
class ExponentialDecay:
    """Exponential decay of the learning rate, as a fraction of the first one.

    Raises:
        ValueError: for a `factor` outside (0, 1], or `every` that is not positive.
    """

    factor: float
    """the rate is multiplied by it once a period, in (0, 1]; 0.96 lowers it by 4 %"""
    every: float
    """length of a period in updates, > 0; need not be whole"""
    staircase: bool
    """whether the rate falls at the end of each period, or a little at each update"""

    def __post_init__(self) -> None:
        if not 0 < number("factor", self.factor) <= 1:
            raise ValueError(
                f"factor must be in (0, 1], got {self.factor}: to lower the rate by 4 %, give 0.96."
            )
        if not 0 < number("every", self.every) < math.inf:
            raise ValueError(
                f"every must be a finite number of updates > 0, got {self.every}: for a constant "
                "rate, give no schedule."
            )

    def __call__(self, updates: jax.Array) -> jax.Array:
        """Returns the fraction in use after a number of updates (int32), float32."""
        # optax.exponential_decay divides in float32 alone, which has no odd counts above 2^24: the
        # paper trains for 31e6 steps. It also takes bad arguments for a constant rate.
        whole = self.every < 2**31 and self.every == int(self.every)
        if self.staircase and whole:
            periods = (updates // int(self.every)).astype(jnp.float32)
        else:
            every = min(float(self.every), 2.0**126)  # float32 has no more, and int32 2^31 updates
            periods = updates.astype(jnp.float32) / every
            periods = jnp.floor(periods) if self.staircase else periods
        return jnp.power(jnp.float32(self.factor), periods)


def momentum_sgd(
    learning_rate: float | jax.Array,
    *,
    schedule: ExponentialDecay | None = None,
    momentum: float = 0.9,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """Gradient descent with momentum: m <- momentum m + g; w <- w - rate m.

    As in TensorFlow and torch, the rate is outside m: a lower rate at once slows down what the
    momentum has gathered. In Sutskever et al. 2013 and Caffe it is inside: m <- momentum m - rate
    g. Both are the same while the rate is constant.

    Args:
        learning_rate: the first rate; an array in the state.
        schedule: how the rate decays; None for a constant one.
        momentum: fraction kept, in [0, 1). GoogLeNet has 0.9; the BN paper does not say.
        nesterov: whether to step by g + momentum m instead.

    Raises:
        ValueError: for a bad `momentum`.
    """
    check_decay(momentum, "momentum")
    return optax.chain(optax.trace(momentum, nesterov), _descend(learning_rate, schedule))


def rmsprop(
    learning_rate: float | jax.Array,
    *,
    schedule: ExponentialDecay | None = None,
    decay: float = 0.9,
    momentum: float = 0.9,
    epsilon: float = 1.0,
) -> optax.GradientTransformation:
    """RMSProp as in TensorFlow, which differs from torch's noticeably when epsilon is 1.

    v <- decay v + (1 - decay) g^2, from one; m <- momentum m + rate g / sqrt(v + epsilon);
    w <- w - m. In torch v starts from zero, epsilon is outside the root, and the rate outside m.

    Args:
        learning_rate: the first rate; an array in the state.
        schedule: how the rate decays; None for a constant one.
        decay: fraction of v that is kept, in [0, 1).
        momentum: in [0, 1). "Rethinking" names none beside RMSProp; its released code has 0.9.
        epsilon: > 0, inside the root.

    Raises:
        ValueError: for a bad `decay`, `momentum` or `epsilon`.
    """
    check_decay(decay)
    check_decay(momentum, "momentum")
    if not number("epsilon", epsilon) > 0:
        raise ValueError(f"epsilon must be > 0, got {epsilon}.")
    return optax.chain(
        optax.scale_by_rms(decay, epsilon, initial_scale=1.0),
        _descend(learning_rate, schedule),
        optax.trace(momentum),
    )


def make_optimizer(
    rule: optax.GradientTransformation,
    *,
    l2: float = 0.0,
    decay: Sequence[Role] = ("kernel",),
    clip_norm: float | None = None,
    train: Sequence[Role] = ROLES,
    roles: Roles = parameter_roles,
) -> optax.GradientTransformation:
    """Adds to a rule what the papers do to the gradient before it: L2, then clipping.

    L2 adds `l2`/2 times the squared norm to the loss: `l2` times the weights to the gradient.
    This is the papers' form: it goes through clipping, momentum and RMSProp's division like any
    gradient, unlike the decoupled decay of AdamW.

    Args:
        rule: from `momentum_sgd` or `rmsprop`, or any optimizer of optax.
        l2: the weight of L2, >= 0; 4e-5 in the released Inception-v3 code.
        decay: roles of the parameters that L2 applies to. By default kernels alone: a bias needs
            none, and neither do a normalization's scale and bias.
        clip_norm: the largest norm of the whole gradient of what is trained; a larger one is scaled
            down to it. None for no clipping.
        train: roles of the parameters that the rule moves. The rest is frozen: it counts in no
            norm, has no state, and stays bitwise what it is. A normalization's statistics are not
            parameters.
        roles: returns the parameters' roles; give another function if they have other names than
            `parameter_roles` knows.

    Raises:
        ValueError: for bad values; at `init`, for parameters of unknown role, if roles matter.

    Example:
        >>> tx = make_optimizer(momentum_sgd(0.1), l2=1e-4, clip_norm=1.0)
        >>> state = tx.init({"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}})
    """
    if not number("l2", l2) >= 0:
        raise ValueError(f"l2 must be >= 0, got {l2}.")
    if clip_norm is not None and not number("clip_norm", clip_norm) > 0:
        raise ValueError(f"clip_norm must be > 0, or None for no clipping, got {clip_norm}.")
    check_roles("decay", decay)
    check_roles("train", train)
    frozen = set(ROLES) - set(train)
    steps = []
    if frozen:
        steps.append(optax.masked(optax.set_to_zero(), role_mask(frozen, roles)))
    if l2:
        decayed = role_mask(set(decay) - frozen, roles)
        steps.append(optax.add_decayed_weights(l2, decayed))
    if clip_norm is not None:
        steps.append(optax.clip_by_global_norm(clip_norm))  # frozen gradients are zero by now
    steps.append(optax.masked(rule, role_mask(train, roles)) if frozen else rule)
    return optax.chain(*steps)


def rate_in_use(opt_state: Any) -> float | None:
    """Returns the learning rate of the last update, or the first before any; None if unknown.

    Args:
        opt_state: host arrays, of `sgd`, `momentum_sgd`, `rmsprop`, or what has one of them in it.
    """
    states = jax.tree.leaves(opt_state, is_leaf=_has_hyperparameters)
    for values in (state.hyperparams for state in states if _has_hyperparameters(state)):
        if "learning_rate" in values:
            return float(values["learning_rate"])
        if "initial" in values:
            return float(values["initial"]) * float(values["fraction"])
    return None


def _has_hyperparameters(state: Any) -> bool:
    return hasattr(state, "hyperparams")


def _descend(
    learning_rate: float | jax.Array, schedule: ExponentialDecay | None
) -> optax.GradientTransformation:
    """Multiplies by minus the learning rate in use."""

    # The first rate is a number in the state, the schedule a factor on it: in a schedule of rates,
    # as optax has them, the first would be a constant of the program.
    def descend(initial: jax.Array, fraction: jax.Array) -> optax.GradientTransformation:
        rate = initial * fraction
        return optax.stateless(
            lambda updates, _: jax.tree.map(lambda leaf: -rate.astype(leaf.dtype) * leaf, updates)
        )

    return optax.inject_hyperparams(descend, hyperparam_dtype=jnp.float32)(
        initial=learning_rate, fraction=1.0 if schedule is None else schedule
    )
