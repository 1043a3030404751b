"""Training with the data on the devices: what a run reads are indices, and programs make views."""

import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple, Self

import jax
import numpy as np

from bnjax.data import DataError, DataSet, in_memory
from bnjax.data.arrays import ArraySplit, EvalBatches, eval_batches
from bnjax.data.order import Order
from bnjax.training.parallel import DataParallel
from bnjax.training.parallel.hosts import own_share
from experiments.harness.experiment import Task
from experiments.harness.images.compute import ImageCompute
from experiments.harness.images.feed import POPULATION_SEED
from experiments.harness.images.programs import (
    Chosen,
    Programs,
    Resident,
    Views,
    batch_layout,
    programs_of,
)

_POPULATION_VIEWS = 2**31
"""Added to a run's seed for the views of Algorithm 2's batches: seeds of keys have 32 bits."""


class Placed(NamedTuple):
    """A data set on the devices.

    Attributes:
        data: the same in memory.
        train: rows of pixels uint8 `[n, height * width * channels]` and labels int32 `[n]`, on
            each device.
        test: the test images in equal batches of such rows, each split over the devices:
            all in one `EvalBatches`, or one in each.
    """

    data: DataSet[ArraySplit]
    train: tuple[jax.Array, jax.Array]
    test: list[EvalBatches]


def loops(parallel: DataParallel) -> bool:
    """Whether all steps up to an evaluation, and all its batches, are one loop on the devices.

    Not on CPUs, whose convolutions are slow inside XLA's loops: bn_x5 of the quick preset makes 452
    images a second on two cores in dispatches of one step, 170 in a loop.
    """
    return parallel.devices[0].platform != "cpu"


def decode(config: Any, data: DataSet) -> DataSet:
    """Returns the data in memory if a configuration has it on the devices; else as it is.

    Raises:
        DataError: it is too large, or its images are of many sizes.
    """
    if config.pipeline == "streamed":
        return data
    try:
        return in_memory(data)
    except DataError as error:
        raise DataError(f"{str(error).removesuffix('.')}. Or give --pipeline streamed.") from error


def check(task: Task, data: DataSet, compute: ImageCompute) -> None:
    """Refuses what cannot be trained with the data on the devices, before any compute.

    Raises:
        ValueError: if the data is larger than the memory of a device that says what it has, or if
            there are workers, who would have nothing to do.
        DataError: if the images are smaller than their views.
    """
    held = in_memory(data)
    size = sum(split.images.nbytes + split.labels.nbytes for split in (held.train, held.test))
    for device in compute.devices.devices:
        if device.process_index == jax.process_index():
            limit = (device.memory_stats() or {}).get("bytes_limit", size)
            if size > limit:
                raise ValueError(
                    f"pipeline=resident: {data.name} takes {size:,} bytes, a {device.device_kind} "
                    f"has {limit:,}. Give --pipeline streamed."
                )
    if compute.workers:
        raise ValueError(
            f"workers={compute.workers} would do nothing: with pipeline=resident the devices make "
            "views. Leave it out, or give --pipeline streamed."
        )
    views = _views(task, held)
    one = Chosen(*(jax.ShapeDtypeStruct((1,), dtype) for dtype in (np.int32, np.uint32)))
    jax.eval_shape(views.training, Resident.abstract(1, views.image), one)


