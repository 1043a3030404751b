"""The layer in eager PyTorch. Importing this file needs torch, of the parity extra."""

import numpy as np
import torch
from torch.nn import functional

from experiments.benchmarks.batch_norm_layers import DECAY, EPSILON, LayerSpec
from experiments.benchmarks.batch_norm_values import Inputs, Outputs


class TorchProgram:
    """`torch.nn.BatchNorm`, channels_last for images; on a GPU with cuDNN.

    In bfloat16 the input is bfloat16, scale, bias and statistics float32: what autocast does.

    Args:
        spec: the input and the form of the layer.
        inputs: rounded here to the layer's dtype.
        threads: number of PyTorch's threads on CPUs; None is its own choice.
    """

    def __init__(self, spec: LayerSpec, inputs: Inputs, *, threads: int | None = None) -> None:
        self._threads = threads or torch.get_num_threads()
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        make = {2: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d}[len(spec.shape)]
        self._layer = make(spec.features, eps=EPSILON, momentum=1 - DECAY).to(self._device)
        with torch.no_grad():
            self._layer.weight.copy_(torch.from_numpy(inputs.scale))
            self._layer.bias.copy_(torch.from_numpy(inputs.bias))
        self._relu = spec.relu
        dtype = getattr(torch, spec.dtype)
        self._x, self._dy = (self._tensor(values, dtype) for values in (inputs.x, inputs.dy))
        self._x.requires_grad_(True)

    def run(self, calls: int) -> None:
        """Makes forward and backward passes; returns when the last is done."""
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        for _ in range(calls):
            self._call()
        self._wait()
        torch.set_num_threads(before)

    def result(self) -> Outputs:
        """Returns the outputs of a call."""
        y = self._call()
        weight, bias = self._layer.weight, self._layer.bias
        return Outputs(
            np.moveaxis(_float64(y), 1, -1),
            np.moveaxis(_float64(self._x.grad), 1, -1),
            _float64(weight.grad),
            _float64(bias.grad),
        )

    def temporary_bytes(self) -> int | None:
        """Returns the peak without inputs and outputs on a GPU; unknown elsewhere."""
        if self._device.type != "cuda":
            return None
        self._wait()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        y = self._call()
        self._wait()
        outputs = 2 * y.numel() * y.element_size()
        return max(0, torch.cuda.max_memory_allocated() - before - outputs)

    def _call(self) -> torch.Tensor:
        self._x.grad = None
        self._layer.zero_grad(set_to_none=True)
        y = self._layer(self._x)
        if self._relu:
            y = functional.relu(y)
        y.backward(self._dy)
        return y

    def _tensor(self, values: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        tensor = torch.from_numpy(np.moveaxis(values, -1, 1)).to(self._device, dtype)
        images = tensor.ndim == 4
        return tensor.contiguous(
            memory_format=torch.channels_last if images else torch.contiguous_format
        )

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def _float64(tensor: torch.Tensor | None) -> np.ndarray:
    assert tensor is not None, "a gradient is missing"
    return tensor.detach().double().cpu().numpy()
