"""Optimizers of the Inception papers; the learning rate lives in the state.

Runs that differ in it share a program. Put together as the released Inception-v3 code has it:

    tx = make_optimizer(
        rmsprop(0.045, schedule=ExponentialDecay(0.94, every=2 * epoch, staircase=True)),
        l2=4e-5,
    )

with `epoch` in updates. Other settings the papers name:

- GoogLeNet: `momentum_sgd(rate, schedule=ExponentialDecay(0.96, every=8 * epoch, staircase=True))`.
- BN-x5 and BN-x30: its schedule six times faster, `every=8 * epoch / 6`; rates 0.0075 and 0.045,
  where Inception has 0.0015. What "faster" refers to is our reading, the paper gives no constants.
- "Rethinking": RMSProp as above and `clip_norm=2.0`; the released code does not clip.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bnjax.training.roles import ROLES, Role, Roles, check_roles, parameter_roles, role_mask


def sgd(learning_rate: float | jax.Array) -> optax.GradientTransformation:
    """Plain stochastic gradient descent; the learning rate is an array in the optimizer's state."""
    return optax.inject_hyperparams(optax.sgd)(learning_rate=learning_rate)


@dataclass(frozen=True)
class ExponentialDecay:
    """The learning rate after some updates, as a fraction of the first one.

    Raises:
        ValueError: for a `factor` outside (0, 1], or `every` that is not positive.
    """

    factor: float
    """what it is multiplied by, in (0, 1]; 0.96 lowers it by 4 %"""
    every: float
    """in updates, > 0; need not be whole"""
    staircase: bool
    """whether it falls at once every so many updates, or a little at each (same ends)"""

    def __post_init__(self) -> None:
        if not 0 < self.factor <= 1:
            raise ValueError(
                f"factor must be in (0, 1], got {self.factor}: to lower the rate by 4 %, give 0.96."
            )
        if not self.every > 0:
            raise ValueError(f"every must be a number of updates > 0, got {self.every}.")

    def __call__(self, updates: jax.Array) -> jax.Array:
        """The fraction in use after so many updates (int32), float32."""
        if self.staircase and self.every == int(self.every):
            periods = (updates // int(self.every)).astype(jnp.float32)  # exact at any count
        else:
            periods = updates.astype(jnp.float32) / self.every
            periods = jnp.floor(periods) if self.staircase else periods
        return jnp.power(jnp.float32(self.factor), periods)


class LearningRate(NamedTuple):
    """The state of the part of an optimizer that applies the learning rate.

    Attributes:
        initial: the learning rate of the first update, float32.
        updates: how many there were, int32.
    """

    initial: jax.Array
    updates: jax.Array


def momentum_sgd(
    learning_rate: float | jax.Array,
    *,
    schedule: ExponentialDecay | None = None,
    momentum: float = 0.9,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """Gradient descent with momentum: m <- momentum m + g; w <- w - rate m.

    As in TensorFlow and torch, the rate stands outside: a lower rate slows down at once what the
    momentum has gathered. In Sutskever et al. 2013 and Caffe it stands inside, m <- momentum m -
    rate g. The two are the same while the rate is.

    Args:
        learning_rate: the first; an array in the state.
        schedule: what becomes of it; None for nothing.
        momentum: fraction kept, in [0, 1). GoogLeNet has 0.9; the BN paper does not say.
        nesterov: whether to step by g + momentum m instead.

    Raises:
        ValueError: for a bad `momentum`.
    """
    _check_fraction("momentum", momentum)
    return optax.chain(optax.trace(momentum, nesterov), _descend(learning_rate, schedule))


def rmsprop(
    learning_rate: float | jax.Array,
    *,
    schedule: ExponentialDecay | None = None,
    decay: float = 0.9,
    momentum: float = 0.9,
    epsilon: float = 1.0,
) -> optax.GradientTransformation:
    """RMSProp as TensorFlow has it, which with an epsilon of one is another one than torch's.

    v <- decay v + (1 - decay) g^2, from one; m <- momentum m + rate g / sqrt(v + epsilon);
    w <- w - m. torch's v starts from zero, epsilon is added to the root, and the rate is outside m.

    Args:
        learning_rate: the first; an array in the state.
        schedule: what becomes of it; None for nothing.
        decay: of the squares, in [0, 1).
        momentum: in [0, 1). "Rethinking" names none beside RMSProp; its released code has 0.9.
        epsilon: > 0, inside the root.

    Raises:
        ValueError: for a bad `decay`, `momentum` or `epsilon`.
    """
    _check_fraction("decay", decay)
    _check_fraction("momentum", momentum)
    if not epsilon > 0:
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
    """A rule, with what the papers do to its gradient, in this order.

    First L2: the loss gains `l2`/2 times the squared norm, its gradient `l2` times the weights.
    That is the papers' form, and it goes through clipping, momentum and RMSProp's division like
    any gradient; the decoupled decay of AdamW does not. Then clipping. Then the rule.

    Args:
        rule: from `momentum_sgd` or `rmsprop`, or any of optax.
        l2: the weight, >= 0; 4e-5 in the released Inception-v3 code.
        decay: roles that L2 is for. By default kernels alone, for a bias needs none, and neither
            a normalization's scale and bias.
        clip_norm: the norm of the whole gradient, over what is trained, is not to exceed it; None
            for no clipping.
        train: roles that the rule moves. The rest is frozen: it counts for no norm, has no state,
            and stays bitwise what it is. Statistics of a normalization are no parameters.
        roles: of the parameters; another than `parameter_roles` where those have other names.

    Raises:
        ValueError: for bad values; at `init`, for parameters of unknown role, if roles matter.
    """
    if not l2 >= 0:
        raise ValueError(f"l2 must be >= 0, got {l2}.")
    if clip_norm is not None and not clip_norm > 0:
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


def _descend(
    learning_rate: float | jax.Array, schedule: ExponentialDecay | None
) -> optax.GradientTransformation:
    """Multiplies by minus the learning rate in use, of which the first lies in the state."""

    def init(params: Any) -> LearningRate:
        return LearningRate(jnp.asarray(learning_rate, jnp.float32), jnp.int32(0))

    def update(updates: Any, state: LearningRate, params: Any = None) -> tuple[Any, LearningRate]:
        rate = state.initial if schedule is None else state.initial * schedule(state.updates)
        updates = jax.tree.map(lambda leaf: -rate.astype(leaf.dtype) * leaf, updates)
        return updates, state._replace(updates=state.updates + 1)

    return optax.GradientTransformation(init, update)


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}: it is the fraction kept.")
