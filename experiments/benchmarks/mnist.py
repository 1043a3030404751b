"""Training speed on the paper's MNIST network: bnjax's program, a Flax loop, eager PyTorch.

All train 784-100-100-100-10 with batch normalization from the same initial weights on the same
batches. Each runs once in every repeat, one after another in one process, so that all meet the
machine in the same state. They do not disturb each other: with each program alone in a process, a
step takes the same CPU time to 4 % (measured on 2 cores), with one JAX device or one per core.
"""

import math
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bnjax.data import DataSet, in_memory, open_data
from bnjax.training.parallel import one_cpu_device_per_core
from experiments.benchmarks import tables
from experiments.benchmarks.benchmark import Result, not_installed, provenance
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
from experiments.harness.bounds import check_fields
from experiments.mnist_lenet.config import DATA
from experiments.mnist_lenet.config import Config as Setting

TARGETS = {"flax": 1.8, "torch": 3.0}
"""Targets: bnjax's steps a second, all seeds counted, over a peer's."""

LABELS = {"bnjax": "bnjax", "flax": "Flax, a jitted step a batch", "torch": "PyTorch, eager"}

_SETTING = ("batch_size", "learning_rate", "weight_std", "threshold", "decay", "epsilon")


@dataclass(frozen=True)
class Config:
    """Training speed on the paper's MNIST network: bnjax, a Flax loop, eager PyTorch."""

    data: str = "mnist5k"
    """Data set: mnist5k (packaged, 4,000 + 1,000 digits), mnist or fashion_mnist."""
    data_dir: Path | None = None
    """Folder of prepared data sets; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
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
        check_fields(self, choices={"data": DATA})
        if self.steps % self.steps_per_dispatch:
            raise ValueError(
                f"steps={self.steps} must be a multiple of "
                f"steps_per_dispatch={self.steps_per_dispatch}: a shorter dispatch would compile "
                "while the clock runs."
            )


def start(config: Config) -> None:
    """Makes every core a JAX device, so that all programs use the same cores."""
    del config
    jax.config.update("jax_platforms", "cpu")
    one_cpu_device_per_core()


def measure(config: Config) -> Result:
    """Times all programs that are installed."""
    dataset = in_memory(open_data(config.data, data_dir=config.data_dir))
    setting = Setting(data=config.data)
    torch, missing = _find_torch()
    flax_loop = FlaxLoop(setting, dataset)
    params = flax_loop.start().params
    programs = [
        *_bnjax_programs(config, setting, dataset),
        _loop_program(config, setting, dataset, {"program": "flax"}, flax_loop),
        *_torch_programs(config, setting, dataset, params, torch),
    ]
    rate = matmul_flops_per_second(config.matmul_size, config.matmul_tries)
    repeats = [[run()._asdict() for _, run in programs] for _ in range(config.repeats)]
    kernels = [params[layer]["kernel"].shape for layer in LAYERS]
    peers = {"torch": torch["version"]} if torch else {}
    return {
        **provenance("mnist", config, peers=peers, missing=missing),
        "setting": {name: getattr(setting, name) for name in _SETTING},
        "data_sha256": dataset.sha256,
        "test_examples": len(dataset.test.labels),
        "torch": torch,
        "flops_per_step": step_flops(setting.batch_size, kernels),
        "machine_flops_per_second": rate,
        "programs": [
            {**entry, "repeats": list(runs)}
            for (entry, _), runs in zip(programs, zip(*repeats, strict=True), strict=True)
        ],
    }


def step_flops(batch_size: int, kernels: Iterable[tuple[int, ...]]) -> int:
    """Returns FLOPs of one training step's matrix products; a multiply and an add are two.

    Each dense layer has its output, the gradient of its kernel and, but for the first layer, the
    gradient of its input: 2 x batch x in x out FLOPs each.

    Args:
        batch_size: examples of a step.
        kernels: `(in, out)` of each layer, first to last.
    """
    sizes = [math.prod(shape) for shape in kernels]
    return 2 * batch_size * (2 * sum(sizes) + sum(sizes[1:]))


_Program = tuple[dict[str, Any], Callable[[], Trained]]
"""The program's entry in the result, and its run."""


def _bnjax_programs(config: Config, setting: Setting, dataset: DataSet) -> list[_Program]:
    """Returns bnjax's program with all seeds at once, and with one."""

    def program(seeds: int) -> _Program:
        task = bnjax_task(
            setting, seeds=seeds, steps=config.steps, steps_per_dispatch=config.steps_per_dispatch
        )
        description = f"program: bnjax, seeds: {seeds}"
        return {"program": "bnjax", "seeds": seeds}, lambda: run_bnjax(task, dataset, description)

    return [program(seeds) for seeds in sorted({config.seeds, 1}, reverse=True)]


