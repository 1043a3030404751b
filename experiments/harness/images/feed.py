"""What a run sees: training batches by step, each validation image once, those of Algorithm 2."""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any, Self

import jax
import numpy as np

from bnjax.compilers.cost import abstract
from bnjax.data import DataSet
from bnjax.data.stream import Batch, Stream, evaluation_batches, training_batches
from bnjax.data.views.augmentation import evaluation_view, training_view
from bnjax.training.parallel import DataParallel, all_succeed
from experiments.harness.experiment import Task
from experiments.harness.images.programs import batch_layout

KEPT_BYTES = 256 * 2**20
"""Validation views are kept in memory if they are no more than this."""
POPULATION_SEED = 2**32
"""Added to a run's seed for the order and views of Algorithm 2's batches."""


class Feed:
    """The batches of one run, on its devices; this host's share of each is made here.

    Attributes:
        schedule: of the run.
        waited: seconds that training waited for views.
    """

    def __init__(
        self, task: Task, data: DataSet, parallel: DataParallel, *, axis: int, workers: int
    ) -> None:
        self._config, self._arm = task.config, task.arm
        self._seed, self._data = task.seed, data
        self._parallel, self._axis, self._workers = parallel, axis, workers
        self.schedule = task.schedule
        self._stream: Stream | None = None
        self._kept: list[Batch] | None = None
        self.waited = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._stream is not None:
            self._stream.close()

    def shapes(self) -> tuple[tuple[Any, ...], Batch]:
        """Returns the shapes of what comes first of `training` and of `validation`."""
        size = self._arm.image_size(self._config)

        def placed(layout: tuple[int, ...], axis: int) -> Any:
            of_each = (((size, size, 3), np.uint8), ((), np.int32), ((), bool))
            arrays = [jax.ShapeDtypeStruct((*layout, *own), dtype) for own, dtype in of_each]
            return abstract(arrays, self._parallel.shardings(axis=axis)[1])

        layout = batch_layout(self._config, self.schedule.dispatch(0))
        images, labels, _ = placed(layout, self._axis)
        return ((images, labels),), Batch(*placed((self._config.eval_batch,), 0))

    def training(self, first_step: int, steps: int) -> tuple[Any, ...]:
        """Images and labels of the next steps; calls follow one another without a gap."""
        if self._stream is None:
            self._stream = self._training_stream(first_step, self._seed)
        started = time.perf_counter()
        batches = [next(self._stream) for _ in range(steps)]
        self.waited += time.perf_counter() - started
        layout = batch_layout(self._config, steps)
        local = layout[-1] // jax.process_count()

        def stack(arrays: list[np.ndarray]) -> np.ndarray:
            return np.stack(arrays).reshape(*layout[:-1], local, *arrays[0].shape[1:])

        arrays = (stack([b.images for b in batches]), stack([b.labels for b in batches]))
        return (self._parallel.split(arrays, axis=self._axis),)

    def validation(self) -> Iterator[Any]:
        """Every validation image once, in batches on the devices."""
        return _on_all(self._validation())

    def population(self) -> Iterator[jax.Array]:
        """Images for Algorithm 2: training views in another order than training's."""
        return _on_all(self._population())

    def _validation(self) -> Iterator[Any]:
        if self._kept is not None:
            yield from map(self._parallel.split, self._kept)
            return
        config, kept = self._config, []
        size = self._arm.image_size(config)
        view = partial(evaluation_view, image_size=size, fraction=config.centre)
        keeps = len(self._data.test) * 3 * size**2 <= KEPT_BYTES
        with evaluation_batches(
            self._data.test,
            view,
            batch_size=config.eval_batch,
            workers=self._workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        ) as stream:
            for batch in stream:
                if keeps:
                    kept.append(batch)
                yield self._parallel.split(batch)
        self._kept = kept if keeps else None

    def _population(self) -> Iterator[jax.Array]:
        whole = self._parallel.under_jit()  # recalibrate is jitted
        with self._training_stream(0, self._seed + POPULATION_SEED) as stream:
            for _ in range(self._config.population_batches):
                yield whole.split(next(stream).images)

    def _training_stream(self, first_step: int, seed: int) -> Stream:
        return training_batches(
            self._data.train,
            partial(training_view, augmentation=self._arm.augmentation(self._config)),
            seed=seed,
            first_step=first_step,
            batch_size=self._config.batch_size,
            shuffle=self._arm.order(),
            workers=self._workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )


def _on_all(batches: Iterator[Any]) -> Iterator[Any]:
    """The same; what one host cannot read is an error on all, so that none waits for it."""
    while (batch := all_succeed(lambda: next(batches, None))) is not None:
        yield batch
