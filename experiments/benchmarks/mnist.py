"""Training speed on the paper's MNIST network: bnjax's program, a Flax loop, eager PyTorch.

All train 784-100-100-100-10 with batch normalization from the same initial weights on the same
batches. Each runs once in every repeat, one after another in one process, so that all meet the
machine in the same state. They do not disturb each other: with each program alone in a process, a
step takes the same CPU time to 4 % (measured on 2 cores), with one JAX device or one per core.
"""

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

from bnjax.data import DataSet
from bnjax.evidence.records import environment
from experiments.benchmarks.machine import matmul_flops_per_second
from experiments.benchmarks.mnist_programs import (
    LAYERS,
    FlaxLoop,
    Loop,
    Trained,
    bnjax_task,
    order,
    run_bnjax,
    run_loop,
)
from experiments.benchmarks.mnist_table import table
from experiments.mnist_lenet.config import DATA
from experiments.mnist_lenet.config import Config as Setting

__all__ = ["SCHEMA", "Config", "measure", "step_flops", "table"]

SCHEMA = 1

_SETTING = ("batch_size", "learning_rate", "weight_std", "threshold", "decay", "epsilon")


@dataclass(frozen=True)
class Config:
    """Training speed on the paper's MNIST network with batch normalization."""

    data: str = "mnist5k"
    """Data set: mnist5k (packaged, 4,000 + 1,000 digits), mnist or fashion_mnist."""
    seeds: int = 10
    """Runs that bnjax trains at once; it is timed with one, too."""
    steps: int = 2_000
    """Timed training steps of each run."""
    steps_per_dispatch: int = 100
    """Steps in one call of bnjax's compiled program. As many come first, untimed, in each run of
    every program: they compile and warm up."""
    repeats: int = 5
    """Timed runs of each program."""
    matmul_size: int = 2_048
    """Rows and columns of the float32 matrices whose product gives the machine's rate."""
    matmul_tries: int = 10
    """Products of which the fastest counts."""

    def __post_init__(self) -> None:
        if self.data not in DATA:
            raise ValueError(f"data: unknown {self.data!r}; choose from {', '.join(DATA)}.")
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{item.name} must be >= 1, got {value}.")
        if self.steps % self.steps_per_dispatch:
            raise ValueError(
                f"steps={self.steps} must be a multiple of "
                f"steps_per_dispatch={self.steps_per_dispatch}: a shorter dispatch would compile "
                "while the clock runs."
            )


class _Program(NamedTuple):
    entry: dict[str, Any]
    run: Callable[[], Trained]


def measure(config: Config, dataset: DataSet) -> dict[str, Any]:
    """Times all programs.

    Returns:
        JSON values, raw; `missing` names the programs whose library is not installed, and why.
    """
    setting = Setting(data=config.data)
    torch, missing = _torch()
    flax_loop = FlaxLoop(setting, dataset)
    params = flax_loop.start().params
    programs = [
        *_bnjax_programs(config, setting, dataset),
        _loop_program(config, setting, dataset, {"program": "flax"}, flax_loop),
        *_torch_programs(config, setting, dataset, params, torch),
    ]
    rate = matmul_flops_per_second(config.matmul_size, config.matmul_tries)
    repeats = [[program.run()._asdict() for program in programs] for _ in range(config.repeats)]
    kernels = [params[layer]["kernel"].shape for layer in LAYERS]
    return {
        "schema": SCHEMA,
        "benchmark": "mnist",
        "config": asdict(config),
        "setting": {name: getattr(setting, name) for name in _SETTING},
        "data_sha256": dataset.sha256,
        "test_examples": len(dataset.test.labels),
        "environment": environment(),
        "torch": torch,
        "missing": missing,
        "flops_per_step": step_flops(setting.batch_size, kernels),
        "machine_flops_per_second": rate,
        "programs": [
            {**program.entry, "repeats": list(runs)}
            for program, runs in zip(programs, zip(*repeats, strict=True), strict=True)
        ],
    }


def step_flops(batch_size: int, kernels: Iterable[tuple[int, ...]]) -> int:
    """FLOPs of the matrix products of one training step; a multiply and an add are two.

    Each dense layer has its output, the gradient of its kernel and, but for the first layer, the
    gradient of its input: 2 x batch x in x out FLOPs each.

    Args:
        batch_size: examples of a step.
        kernels: `(in, out)` of each layer, first to last.
    """
    sizes = [math.prod(shape) for shape in kernels]
    return 2 * batch_size * (2 * sum(sizes) + sum(sizes[1:]))


def _bnjax_programs(config: Config, setting: Setting, dataset: DataSet) -> list[_Program]:
    """With all seeds at once, and with one."""

    def program(seeds: int) -> _Program:
        task = bnjax_task(
            setting, seeds=seeds, steps=config.steps, steps_per_dispatch=config.steps_per_dispatch
        )
        entry = {"program": "bnjax", "seeds": seeds}
        return _Program(entry, lambda: run_bnjax(task, dataset, f"program: bnjax, seeds: {seeds}"))

    return [program(seeds) for seeds in sorted({config.seeds, 1}, reverse=True)]


def _torch_programs(
    config: Config, setting: Setting, dataset: DataSet, params: Any, torch: dict[str, Any] | None
) -> list[_Program]:
    """With PyTorch's default threads, and with one; the table compares with the better."""
    if torch is None:
        return []
    from experiments.benchmarks.mnist_torch import TorchLoop

    return [
        _loop_program(
            config,
            setting,
            dataset,
            {"program": "torch", "threads": threads},
            TorchLoop(setting, dataset, params, threads=threads),
        )
        for threads in sorted({torch["default_threads"], 1}, reverse=True)
    ]


def _loop_program(
    config: Config, setting: Setting, dataset: DataSet, entry: dict[str, Any], loop: Loop[Any]
) -> _Program:
    untimed = config.steps_per_dispatch
    indices = order(setting, dataset, untimed + config.steps)
    entry = {**entry, "seeds": 1}

    def run() -> Trained:
        # bnjax's program shows its own progress; a bar in these loops would cost them time.
        print(", ".join(f"{key}: {value}" for key, value in entry.items()), file=sys.stderr)
        return run_loop(loop, indices, untimed=untimed)

    return _Program(entry, run)


def _torch() -> tuple[dict[str, Any] | None, dict[str, str]]:
    """Version and threads; or None, and why it is missing."""
    try:
        import torch
    except ImportError as error:
        return None, {"torch": f"{error}; the extra bnjax[parity] has it on Python 3.11"}
    return {"version": torch.__version__, "default_threads": torch.get_num_threads()}, {}
