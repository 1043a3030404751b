"""The networks that are compared: what each changes, its model, its optimizer."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import optax

from bnjax.data.order import Shuffle
from bnjax.data.views.augmentation import Augmentation
from bnjax.models import BNInception
from bnjax.models.initialization import draw_kernels
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
    photometric: Literal["none", "reduced", "full"] = views("full")
    normalized: bool = network(True)
    activation: Literal["relu", "sigmoid"] = network("relu")
    init_scale: float = training(1.0)
    per_activation: tuple[str, ...] = network(())
    accelerated: bool = nothing(False)

    def model(self, config: Any, *, classes: int, axis_name: str | None = None) -> BNInception:
        """Returns the network."""
        norm = batch_norm(config, axis_name, config.normalize_together)
        return BNInception(
            classes=classes,
            norm=norm if self.normalized else None,
            activation={"relu": nn.relu, "sigmoid": nn.sigmoid}[self.activation],
            width=config.width,
            stem_stride=config.stem_stride,
            dropout=self.dropout,
            axis_name=axis_name,
            remat=config.remat,
            dtype=dtype_of(config),
            stem=config.stem,
            figure_5=config.figure_5,
            local_response_norm=self.local_response_norm,
            per_activation=self.per_activation,
        )

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


def _paper(steps: float | None, best: float) -> dict[str, str]:
    """Figure 3: steps to 72.2 %, how many times fewer than Inception's, and the best accuracy."""
    return {
        "steps to 72.2 %": "" if steps is None else f"{steps / 1e6:.1f}e6",
        "times fewer": "" if steps is None else f"{31.0e6 / steps:.1f}",
        "best, %": f"{100 * best:.1f}",
    }


_accelerated = partial(
    InceptionArm,
    learning_rate_factor=5.0,
    dropout=0.0,
    l2=2e-4 / 5,
    decay_speed=6.0,
    local_response_norm=False,
    shuffle="within_shard",
    photometric="reduced",
    accelerated=True,
)
_x30 = partial(_accelerated, learning_rate_factor=30.0)
_LARGER = 1.5  # open: how much "increased initial weights" are
_LAST = ("5a", "5b")  # open: which "last hidden layers"

ARMS = (
    # Section 4.2.2; the colours are those of Okabe & Ito.
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
    # Section 4.2.3: "some of the following"; open: which of them in which network.
    _x30(name="ensemble_1", label="ensemble, network 1", init_scale=_LARGER),
    _x30(name="ensemble_2", label="ensemble, network 2", dropout=0.05),
    _x30(name="ensemble_3", label="ensemble, network 3", dropout=0.1),
    _x30(name="ensemble_4", label="ensemble, network 4", per_activation=_LAST),
    _x30(name="ensemble_5", label="ensemble, network 5", init_scale=_LARGER, dropout=0.05),
    _x30(name="ensemble_6", label="ensemble, network 6", dropout=0.1, per_activation=_LAST),
)
FIVE = ("inception", "bn_baseline", "bn_x5", "bn_x30", "bn_x5_sigmoid")
"""The five networks of section 4.2.2."""
