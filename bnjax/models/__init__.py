"""Networks as Flax Linen modules; normalization and activation are arguments of each."""

from bnjax.models.layers import scaled_tanh
from bnjax.models.lenet import LeNet5
from bnjax.models.mlp import MLP

__all__ = ["MLP", "LeNet5", "scaled_tanh"]
