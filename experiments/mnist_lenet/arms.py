"""The networks that are compared."""

from functools import partial

import flax.linen as nn
import jax

from bnjax.linen import BatchNorm
from bnjax.models import MLP, LeNet5, scaled_tanh
from experiments.mnist_lenet.config import Config

_ACTIVATIONS = {
    "tanh": nn.tanh,
    "scaled_tanh": scaled_tanh,
    "sigmoid": nn.sigmoid,
    "relu": nn.relu,
}


def make_model(config: Config, arm: str) -> nn.Module:
    """The network of an arm; arms with `_bn` normalize every hidden layer."""
    norm = None
    if arm.endswith("_bn"):
        norm = partial(
            BatchNorm,
            momentum=config.decay,
            epsilon=config.epsilon,
            averaging=config.averaging,
            running_var=config.running_var,
        )
    if not config.is_lenet(arm):
        return MLP(norm=norm, kernel_init=nn.initializers.normal(config.weight_std))
    return LeNet5(
        norm=norm,
        activation=_ACTIVATIONS[config.lenet_activation],
        pool=config.lenet_pool,
        convolution=config.convolution,
    )


def last_preactivation(arm: str, intermediates: dict) -> jax.Array:
    """The input `[n, units]` of the last hidden layer's nonlinearity."""
    layer = "F6_activation" if arm.startswith("lenet") else "hidden3"
    return intermediates[layer]["preactivation"][0]
