"""The same network in eager PyTorch. Importing this file needs torch, of the parity extra."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from bnjax.data import ArraySplit, DataSet
from experiments.benchmarks.mnist_programs import LAYERS, inputs
from experiments.mnist_lenet.config import Config as Setting


class TorchLoop:
    """Makes a step on each batch, on tensors that are prepared before the clock starts.

    Args:
        setting: the experiment's numbers.
        dataset: to train and test on.
        params: initial parameters of `FlaxMLP`, NumPy or JAX arrays.
        threads: number of PyTorch's threads.
    """

    def __init__(self, setting: Setting, dataset: DataSet, params: Any, *, threads: int) -> None:
        self._setting = setting
        self._params = params
        self._threads = threads
        self._images, self._labels = _tensors(setting, dataset.train)
        self._test, self._answers = _tensors(setting, dataset.test)

    def start(self) -> nn.Sequential:
        """Returns the network with the initial parameters, in training mode."""
        network = _network(self._setting, self._params)
        return network.train()

    def train(self, state: nn.Sequential, indices: np.ndarray) -> nn.Sequential:
        """Trains the network in place on the batches `[steps, batch]`."""
        threads_before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        optimizer = torch.optim.SGD(state.parameters(), lr=self._setting.learning_rate)
        for chosen in torch.from_numpy(indices.astype(np.int64)):
            optimizer.zero_grad()
            logits = state(self._images[chosen])
            functional.cross_entropy(logits, self._labels[chosen]).backward()
            optimizer.step()
        torch.set_num_threads(threads_before)
        return state

    def correct(self, state: nn.Sequential) -> int:
        """Counts correctly classified examples of the test set, with the running statistics."""
        with torch.no_grad():
            answers = state.eval()(self._test).argmax(-1)
        return int((answers == self._answers).sum())


def _network(setting: Setting, params: Any) -> nn.Sequential:
    modules: list[nn.Module] = []
    for name in LAYERS:
        kernel = torch.from_numpy(np.array(params[name]["kernel"]).T.copy())
        units, width = kernel.shape
        layer = nn.Linear(width, units, bias=name == "logits")
        with torch.no_grad():
            layer.weight.copy_(kernel)
            if name == "logits":
                layer.bias.zero_()
        modules.append(layer)
        if name != "logits":
            norm = nn.BatchNorm1d(units, eps=setting.epsilon, momentum=1 - setting.decay)
            modules += [norm, nn.Sigmoid()]
    return nn.Sequential(*modules)


def _tensors(setting: Setting, split: ArraySplit) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.from_numpy(inputs(setting, split))
    return images, torch.from_numpy(split.labels.astype(np.int64))
