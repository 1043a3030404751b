"""The networks that are compared."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import optax

from bnjax.evidence.figures import NORMALIZED, PLAIN
from bnjax.models import MLP, LeNet5, scaled_tanh
from bnjax.training.optimizers import sgd
from experiments.harness.affects import nothing
from experiments.harness.arm import Arm
from experiments.harness.images.arm import batch_norm

_ACTIVATIONS = {
    "tanh": nn.tanh,
    "scaled_tanh": scaled_tanh,
    "sigmoid": nn.sigmoid,
    "relu": nn.relu,
}


@dataclass(frozen=True, kw_only=True)
class DigitsArm(Arm):
    """A network of digits.

    Attributes:
        lenet: whether it is LeNet, and not the paper's perceptron.
        normalized: whether every hidden layer has batch normalization.
        short_label: in figures that show its pair alone.
    """

    lenet: bool = nothing(False)
    normalized: bool = nothing(False)
    short_label: str = nothing("")

    def model(self, config: Any) -> nn.Module:
        """Returns the network."""
        norm = batch_norm(config, axis_name=None) if self.normalized else None
        if not self.lenet:
            return MLP(norm=norm, kernel_init=nn.initializers.normal(config.weight_std))
        return LeNet5(
            norm=norm,
            activation=_ACTIVATIONS[config.lenet_activation],
            pool=config.lenet_pool,
            convolution=config.convolution,
        )

    def optimizer(self, rate: float | jax.Array) -> optax.GradientTransformation:
        """Returns plain gradient descent; its rate lies in its state."""
        return sgd(rate)

    def last_preactivation(self, intermediates: dict) -> jax.Array:
        """Returns the input `[n, units]` of the last hidden layer's nonlinearity."""
        layer = "F6_activation" if self.lenet else "hidden3"
        return intermediates[layer]["preactivation"][0]


ARMS = (
    DigitsArm(name="mlp", label="3x100 sigmoid", short_label="without BN", color=PLAIN, line="--"),
    DigitsArm(
        name="mlp_bn",
        label="3x100 sigmoid, BN",
        short_label="with BN",
        color=NORMALIZED,
        normalized=True,
    ),
    DigitsArm(
        name="lenet", label="LeNet-5", short_label="LeNet-5", color=PLAIN, line="--", lenet=True
    ),
    DigitsArm(
        name="lenet_bn",
        label="LeNet-5, BN",
        short_label="LeNet-5 with BN",
        color=NORMALIZED,
        lenet=True,
        normalized=True,
    ),
)
PAIRS = (("mlp", "mlp_bn"), ("lenet", "lenet_bn"))
"""Arms that differ in normalization alone."""
