"""Figure 1 of Ioffe & Szegedy 2015: digits with and without batch normalization."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bnjax.data import DataSet, in_memory
from bnjax.training.parallel import one_cpu_device_per_core
from experiments.harness.arm import by_name
from experiments.harness.bounds import check_population
from experiments.harness.compute import Compute
from experiments.harness.experiment import Experiment, Member, Task
from experiments.mnist_lenet.arms import ARMS, DigitsArm
from experiments.mnist_lenet.config import PRESETS, Config
from experiments.mnist_lenet.report import PAGE
from experiments.mnist_lenet.train import together, train


@dataclass(frozen=True)
class OneCPUDevicePerCore(Compute):
    """One process; on a CPU, each core is a device that trains runs of its own."""

    def start(self) -> None:
        """Asks for the devices, before JAX starts."""
        one_cpu_device_per_core()

    def described(self, task: Any) -> dict[str, Any]:
        """Returns how the runs of one device are computed."""
        return {"together": together(task.config)}


def tasks(config: Config, arms: Sequence[DigitsArm]) -> list[Task]:
    """Returns the runs of the comparison, arm by arm, then those of the sweep."""
    return [comparison(config, arm.name) for arm in arms] + [
        Task(
            config,
            arm,
            tuple(
                Member(seed, rate)
                for rate in config.sweep
                for seed in config.run_seeds(arm, sweep=True)
            ),
            config.schedule(arm, sweep=True),
            sweep=True,
        )
        for arm in arms
        if config.sweep
    ]


def comparison(config: Config, name: str, seeds: range | None = None) -> Task:
    """Returns the runs of an arm at the learning rate of the comparison, by default all seeds."""
    arm = by_name(ARMS, name)
    chosen = config.run_seeds(arm) if seeds is None else seeds
    members = tuple(Member(seed, config.learning_rate) for seed in chosen)
    return Task(config, arm, members, config.schedule(arm))


def check(task: Task, data: DataSet, compute: Compute) -> None:
    """Raises ValueError for batches that the data cannot fill."""
    config = task.config
    for name, split, kind in (
        ("batch_size", data.train, "training"),
        ("eval_batch", data.test, "test"),
        ("probe_examples", data.test, "test"),
    ):
        if getattr(config, name) > len(split):
            raise ValueError(
                f"{name} must be at most the {len(split):,} {kind} examples of {data.name}, "
                f"got {getattr(config, name)}."
            )
    check_population(config.population_batches, config.batch_size, len(data.train))


EXPERIMENT = Experiment(
    name="mnist_lenet",
    config=Config,
    presets=PRESETS,
    presets_help="quick: the packaged digits, half a minute on 2 cores. paper: all of MNIST, "
    "50,000 steps.",
    arms=ARMS,
    compute=OneCPUDevicePerCore,
    tasks=tasks,
    decode=lambda config, data: in_memory(data),
    check=check,
    train=train,
    page=PAGE,
    together=True,
)
