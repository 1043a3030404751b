"""The train step's network in PyTorch trains as the one in Flax does.

With three Inception modules of ten, one of each kind: compiling all of them takes a minute.
"""

import jax
import numpy as np
import pytest
import torch

from bnjax.models import bn_inception
from experiments.benchmarks import training_torch
from experiments.benchmarks.training import initial_variables, make_network, make_training
from experiments.benchmarks.training_spec import StepSpec
from experiments.benchmarks.training_torch import TorchTraining, load, max_pool

pytestmark = pytest.mark.parity

SPEC = StepSpec(0.125, 12, 1, 4, 3, "float32", 0.01)


@pytest.fixture(autouse=True)
def _short_network(monkeypatch):
    rows = [row for row in bn_inception.FIGURE_5 if row.name in ("3a", "3c", "5b")]
    monkeypatch.setattr(bn_inception, "FIGURE_5", rows)
    monkeypatch.setattr(training_torch, "FIGURE_5", rows)


@pytest.mark.parametrize(("name", "twin"), [("flax", "torch"), ("bias", "torch_bias")])
def test_torch_and_flax_train_the_same_network(name, twin):
    """Red for another border rule of a pool, width, branch, momentum or initial value.

    Losses before each of three steps.
    """
    losses: dict[str, list[float]] = {name: [], twin: []}
    for each in (name, twin):
        training = make_training(each, SPEC)
        for _ in range(3):
            training.run(1)
            losses[each].append(training.loss())
    assert abs(losses[name][2] - losses[name][0]) > 1e-3
    np.testing.assert_allclose(losses[twin], losses[name], rtol=2e-4)


def test_every_parameter_is_copied():
    params = initial_variables(make_network("flax", SPEC), SPEC)["params"]
    training = TorchTraining(SPEC, params)
    count = sum(parameter.numel() for parameter in training.network.parameters())
    assert count == sum(leaf.size for leaf in _leaves(params))
    with pytest.raises(ValueError, match="kernel has shape"):
        load(training.network, {"conv1": {"conv": {"kernel": np.zeros((3, 3, 3, 99))}}})


@pytest.mark.parametrize("size", [5, 6])
@pytest.mark.parametrize("stride", [1, 2])
def test_max_pool_pads_as_flax_does(size, stride):
    import flax.linen as nn

    x = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    ours = max_pool(torch.from_numpy(x).movedim(-1, 1), stride).movedim(1, -1)
    np.testing.assert_array_equal(ours, nn.max_pool(x, (3, 3), (stride, stride), "SAME"))


def test_bfloat16_is_autocast():
    """The losses differ from float32, but little."""
    losses = []
    for dtype in ("float32", "bfloat16"):
        with jax.numpy_dtype_promotion("standard"):  # Flax, whose parameters it takes, needs it
            training = make_training("torch", SPEC._replace(dtype=dtype))
        training.run(1)
        losses.append(training.loss())
    assert 0 < abs(losses[0] - losses[1]) < 0.1


def _leaves(tree):
    for value in tree.values():
        yield from _leaves(value) if isinstance(value, dict) else [value]