def _torch_programs(
    config: Config, setting: Setting, dataset: DataSet, params: Any, torch: dict[str, Any] | None
) -> list[_Program]:
    """Returns PyTorch with its default threads and with one; the table takes the better."""
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

    return entry, run


def _find_torch() -> tuple[dict[str, Any] | None, dict[str, str]]:
    """Returns PyTorch's version and threads; or None, and why it is missing."""
    try:
        import torch
    except ImportError as error:
        return None, {"torch": not_installed(error)}
    return {"version": torch.__version__, "default_threads": torch.get_num_threads()}, {}


def table(result: Result) -> str:
    """Returns a line for each program, then conditions and targets."""
    best = {name: _best_rate(result, name) for name in LABELS}
    heads = [
        "training program",
        "steps x seeds per second (range)",
        "ratio to Flax",
        "ratio to PyTorch",
        "of the machine's matrix products",
        "test accuracy, seed 0",
    ]
    rows: list[list[str]] = []
    for entry in result["programs"]:
        rates = _rates(result, entry)
        median = statistics.median(rates)
        share = median * result["flops_per_step"] / result["machine_flops_per_second"]
        rows.append(
            [
                _label(entry),
                f"{median:,.0f} ({min(rates):,.0f} to {max(rates):,.0f})",
                *(f"{median / best[peer]:.2f}" if best[peer] else "" for peer in TARGETS),
                f"{100 * share:.1f} %",
                f"{100 * _accuracies(result, entry)[0]:.2f} %",
            ]
        )
    for name, reason in result["missing"].items():
        rows.append([LABELS[name], f"not measured: {reason}"])
    notes = [*_conditions(result), *_seeds(result), *_targets(best)]
    return f"{tables.table(heads, rows)}\n\n{tables.bullets(notes)}"


def _conditions(result: Result) -> Iterator[str]:
    config, setting, environment = result["config"], result["setting"], result["environment"]
    yield (
        f"{config['data']}, batches of {setting['batch_size']}, plain SGD at "
        f"{setting['learning_rate']:g}; all start from the same weights and see the same batches. "
        f"Median and range of {_count(config['repeats'], 'run')}, the programs in turn: "
        f"{config['steps_per_dispatch']:,} steps untimed, {config['steps']:,} timed, then the "
        "accuracy. bnjax's time holds an evaluation on the test set and the order of the examples, "
        "the others' neither. The ratio to PyTorch is to its better number of threads."
    )
    yield (
        f"A step has {result['flops_per_step'] / 1e6:.2f} MFLOP in matrix products: forward, the "
        "gradient of each kernel, the gradient of each layer's input but the first's. The machine "
        f"does {result['machine_flops_per_second'] / 1e9:.0f} GFLOP/s on float32 matrices of "
        f"{config['matmul_size']:,} x {config['matmul_size']:,}."
    )
    # The committed result is older than `peers` and `allocation`.
    torch = {"torch": result["torch"]["version"]} if result["torch"] else {}
    yield tables.surroundings(
        {"allocation": {}, **result, "peers": torch},
        device=f"{environment['processor']}, {_count(environment['device_count'], 'core')}",
    )


def _seeds(result: Result) -> Iterator[str]:
    for entry in result["programs"]:
        if entry["seeds"] > 1:
            accuracies = [100 * accuracy for accuracy in _accuracies(result, entry)]
            yield (
                f"{_label(entry)}: test accuracy {statistics.mean(accuracies):.2f} ± "
                f"{statistics.stdev(accuracies):.2f} %, mean ± sd over the seeds."
            )


def _targets(best: dict[str, float]) -> Iterator[str]:
    for name, target in TARGETS.items():
        if best[name]:
            reached = best["bnjax"] >= target * best[name]
            yield f"Target: {target:g} times {LABELS[name]}: {tables.verdict(reached)}."


def _best_rate(result: Result, name: str) -> float:
    """Returns the highest median rate of a program's variants; 0 if it was not measured."""
    entries = [entry for entry in result["programs"] if entry["program"] == name]
    return max((statistics.median(_rates(result, entry)) for entry in entries), default=0.0)


def _rates(result: Result, entry: dict[str, Any]) -> list[float]:
    """Returns steps x seeds per second of each repeat."""
    done = result["config"]["steps"] * entry["seeds"]
    return [done / repeat["seconds"] for repeat in entry["repeats"]]


def _accuracies(result: Result, entry: dict[str, Any]) -> list[float]:
    """Returns each seed's accuracy, the mean over the repeats."""
    correct = np.array([repeat["correct"] for repeat in entry["repeats"]])
    return [float(mean) for mean in correct.mean(axis=0) / result["test_examples"]]


def _label(entry: dict[str, Any]) -> str:
    text = LABELS[entry["program"]]
    if entry["program"] == "bnjax":
        text += f", {_count(entry['seeds'], 'seed')}"
    if "threads" in entry:
        text += f", {_count(entry['threads'], 'thread')}"
    return text


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
