"""The networks that are compared: what each changes, its model, its optimizer."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import optax

from bnjax.data.order import Shuffle
from bnjax.data.views.augmentation import Augmentation, Photometric
from bnjax.models import BNInception, GoogLeNet
from bnjax.models.googlenet import AUXILIARY_WEIGHT, HEADS_AFTER
from bnjax.models.initialization import draw_kernels
from bnjax.normalization.settings import Activation
from bnjax.training.objectives import Objective, classification_objective
from bnjax.training.optimizers import ExponentialDecay, make_optimizer, momentum_sgd
from experiments.harness.affects import network, nothing, numbers, training, views
from experiments.harness.images.arm import ImageArm, batch_norm, dtype_of


@dataclass(frozen=True, kw_only=True)
class InceptionArm(ImageArm):
    """An Inception network; the first seven settings are the changes of section 4.2.1.

    Attributes:
        learning_rate_factor: on the first learning rate.
        dropout: fraction of the pooled features.
        l2: weight.
        decay_speed: factor on how often the learning rate falls.
        local_response_norm: whether the stem has it.
        shuffle: how thorough.
        photometric: strength of the distortions.
        normalized: whether every convolution has batch normalization.
        activation: nonlinearity.
        init_scale: factor on the convolutions' initial weights.
        per_activation: modules that normalize each activation by itself.
        accelerated: whether it trains for `accelerated_steps`.
    """

    learning_rate_factor: float = numbers(1.0)
    dropout: float = training(0.4)
    l2: float = training(2e-4)
    decay_speed: float = training(1.0)
    local_response_norm: bool = network(True)
    shuffle: Shuffle = views("shards")
    photometric: Photometric = views("full")
    normalized: bool = network(True)
    activation: Activation = network("relu")
    init_scale: float = training(1.0)
    per_activation: tuple[str, ...] = network(())
    accelerated: bool = nothing(False)

    def model(self, config: Any, *, classes: int, axis_name: str | None = None) -> nn.Module:
        """Returns the network."""
        return BNInception(
            **self._common(config, classes, axis_name),
            stem=config.stem,
            figure_5=config.figure_5,
            per_activation=self.per_activation,
        )

    def _common(self, config: Any, classes: int, axis_name: str | None) -> dict[str, Any]:
        """What the networks of the family take."""
        norm = batch_norm(config, axis_name, config.normalize_together)
        return {
            "classes": classes,
            "norm": norm if self.normalized else None,
            "activation": {"relu": nn.relu, "sigmoid": nn.sigmoid}[self.activation],
            "width": config.width,
            "stem_stride": config.stem_stride,
            "dropout": self.dropout,
            "axis_name": axis_name,
            "remat": config.remat,
            "dtype": dtype_of(config),
            "local_response_norm": self.local_response_norm,
        }

    def optimizer(self, config: Any, rate: float | jax.Array) -> optax.GradientTransformation:
        """Returns momentum with exponential decay and L2."""
        every = config.decay_every / self.decay_speed
        schedule = ExponentialDecay(config.decay_factor, every, staircase=True)
        rule = momentum_sgd(rate, schedule=schedule, momentum=config.momentum)
        return make_optimizer(rule, l2=self.l2)

    def draw(self, params: Any, key: jax.Array) -> Any:
        """Returns the initial parameters, with kernels as large as `init_scale` says."""
        return draw_kernels(params, key, scale=self.init_scale)

    def first_rate(self, config: Any) -> float:
        """Returns the learning rate of the first update."""
        return config.learning_rate * self.learning_rate_factor

    def steps(self, config: Any) -> int:
        """Returns the length of a run."""
        return config.accelerated_steps if self.accelerated else config.steps

    def augmentation(self, config: Any) -> Augmentation:
        """Returns how training views are made."""
        return replace(super().augmentation(config), photometric=self.photometric)

    def order(self) -> Shuffle:
        """Returns how thoroughly examples are shuffled."""
        return self.shuffle


@dataclass(frozen=True, kw_only=True)
class GoogLeNetArm(InceptionArm):
    """GoogLeNet (Szegedy et al. 2014), whose two side heads add to the loss in training.

    `per_activation`, and `stem` and `figure_5` of the configuration, are BN-Inception's alone.
    """

    def model(self, config: Any, *, classes: int, axis_name: str | None = None) -> nn.Module:
        """Returns the network."""
        return GoogLeNet(**self._common(config, classes, axis_name))

    def objective(self, config: Any) -> Objective:
        """Returns the cross-entropy of the classifier, and of the side heads at their weight."""
        return classification_objective(
            label_smoothing=config.label_smoothing,
            auxiliary_weights=(AUXILIARY_WEIGHT,) * len(HEADS_AFTER),
        )


def _paper(steps: float | None, best: float) -> dict[str, str]:
    """Figure 3: steps to 72.2 %, how many times fewer than Inception's, and the best accuracy."""
    return {
        "steps to 72.2 %": "" if steps is None else f"{steps / 1e6:.1f}e6",
        "times fewer": "" if steps is None else f"{31.0e6 / steps:.1f}",
        "best, %": f"{100 * best:.1f}",
    }


