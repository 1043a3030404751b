"""Networks as Flax Linen modules; normalization and activation are arguments of each."""

from bnjax.models.bn_inception import BNInception
from bnjax.models.googlenet import GoogLeNet
from bnjax.models.inception import Logits
from bnjax.models.inception_v3 import InceptionV3
from bnjax.models.layers import scaled_tanh
from bnjax.models.lenet import LeNet5
from bnjax.models.mlp import MLP
from bnjax.models.norms import fuses_activation, norm_by_name
from bnjax.models.pretrained import (
    Preprocessing,
    Pretrained,
    Saved,
    load_pretrained,
    load_safetensors,
    save_safetensors,
)
from bnjax.models.training_mode import apply_train

__all__ = [
    "MLP",
    "BNInception",
    "GoogLeNet",
    "InceptionV3",
    "LeNet5",
    "Logits",
    "Preprocessing",
    "Pretrained",
    "Saved",
    "apply_train",
    "fuses_activation",
    "load_pretrained",
    "load_safetensors",
    "norm_by_name",
    "save_safetensors",
    "scaled_tanh",
]
