"""An experiment on images: one run of each arm and seed."""

from collections.abc import Mapping, Sequence
from typing import Any

from bnjax.data import DataSet
from experiments.harness.bounds import check_population
from experiments.harness.experiment import Experiment, Member, Task
from experiments.harness.images.arm import ImageArm
from experiments.harness.images.compute import ImageCompute
from experiments.harness.images.config import ImageConfig
from experiments.harness.images.train import train
from experiments.harness.page import Page


def image_experiment(
    *,
    name: str,
    config: type[ImageConfig],
    presets: Mapping[str, ImageConfig],
    presets_help: str,
    arms: tuple[ImageArm, ...],
    page: Page,
) -> Experiment:
    """Returns an experiment whose arms are networks of images; the arguments are `Experiment`'s."""
    return Experiment(
        name=name,
        config=config,
        presets=presets,
        presets_help=presets_help,
        arms=arms,
        compute=ImageCompute,
        tasks=tasks,
        check=check,
        train=train,
        page=page,
    )


def tasks(config: ImageConfig, arms: Sequence[ImageArm]) -> list[Task]:
    """Returns one run of each arm and seed: all arms of a seed, then those of the next."""
    return [
        Task(config, arm, (Member(seed),), config.schedule(arm.steps(config)))
        for seed in range(config.seeds)
        for arm in arms
    ]


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