_CHANGES: dict[str, tuple[Any, str]] = {  # section 4.2.1, as BN-x5 has them
    "learning_rate_factor": (5.0, "learning rate x5"),
    "dropout": (0.0, "dropout removed"),
    "l2": (2e-4 / 5, "L2 / 5"),
    "decay_speed": (6.0, "decay 6 times faster"),
    "local_response_norm": (False, "local response normalization removed"),
    "shuffle": ("within_shard", "shuffling within shards"),
    "photometric": ("reduced", "distortions reduced"),
}
_usual = InceptionArm()
_accelerated = partial(
    InceptionArm, **{name: value for name, (value, _) in _CHANGES.items()}, accelerated=True
)
_x30 = partial(_accelerated, learning_rate_factor=30.0)
_recipe = partial(_accelerated, normalized=False, line=":")
_LARGER = 1.5  # open: how much "increased initial weights" are
_LAST = ("5a", "5b")  # open: which "last hidden layers"

_FIVE = (  # section 4.2.2; the colours are those of Okabe & Ito
    InceptionArm(
        name="inception",
        label="Inception",
        color="#000000",
        line="--",
        paper=_paper(31.0e6, 0.722),
        normalized=False,
    ),
    InceptionArm(
        name="bn_baseline",
        label="BN-Baseline",
        color="#0072b2",
        paper=_paper(13.3e6, 0.727),
    ),
    _accelerated(name="bn_x5", label="BN-x5", color="#009e73", paper=_paper(2.1e6, 0.730)),
    _x30(name="bn_x30", label="BN-x30", color="#d55e00", paper=_paper(2.7e6, 0.748)),
    _accelerated(
        name="bn_x5_sigmoid",
        label="BN-x5-Sigmoid",
        color="#cc79a7",
        paper=_paper(None, 0.698),
        activation="sigmoid",
    ),
)
_RECIPES = (  # what is left of the accelerated networks without normalization
    _recipe(
        name="recipe_x1", label="Inception, recipe x1", color="#000000", learning_rate_factor=1.0
    ),
    _recipe(name="recipe_x5", label="Inception, recipe x5", color="#009e73"),
    _recipe(
        name="recipe_x30", label="Inception, recipe x30", color="#d55e00", learning_rate_factor=30.0
    ),
)
_ALONE = tuple(
    InceptionArm(name=f"alone_{name}", label=f"BN-Baseline + {what}", **{name: value})
    for name, (value, what) in _CHANGES.items()
)
_LEFT_OUT = tuple(
    _accelerated(name=f"left_out_{name}", label=f"BN-x5 - {what}", **{name: getattr(_usual, name)})
    for name, (_, what) in _CHANGES.items()
)
_ENSEMBLE = (  # section 4.2.3: "some of the following"; open: which of them in which network
    _x30(name="ensemble_1", label="ensemble, network 1", init_scale=_LARGER),
    _x30(name="ensemble_2", label="ensemble, network 2", dropout=0.05),
    _x30(name="ensemble_3", label="ensemble, network 3", dropout=0.1),
    _x30(name="ensemble_4", label="ensemble, network 4", per_activation=_LAST),
    _x30(name="ensemble_5", label="ensemble, network 5", init_scale=_LARGER, dropout=0.05),
    _x30(name="ensemble_6", label="ensemble, network 6", dropout=0.1, per_activation=_LAST),
)
_OTHERS = (
    # Section 4.2.2: it never did better than chance, one in a thousand.
    InceptionArm(
        name="inception_sigmoid",
        label="Inception-Sigmoid",
        color="#cc79a7",
        line=":",
        paper=_paper(None, 0.001),
        normalized=False,
        activation="sigmoid",
    ),
    GoogLeNetArm(name="googlenet", label="GoogLeNet", color="#56b4e9", line="--", normalized=False),
    GoogLeNetArm(name="bn_googlenet", label="BN-GoogLeNet", color="#56b4e9"),
)
ARMS = (*_FIVE, *_RECIPES, *_OTHERS, *_ALONE, *_LEFT_OUT, *_ENSEMBLE)
GROUPS = {
    word: tuple(arm.name for arm in arms)
    for word, arms in {
        "five": _FIVE,
        "recipes": _RECIPES,
        "alone": _ALONE,
        "left_out": _LEFT_OUT,
        "ensemble": _ENSEMBLE,
    }.items()
}
"""Names of arms by a word that stands for them."""
FIVE = GROUPS["five"]
"""The five networks of section 4.2.2."""
