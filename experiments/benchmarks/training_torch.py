"""The training step in PyTorch. Importing this file needs torch, of the parity extra."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from bnjax.models.bn_inception import FIGURE_5, Row
from bnjax.models.inception import REDUCTIONS
from bnjax.models.layers import scaled
from experiments.benchmarks.training_spec import EPSILON, MOMENTUM, StepSpec, make_batch


class TorchTraining:
    """The network in training, channels_last; on a GPU with cuDNN; bfloat16 by autocast.

    Args:
        spec: as for the other contestants.
        params: initial parameters of `make_network("flax", spec)` or `make_network("bias", spec)`;
            without parameters of normalization the network has none.
        compiled: whether `torch.compile` compiles it, at the first step.
    """

    def __init__(
        self, spec: StepSpec, params: Mapping[str, Any], *, compiled: bool = False
    ) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network = BNInception(spec, normalized="norm" in params["conv1"])
        load(network, params)
        for parameter in network.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.network = network.to(self._device).train()
        self._forward = torch.compile(self.network) if compiled else self.network
        self._optimizer = torch.optim.SGD(
            self.network.parameters(), lr=spec.learning_rate, momentum=MOMENTUM
        )
        images, labels = make_batch(spec)
        self._images = torch.from_numpy(images).movedim(-1, 1).to(self._device)
        self._labels = torch.from_numpy(labels.astype(np.int64)).to(self._device)
        self._autocast = spec.dtype == "bfloat16"
        self._loss = torch.tensor(torch.nan)

    def run(self, steps: int) -> None:
        """Trains for some more steps; returns when the last is done."""
        for _ in range(steps):
            self._optimizer.zero_grad()
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
                logits = self._forward(self._images)
            self._loss = functional.cross_entropy(logits.float(), self._labels)
            self._loss.backward()
            self._optimizer.step()
        self._wait()

    def loss(self) -> float:
        """Returns the mean loss before the last step."""
        return float(self._loss.detach())

    def temporary_bytes(self) -> int | None:
        """Returns a step's peak above the memory between steps, on a GPU; unknown elsewhere."""
        if self._device.type != "cuda":
            return None
        self._optimizer.zero_grad()
        self._wait()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self.run(1)
        return torch.cuda.max_memory_allocated() - before

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


class BNInception(nn.Module):
    """The network of `bnjax.models.bn_inception`, its layers by the same names."""

    def __init__(self, spec: StepSpec, *, normalized: bool) -> None:
        super().__init__()
        reduction = REDUCTIONS[spec.stem_stride]
        first, second = scaled(64, spec.width), scaled(192, spec.width)
        self.conv1 = Convolution(3, first, reduction.kernel, reduction.stride, normalized)
        self.conv2_reduce = Convolution(first, first, 1, 1, normalized)
        self.conv2 = Convolution(first, second, 3, 1, normalized)
        self._pools = (reduction.first_pool, reduction.second_pool)
        self._rows = [row.name for row in FIGURE_5]
        features = second
        for row in FIGURE_5:
            module = Inception(row, features, spec.width, normalized)
            self.add_module(f"inception_{row.name}", module)
            features = module.features
        self.logits = nn.Linear(features, spec.classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns logits `[n, classes]` of images `[n, 3, h, w]`."""
        x = self.conv1(images.contiguous(memory_format=torch.channels_last))
        x = max_pool(x, 2) if self._pools[0] else x
        x = self.conv2(self.conv2_reduce(x))
        x = max_pool(x, 2) if self._pools[1] else x
        for name in self._rows:
            x = self.get_submodule(f"inception_{name}")(x)
        return self.logits(x.mean((2, 3)))


class Inception(nn.Module):
    """A row of Figure 5."""

    def __init__(self, row: Row, features: int, width: float, normalized: bool) -> None:
        super().__init__()

        def conv(into: int, out: int, size: int, stride: int = 1) -> Convolution:
            return Convolution(into, out, size, stride, normalized)

        wide = {
            name: scaled(value, width) for name, value in row._asdict().items() if name in _WIDE
        }
        self._row = row
        self.features = wide["conv3x3"] + wide["double3x3"]
        if row.conv1x1:
            self.conv1x1 = conv(features, wide["conv1x1"], 1)
            self.features += wide["conv1x1"]
        self.conv3x3_reduce = conv(features, wide["conv3x3_reduce"], 1)
        self.conv3x3 = conv(wide["conv3x3_reduce"], wide["conv3x3"], 3, row.stride)
        self.double3x3_reduce = conv(features, wide["double3x3_reduce"], 1)
        self.double3x3_a = conv(wide["double3x3_reduce"], wide["double3x3"], 3)
        self.double3x3_b = conv(wide["double3x3"], wide["double3x3"], 3, row.stride)
        if row.project:
            self.pool_project = conv(features, wide["project"], 1)
        self.features += wide["project"] if row.project else features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[n, c, h, w]` to the branches' concatenation."""
        row = self._row
        branches = [self.conv1x1(x)] if row.conv1x1 else []
        branches.append(self.conv3x3(self.conv3x3_reduce(x)))
        branches.append(self.double3x3_b(self.double3x3_a(self.double3x3_reduce(x))))
        if row.pool == "max":
            pooled = max_pool(x, row.stride)
        else:
            pooled = functional.avg_pool2d(x, 3, row.stride, 1, count_include_pad=False)
        branches.append(self.pool_project(pooled) if row.project else pooled)
        return torch.cat(branches, 1)


class Convolution(nn.Module):
    """Convolution, normalization, ReLU; without normalization, a bias in its place."""

    def __init__(self, into: int, out: int, size: int, stride: int, normalized: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(into, out, size, stride, size // 2, bias=not normalized)
        if normalized:
            self.norm = nn.BatchNorm2d(out, eps=EPSILON, momentum=1 - MOMENTUM)
        self._normalized = normalized

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[n, c, h, w]` to `[n, c', h', w']`."""
        x = self.conv(x)
        return functional.relu(self.norm(x) if self._normalized else x)


def max_pool(x: torch.Tensor, stride: int) -> torch.Tensor:
    """Pools windows of 3x3, padded as by Flax's "SAME": more at the bottom and right."""
    borders = []
    for size in (x.shape[3], x.shape[2]):  # the last axis first
        missing = max(0, (-(-size // stride) - 1) * stride + 3 - size)
        borders += [missing // 2, missing - missing // 2]
    return functional.max_pool2d(functional.pad(x, borders, value=-torch.inf), 3, stride)


def load(network: nn.Module, params: Mapping[str, Any]) -> None:
    """Copies Flax's parameters into the modules of the same names."""
    for name, value in params.items():
        if isinstance(value, Mapping):
            load(network.get_submodule(name), value)
            continue
        array = np.array(value)
        if name == "kernel":  # height, width, in, out; or in, out
            array = np.moveaxis(array, (-1, -2), (0, 1))
        target = getattr(network, {"kernel": "weight", "scale": "weight"}.get(name, name))
        if target.shape != array.shape:
            raise ValueError(f"{name} has shape {array.shape}, the network wants {target.shape}.")
        with torch.no_grad():
            target.copy_(torch.from_numpy(array.copy()))


_WIDE = {"conv1x1", "conv3x3_reduce", "conv3x3", "double3x3_reduce", "double3x3", "project"}
