"""The networks that are compared: what each arm changes, its model, its optimizer, its loss."""

from functools import partial
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from bnjax.data.order import Shuffle
from bnjax.linen import BatchNorm
from bnjax.models import BNInception
from bnjax.training import optimizers
from bnjax.training.objectives import Objective, classification_objective
from bnjax.training.optimizers import ExponentialDecay, momentum_sgd
from experiments.imagenet_inception.config import CHANGES, Config


class Settings(NamedTuple):
    """What tells arms apart; the first seven are the changes of section 4.2.1.

    Attributes:
        learning_rate_factor: on the first learning rate.
        dropout: fraction of the pooled features.
        l2: weight.
        decay_speed: of the learning rate.
        local_response_norm: whether the stem has it.
        shuffle: how thorough.
        photometric: strength of the distortions.
        normalized: whether every convolution has batch normalization.
        activation: nonlinearity.
        init_scale: factor on the convolutions' initial weights.
        per_activation: modules that normalize each activation by itself.
    """

    learning_rate_factor: float = 1.0
    dropout: float = 0.4
    l2: float = 2e-4
    decay_speed: float = 1.0
    local_response_norm: bool = True
    shuffle: Shuffle = "shards"
    photometric: Literal["none", "reduced", "full"] = "full"
    normalized: bool = True
    activation: Literal["relu", "sigmoid"] = "relu"
    init_scale: float = 1.0
    per_activation: tuple[str, ...] = ()


_X5 = Settings(5.0, 0.0, 2e-4 / 5, 6.0, False, "within_shard", "reduced")
_X30 = _X5._replace(learning_rate_factor=30.0)
_LARGER = 1.5  # open: how much "increased initial weights" are
_LAST = ("5a", "5b")  # open: which "last hidden layers"
SETTINGS = {
    "inception": Settings(normalized=False),
    "bn_baseline": Settings(),
    "bn_x5": _X5,
    "bn_x30": _X30,
    "bn_x5_sigmoid": _X5._replace(activation="sigmoid"),
    # Section 4.2.3: "some of the following"; open: which of them in which network.
    "ensemble_1": _X30._replace(init_scale=_LARGER),
    "ensemble_2": _X30._replace(dropout=0.05),
    "ensemble_3": _X30._replace(dropout=0.1),
    "ensemble_4": _X30._replace(per_activation=_LAST),
    "ensemble_5": _X30._replace(init_scale=_LARGER, dropout=0.05),
    "ensemble_6": _X30._replace(dropout=0.1, per_activation=_LAST),
}
"""Each arm's settings, unless the configuration says otherwise."""


def settings_of(config: Config, arm: str) -> Settings:
    """The settings of an arm, with the changes that the configuration makes to all arms."""
    given = {name: getattr(config, name) for name in CHANGES}
    changes = {name: value for name, value in given.items() if value is not None}
    return SETTINGS[arm]._replace(**changes)


def make_model(
    config: Config, settings: Settings, *, classes: int = 1000, axis_name: str | None = None
) -> BNInception:
    """The network of an arm's settings.

    Args:
        config: the configuration.
        settings: from `settings_of`.
        classes: of the data.
        axis_name: mapped axis of the devices that share a batch; None under jit.
    """
    norm = partial(
        BatchNorm,
        momentum=config.decay,
        epsilon=config.epsilon,
        averaging=config.averaging,
        running_var=config.running_var,
        batch=config.normalize_together,
        axis_name=axis_name,
    )
    return BNInception(
        classes=classes,
        norm=norm if settings.normalized else None,
        activation={"relu": nn.relu, "sigmoid": nn.sigmoid}[settings.activation],
        width=config.width,
        stem_stride=config.stem_stride,
        dropout=settings.dropout,
        axis_name=axis_name,
        remat=config.remat,
        dtype=jnp.bfloat16 if config.compute == "bfloat16" else None,
        stem=config.stem,
        figure_5=config.figure_5,
        local_response_norm=settings.local_response_norm,
        per_activation=settings.per_activation,
    )


def make_optimizer(
    config: Config, settings: Settings, learning_rate: float | jax.Array
) -> optax.GradientTransformation:
    """Momentum, exponential decay and L2 of an arm's settings; the rate lies in the state."""
    schedule = ExponentialDecay(
        config.decay_factor, config.decay_every / settings.decay_speed, staircase=True
    )
    rule = momentum_sgd(learning_rate, schedule=schedule, momentum=config.momentum)
    return optimizers.make_optimizer(rule, l2=settings.l2)


def first_learning_rate(config: Config, settings: Settings) -> float:
    """That of the first update."""
    return config.learning_rate * settings.learning_rate_factor


def make_objective(config: Config) -> Objective:
    """What is minimized."""
    return classification_objective(label_smoothing=config.label_smoothing)
