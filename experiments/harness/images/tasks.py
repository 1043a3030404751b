"""The runs of an experiment on images: one of each arm and seed."""

from collections.abc import Callable
from typing import Any

from bnjax.data import DataSet
from experiments.harness.arm import by_name
from experiments.harness.bounds import check_population
from experiments.harness.experiment import Member, Task
from experiments.harness.images.arm import ImageArm
from experiments.harness.images.compute import ImageCompute
from experiments.harness.images.config import ImageConfig


def one_by_one(arms: tuple[ImageArm, ...]) -> Callable[[ImageConfig], list[Task]]:
    """Returns what makes a configuration's tasks: each arm of a seed, then those of the next."""

    def tasks(config: ImageConfig) -> list[Task]:
        chosen = [by_name(arms, name).changed_by(config) for name in config.arms]
        return [
            Task(config, arm, (Member(seed),), config.schedule(arm.steps(config)))
            for seed in range(config.seeds)
            for arm in chosen
        ]

    return tasks


def check(task: Task, data: DataSet, compute: ImageCompute) -> None:
    """Raises ValueError if the batches do not fit the data or the devices."""
    config: Any = task.config
    if config.batch_size > len(data.train):
        raise ValueError(
            f"batch_size must be at most the {len(data.train):,} training images of {data.name}, "
            f"got {config.batch_size}."
        )
    check_population(config.population_batches, config.batch_size, len(data.train))
    for name, examples in (
        ("batch_size / micro_batches", config.batch_size // config.micro_batches),
        ("eval_batch", config.eval_batch),
    ):
        try:
            compute.devices.check_batch(examples)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