class ResidentFeed:
    """What one run reads of a data set on its devices; `Feed` has the same methods.

    Attributes:
        schedule: of the run; where there are loops, a dispatch ends at the next event.
        waited: seconds in which the next indices were made.
    """

    def __init__(
        self, task: Task, placed: Placed, parallel: DataParallel, programs: Programs
    ) -> None:
        self._task, self._placed = task, placed
        self._parallel, self._programs = parallel, programs
        self.schedule = task.schedule
        if loops(parallel):
            self.schedule = task.schedule._replace(steps_per_dispatch=None)
        self.waited = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def shapes(self) -> tuple[tuple[Chosen, Resident], EvalBatches]:
        """Returns what comes first of `training` and of `validation`, or what has its shapes."""
        return self.training(0, self.schedule.dispatch(0)), self._placed.test[0]

    def training(self, first_step: int, steps: int) -> tuple[Chosen, Resident]:
        """The examples of the next steps; those of a loop that takes fewer are filled up."""
        started = time.perf_counter()
        length, count = steps, None
        if loops(self._parallel):
            length, count = self.schedule.longest_dispatch, np.int32(steps)
        chosen = self._chosen(self._task.seed, first_step, steps)
        layout = batch_layout(self._task.config, steps)
        layout = (*layout[:-1], layout[-1] // jax.process_count())

        def stack(leaf: np.ndarray) -> np.ndarray:
            stacked = leaf.reshape(layout)
            return np.concatenate([stacked, stacked[:1].repeat(length - steps, 0)])

        batch = self._parallel.split(jax.tree.map(stack, chosen), axis=self._programs.axis)
        data = self._resident(self._task.seed, count)
        self.waited += time.perf_counter() - started
        return batch, data

    def validation(self) -> Iterator[EvalBatches]:
        """Every test image once, in batches on the devices."""
        yield from self._placed.test

    def population(self) -> Iterator[jax.Array]:
        """Images for Algorithm 2: training views in another order than training's."""
        whole = self._parallel.under_jit()  # recalibrate is jitted
        data = self._resident(self._task.seed + _POPULATION_VIEWS)
        for step in range(self._task.config.population_batches):
            batches = self._chosen(self._task.seed + POPULATION_SEED, step, 1)
            chosen = jax.tree.map(lambda leaf: leaf[0], batches)
            yield self._programs.views(data, whole.split(chosen))

    def _chosen(self, seed: int, first_step: int, steps: int) -> Chosen:
        """This host's examples of the global batches, `[steps, share]`."""
        size = self._task.config.batch_size
        own = own_share(size)
        order = Order(seed, self._placed.data.train.shard_sizes, self._task.arm.order())
        first, count = first_step * size, steps * size
        indices = order.indices(first, count).astype(np.int32)
        positions = np.arange(first, first + count).astype(np.uint32)
        return Chosen(*(leaf.reshape(steps, size)[:, own] for leaf in (indices, positions)))

    def _resident(self, seed: int, count: np.int32 | None = None) -> Resident:
        scalars = self._parallel.replicate((np.uint32(seed), count))
        return Resident(*self._placed.train, *scalars)


def open_resident(
    task: Task, data: DataSet, parallel: DataParallel
) -> tuple[Programs, ResidentFeed]:
    """Returns a run's programs, and what it reads of the data; puts that on the devices once."""
    placed = _place(in_memory(data), parallel, task.config.eval_batch)
    views = _views(task, placed.data)
    programs = programs_of(task.config, task.arm, parallel, classes=data.classes, views=views)
    return programs, ResidentFeed(task, placed, parallel, programs)


@lru_cache(maxsize=1)
def _place(data: DataSet, parallel: DataParallel, eval_batch: int) -> Placed:
    splits = (data.train, data.test)
    rows, test_rows = (split.images.reshape(len(split), -1) for split in splits)
    test = eval_batches(test_rows, data.test.labels, eval_batch)
    own = own_share(eval_batch)
    count = len(test.labels)
    parts = [slice(0, count)] if loops(parallel) else [slice(i, i + 1) for i in range(count)]
    return Placed(
        data=data,
        train=parallel.replicate((rows, data.train.labels)),
        test=[
            parallel.split(jax.tree.map(lambda leaf, part=part: leaf[part, own], test), axis=1)
            for part in parts
        ],
    )


def _views(task: Task, data: DataSet[ArraySplit]) -> Views:
    image = data.train.images.shape[1:]
    return Views(image, task.arm.augmentation(task.config), task.config.centre)
