"""The networks of digits are those that their configuration says."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from configured_norms import CONFIGURED, settings_of

from bnjax.linen import BatchNorm
from bnjax.models import MLP, LeNet5, scaled_tanh
from experiments.harness.arm import by_name
from experiments.mnist_lenet.arms import ARMS
from experiments.mnist_lenet.config import Config


def network(name, **changes):
    return by_name(ARMS, name).model(Config(**changes))


@pytest.mark.parametrize(
    ("name", "kind"), [("mlp", MLP), ("mlp_bn", MLP), ("lenet", LeNet5), ("lenet_bn", LeNet5)]
)
@pytest.mark.parametrize("configured", CONFIGURED, ids=lambda each: each["averaging"])
def test_normalization_is_as_configured(name, kind, configured):
    """Seen red without each of the settings."""
    model = network(name, **configured)
    assert type(model) is kind
    if not name.endswith("_bn"):
        assert model.norm is None
        return
    layer = model.norm(name="norm")
    assert type(layer) is BatchNorm
    assert settings_of(layer) == configured
    assert layer.batch == "all"


@pytest.mark.parametrize(
    ("field", "attribute", "value", "made"),
    [
        ("lenet_activation", "activation", "tanh", nn.tanh),
        ("lenet_activation", "activation", "scaled_tanh", scaled_tanh),
        ("lenet_activation", "activation", "sigmoid", nn.sigmoid),
        ("lenet_activation", "activation", "relu", nn.relu),
        ("lenet_pool", "pool", "max", "max"),
        ("lenet_pool", "pool", "subsample", "subsample"),
        ("convolution", "convolution", "xla", "xla"),
    ],
)
def test_lenet_is_as_configured(field, attribute, value, made):
    """And the perceptron keeps its sigmoids."""
    assert getattr(network("lenet_bn", **{field: value}), attribute) == made
    assert network("mlp_bn", **{field: value}).activation is nn.sigmoid


@pytest.mark.parametrize("name", ["mlp", "mlp_bn"])
def test_the_perceptron_s_weights_are_drawn_with_the_configured_deviation(name):
    kernel = network(name, weight_std=0.03).kernel_init(jax.random.key(0), (300, 300))
    np.testing.assert_allclose(np.std(kernel), 0.03, rtol=0.02)
