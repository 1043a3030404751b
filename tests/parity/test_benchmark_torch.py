"""The benchmark's PyTorch loop computes what its Flax loop computes."""

import numpy as np
import pytest

from bnjax.data import in_memory, open_data
from experiments.benchmarks import mnist
from experiments.benchmarks.mnist_programs import LAYERS, FlaxLoop, order
from experiments.mnist_lenet.config import Config as Setting

pytestmark = pytest.mark.parity


def test_torch_and_flax_train_the_same_network():
    """Red for another learning rate, momentum, order, threshold, epsilon or initial weight."""
    from experiments.benchmarks.mnist_torch import TorchLoop

    setting, dataset = Setting(), in_memory(open_data("mnist5k"))
    indices = order(setting, dataset, 6)
    flax = FlaxLoop(setting, dataset)
    initial = flax.start().params
    torch = TorchLoop(setting, dataset, initial, threads=1)
    network = torch.train(torch.start(), indices)
    state = flax.train(flax.start(), indices)

    dense = [network[i] for i in (0, 3, 6, 9)]
    for name, module in zip(LAYERS, dense, strict=True):
        assert np.abs(initial[name]["kernel"] - state.params[name]["kernel"]).max() > 1e-3
        _assert_same(module.weight.T, state.params[name]["kernel"])
    _assert_same(dense[-1].bias, state.params["logits"]["bias"])
    for i, position in enumerate((1, 4, 7), start=1):
        _assert_same(network[position].weight, state.params[f"norm{i}"]["scale"])
        _assert_same(network[position].bias, state.params[f"norm{i}"]["bias"])
        _assert_same(network[position].running_mean, state.batch_stats[f"norm{i}"]["mean"])
    assert torch.correct(network) == flax.correct(state)


def test_torch_is_measured_with_its_threads_and_with_one():
    config = mnist.Config(
        seeds=2, steps=2, steps_per_dispatch=2, repeats=1, matmul_size=16, matmul_tries=1
    )
    result = mnist.measure(config)
    assert result["missing"] == {}
    assert [len(p["repeats"][0]["correct"]) for p in result["programs"]][:2] == [2, 1]
    threads = {p["threads"] for p in result["programs"] if p["program"] == "torch"}
    assert threads == {1, result["torch"]["default_threads"]}
    assert "PyTorch, eager, 1 thread" in mnist.table(result)


def _assert_same(actual, desired):
    np.testing.assert_allclose(actual.detach().numpy(), desired, rtol=0, atol=2e-6)
