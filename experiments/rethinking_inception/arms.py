"""The rows of Table 3 and the variants beside them: networks, optimizers, losses."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import flax.linen as nn
import jax
import optax

from bnjax.data.views.augmentation import Augmentation
from bnjax.models import googlenet, inception_v3
from bnjax.models.inception_modules import ReductionOrder
from bnjax.models.inception_v3 import Auxiliary
from bnjax.models.initialization import draw_kernels
from bnjax.models.rethinking import TABLE_3
from bnjax.models.summary import is_auxiliary, summarize
from bnjax.training.objectives import Objective, classification_objective
from bnjax.training.optimizers import ExponentialDecay, make_optimizer, momentum_sgd, rmsprop
from experiments.harness.affects import network, training
from experiments.harness.images.arm import ImageArm, batch_norm, dtype_of

Rule = Literal["momentum", "rmsprop"]


@dataclass(frozen=True, kw_only=True)
class RethinkingArm(ImageArm):
    """A network of Table 3 (`bnjax.models.rethinking.TABLE_3`), and how it trains.

    Attributes:
        row: the network's name in that table.
        rule: what turns gradients into updates; "rmsprop" clips them before.
        smoothed: whether labels are smoothed.
    """

    row: str = network("")
    rule: Rule = training("momentum")
    smoothed: bool = training(False)

    def model(self, config: Any, *, classes: int, axis_name: str | None = None) -> nn.Module:
        """Returns the network."""
        return TABLE_3[self.row].build(
            **{
                "norm": batch_norm(config, axis_name, config.normalize_together),
                "classes": classes,
                "width": config.width,
                "stem_stride": config.stem_stride,
                "axis_name": axis_name,
                "remat": config.remat,
                "dtype": dtype_of(config),
            }
            | self.variant(config)
        )

    def variant(self, config: Any) -> dict[str, Any]:
        """Returns the arguments that the network's class alone has, or that the arm changes."""
        return {}

    def optimizer(self, config: Any, rate: float | jax.Array) -> optax.GradientTransformation:
        """Returns momentum, or clipping and RMSProp; with exponential decay and L2."""
        schedule = ExponentialDecay(config.decay_factor, config.decay_every, staircase=True)
        if self.rule == "momentum":
            rule = momentum_sgd(rate, schedule=schedule, momentum=config.momentum)
            return make_optimizer(rule, l2=config.l2)
        rule = rmsprop(
            rate,
            schedule=schedule,
            decay=config.rmsprop_decay,
            momentum=config.momentum,
            epsilon=config.rmsprop_epsilon,
        )
        return make_optimizer(rule, l2=config.l2, clip_norm=config.clip_norm)

    def objective(self, config: Any) -> Objective:
        """Returns the cross-entropy of the classifier, and of the side heads at their weight."""
        return classification_objective(
            label_smoothing=config.label_smoothing if self.smoothed else 0.0,
            auxiliary_weights=self.head_weights(),
        )

    def head_weights(self) -> tuple[float, ...]:
        """Returns the weights of the side heads' losses."""
        return ()

    def draw(self, params: Any, key: jax.Array) -> Any:
        """Returns the initial parameters: He's, for all arms; side heads have their own."""
        heads = {name: params[name] for name in params if is_auxiliary(name)}
        return draw_kernels(params, key, scale=1.0) | heads

    def first_rate(self, config: Any) -> float:
        """Returns the learning rate of the first update."""
        factor = 1.0 if TABLE_3[self.row].normalized else config.unnormalized_factor
        return config.learning_rate * factor

    def size_field(self) -> str:
        """Returns the configuration's field that `image_size` reads."""
        return "googlenet_size"

    def augmentation(self, config: Any) -> Augmentation:
        """Returns how training views are made."""
        return replace(super().augmentation(config), photometric=config.photometric)

    def facts(self, config: Any, *, classes: int) -> dict[str, Any]:
        """Returns how large the network is."""
        return {"network": self.network_size(config, classes=classes)}

    def network_size(self, config: Any, *, classes: int) -> dict[str, int]:
        """Returns the network's parameters, and multiply-adds of an image, without side heads."""
        size = self.image_size(config)
        network = summarize(self.model(config, classes=classes), (size, size, 3)).network
        return {"parameters": network.parameters, "multiply_adds": network.multiply_adds}


@dataclass(frozen=True, kw_only=True)
class GoogLeNetArm(RethinkingArm):
    """GoogLeNet, whose two side heads add to the loss in training."""

    def head_weights(self) -> tuple[float, ...]:
        """Returns the weights of the side heads' losses."""
        return (googlenet.AUXILIARY_WEIGHT,) * len(googlenet.HEADS_AFTER)


@dataclass(frozen=True, kw_only=True)
class BNInceptionArm(RethinkingArm):
    """BN-Inception.

    Attributes:
        factorize_5x5: whether two 3x3 convolutions stand for each 5x5 one.
    """

    row: str = network("bn_inception")
    factorize_5x5: bool = network(True)

    def variant(self, config: Any) -> dict[str, Any]:
        """Returns the arguments of the network that its class alone has."""
        return {"factorize_5x5": self.factorize_5x5}


