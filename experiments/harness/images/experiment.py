"""An experiment on images: one run of each arm and seed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from bnjax.data import DataSet
from experiments.harness import affects
from experiments.harness.bounds import check_population
from experiments.harness.experiment import Experiment, Member, Task
from experiments.harness.images import resident
from experiments.harness.images.arm import ImageArm
from experiments.harness.images.compute import ImageCompute
from experiments.harness.images.config import ImageConfig
from experiments.harness.images.feeds import compile_ahead
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
        tasks=partial(tasks, arms),
        decode=resident.decode,
        compile_ahead=compile_ahead,
        check=check,
        train=train,
        page=page,
    )


def tasks(every: Sequence[ImageArm], config: ImageConfig, chosen: Sequence[ImageArm]) -> list[Task]:
    """Returns one run of each arm and seed: all arms of a seed, then those of the next.

    If the configuration has `rates`, one of each arm, seed and rate, as a sweep.

    Args:
        every: all arms of the experiment.
        config: the configuration.
        chosen: the arms that it names, with its settings.

    Raises:
        ValueError: if a setting would do nothing.
    """
    _check_read(config, every)
    return [
        Task(
            config if rate is None else replace(config, learning_rate=rate),
            arm,
            (Member(seed, rate),),
            config.schedule(arm.steps(config)),
            sweep=rate is not None,
        )
        for seed in range(config.seeds)
        for arm in chosen
        for rate in config.rates or (None,)
    ]


def check(task: Task, data: DataSet, compute: ImageCompute) -> None:
    """Raises ValueError if the batches or the data do not fit the devices, or one another."""
    config: Any = task.config
    if config.pipeline == "resident":
        resident.check(task, data, compute)
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


def _check_read(config: ImageConfig, arms: Sequence[ImageArm]) -> None:
    """Raises ValueError for a setting that no arm reads: a record would state it all the same."""
    read = _Reads(affects.programs(config))
    for arm in arms:
        arm.model(read, classes=2)
        arm.optimizer(read, 0.0)
        arm.objective(read)
        arm.image_size(read)
    usual = affects.programs(type(config)())
    for name, value in affects.programs(config).items():
        if name not in read.names | _READ_BY_TRAINING and value != usual[name]:
            raise ValueError(
                f"{name}={value} would do nothing: no arm's network, optimizer or objective reads "
                f"it. Leave it at {usual[name]}, or read config.{name} in the arm's methods."
            )


_READ_BY_TRAINING = {
    *("batch_size", "micro_batches", "steps_per_dispatch"),
    *("parameter_averaging", "parameter_decay"),
}
"""Fields that programs read themselves (`programs`)."""


class _Reads:
    """A configuration that remembers which of its fields were read."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        if name not in self._fields:
            raise AttributeError(name)
        self.names.add(name)
        return self._fields[name]