@dataclass(frozen=True, kw_only=True)
class InceptionV3Arm(RethinkingArm):
    """Inception-v3, or v2: all that follows BN-Inception in Table 3.

    Attributes:
        auxiliary: its side head; the last four are arguments of `bnjax.models.InceptionV3` too.
        shrink: of the images: 1, or 2 or 4 for the lower resolutions of Table 2.
    """

    row: str = network("inception_v3")
    rule: Rule = training("rmsprop")
    smoothed: bool = training(True)
    auxiliary: Auxiliary = network("normalized")
    linear_factors: bool = network(False)
    factorized_size: int = network(7)
    grid_reduction: ReductionOrder = network("parallel")
    shrink: Literal[1, 2, 4] = network(1)

    def variant(self, config: Any) -> dict[str, Any]:
        """Returns the arguments of the network that its class alone has, and its stem's stride."""
        return {
            "stem_stride": max(1, config.stem_stride // self.shrink),  # less is refused (config.py)
            "stem_padding": config.stem_padding,
            "auxiliary": self.auxiliary,
            "linear_factors": self.linear_factors,
            "factorized_size": self.factorized_size,
            "grid_reduction": self.grid_reduction,
        }

    def head_weights(self) -> tuple[float, ...]:
        """Returns the weight of the side head's loss, if there is one."""
        return () if self.auxiliary == "none" else (inception_v3.AUXILIARY_WEIGHT,)

    def size_field(self) -> str:
        """Returns the configuration's field that `image_size` reads."""
        return {1: "image_size", 2: "half_size", 4: "quarter_size"}[self.shrink]


def _paper(top_1: str, top_5: str, cost: str) -> Mapping[str, str]:
    return {"top-1 error, %": top_1, "top-5 error, %": top_5, "cost, 1e9": cost}


ARMS = (  # the colours are those of Okabe & Ito
    GoogLeNetArm(
        name="googlenet",
        label="GoogLeNet",
        row="googlenet",
        color="#000000",
        line="--",
        paper=_paper("29", "9.2", "1.5"),
    ),
    GoogLeNetArm(
        name="bn_googlenet",
        label="BN-GoogLeNet",
        row="bn_googlenet",
        color="#000000",
        paper=_paper("26.8", "", "1.5"),
    ),
    BNInceptionArm(
        name="bn_inception",
        label="BN-Inception",
        color="#0072b2",
        paper=_paper("25.2", "7.8", "2.0"),
    ),
    InceptionV3Arm(
        name="inception_v2",
        label="Inception-v2",
        row="inception_v2",
        rule="momentum",
        smoothed=False,
        auxiliary="plain",
        color="#56b4e9",
        line="--",
        paper=_paper("23.4", "", "3.8"),
    ),
    InceptionV3Arm(
        name="rmsprop",
        label="+ RMSProp",
        row="inception_v2",
        smoothed=False,
        auxiliary="plain",
        color="#56b4e9",
        paper=_paper("23.1", "6.3", "3.8"),
    ),
    InceptionV3Arm(
        name="label_smoothing",
        label="+ label smoothing",
        row="inception_v2",
        auxiliary="plain",
        color="#009e73",
        paper=_paper("22.8", "6.1", "3.8"),
    ),
    InceptionV3Arm(
        name="factorized_7x7",
        label="+ factorized 7x7",
        row="factorized_7x7",
        auxiliary="plain",
        color="#cc79a7",
        paper=_paper("21.6", "5.8", "4.8"),
    ),
    InceptionV3Arm(
        name="inception_v3",
        label="+ BN-auxiliary = Inception-v3",
        color="#d55e00",
        paper=_paper("21.2", "5.6", "4.8"),
    ),
    InceptionV3Arm(name="half_resolution", label="Inception-v3, half of the resolution", shrink=2),
    InceptionV3Arm(name="quarter_resolution", label="Inception-v3, a quarter of it", shrink=4),
    InceptionV3Arm(
        name="linear_factors", label="Inception-v3, linear factors", linear_factors=True
    ),
    BNInceptionArm(
        name="bn_inception_5x5", label="BN-Inception, 5x5 for two 3x3", factorize_5x5=False
    ),
    InceptionV3Arm(name="factorized_3", label="Inception-v3, n = 3", factorized_size=3),
    InceptionV3Arm(name="factorized_5", label="Inception-v3, n = 5", factorized_size=5),
    InceptionV3Arm(
        name="pool_first", label="Inception-v3, pool before modules", grid_reduction="pool_first"
    ),
    InceptionV3Arm(
        name="pool_last", label="Inception-v3, pool after modules", grid_reduction="pool_last"
    ),
    InceptionV3Arm(name="no_side_head", label="Inception-v3, no side head", auxiliary="none"),
    InceptionV3Arm(name="unsmoothed", label="Inception-v3, labels as they are", smoothed=False),
    InceptionV3Arm(name="momentum", label="Inception-v3, momentum", rule="momentum"),
)
GROUPS = {
    "table3": tuple(arm.name for arm in ARMS[:8]),
    "table2": ("inception_v3", "half_resolution", "quarter_resolution"),
    "figure2": ("inception_v3", "linear_factors"),
    "section3": (
        *("bn_inception", "bn_inception_5x5", "inception_v3", "factorized_3", "factorized_5"),
        *("pool_first", "pool_last"),
    ),
    "side_heads": ("no_side_head", "factorized_7x7", "inception_v3"),
    "section7_8": ("inception_v3", "unsmoothed", "momentum"),
}
"""Names of arms by a word that stands for them."""
