"""Batches of views, made ahead by Grain in threads or in processes; each host makes its own share.

stream = training_batches(data.train, view, seed=0, first_step=step, batch_size=32)
batch = next(stream)        # images uint8 [32, s, s, 3]

A batch is a function of (seed, step) and never of the number of workers or hosts: the global batch
of a step is one range of positions in the order (`bnjax.data.order`), host p of n makes the p-th of
n equal parts of it, and the randomness of a view is a function of the seed and its position. So
nothing is saved and a resume costs nothing. Every host reads any example: all need the whole data,
and there may be more hosts than shards.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bnjax.data.data_set import DataError, Example, Image, Split, check_label
from bnjax.data.order import Order, Shuffle
from bnjax.data.workers import Batch, Stream, check_workers
from bnjax.scalars import integer

TrainingView = Callable[[Image, np.random.Generator], np.ndarray]
EvaluationView = Callable[[Image], np.ndarray]

_ENDLESS = 1 << 60
_VIEWS = np.array([0, 0, 0, 1], np.uint64)
"""Counter that generators of views start from: those of the order have the same keys, and without
this would give the same bits."""


def training_batches(
    examples: Split,
    view: TrainingView,
    *,
    seed: int,
    first_step: int,
    batch_size: int,
    shuffle: Shuffle = "thorough",
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Stream:
    """Returns an endless stream of batches from `first_step` on.

    At most `AHEAD` batches (`bnjax.data.workers`) for each worker are ready or being made, twice
    that for processes, and one more. Processes hand batches over in shared memory (/dev/shm on
    Linux), must be able to pickle `view`, and import the main module: it needs its
    `if __name__ == "__main__"`.

    Args:
        examples: what to learn from.
        view: makes a uint8 array, of one shape for all, from an image and a generator of its own.
        seed: of the order and of the views, in 0 .. 2**64 - 1.
        first_step: the step whose batch comes first.
        batch_size: examples of the global batch, over all hosts.
        shuffle: how thorough, see `bnjax.data.order.Shuffle`.
        workers: processes that make views; 0 for threads of this one. Threads start at once and do
            while views spend their time in Pillow; a process takes seconds to start.
        process_index: which host this is.
        process_count: how many hosts there are.

    Returns:
        The stream; masks are all True.

    Raises:
        ValueError: at once, for a bad argument; from `next`, for views of several shapes.
        DataError: from `next`, for a damaged image, an unreadable record or a label below zero;
            names it. Or a worker process found too little memory. Damage inside a JPEG that cannot
            be known (`bnjax.data.views.decoding`) is not refused.
        RuntimeError: from `next`, for any other exception of a view; names the image.
    """
    order = Order(seed, tuple(examples.shard_sizes), shuffle)
    order.check()
    if sum(order.shard_sizes) != len(examples):
        raise ValueError(
            f"shard_sizes of the examples sum to {sum(order.shard_sizes)}, and there are "
            f"{len(examples)} examples: each must be in one shard."
        )
    first_step = integer("first_step", first_step, least=0)
    batch_size = integer("batch_size", batch_size)
    if not 1 <= batch_size <= len(examples):
        raise ValueError(
            f"batch_size must be between 1 and the {len(examples)} examples, got {batch_size}."
        )
    rows = _share(batch_size, process_index, process_count)
    batches = _TrainingBatches(examples, view, batch_size, rows, order, first_step)
    return Stream(batches, check_workers(workers))


def evaluation_batches(
    examples: Split,
    view: EvaluationView,
    *,
    batch_size: int,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Stream:
    """Returns a stream of every example, exactly once over all hosts, in stored order.

    Each host gets the same number of batches of the same size, whatever the number of examples and
    of hosts; what is left over is padding, where `mask` is False. A damaged image is refused: a
    score counts every one.

    Args:
        examples: what to measure on.
        view: makes a uint8 array, of one shape for all, from an image.
        batch_size: examples of the global batch, over all hosts.
        workers: as in `training_batches`.
        process_index: which host this is.
        process_count: how many hosts there are.

    Returns:
        The stream, of `ceil(len(examples) / batch_size)` batches.

    Raises:
        ValueError: at once, for a bad argument; from `next`, for views of several shapes.
        DataError: from `next`, for a damaged image or an unreadable record; names it. Or a worker
            process found too little memory.
        RuntimeError: from `next`, for any other exception of a view; names the image.
    """
    batch_size = integer("batch_size", batch_size, least=1)
    rows = _share(batch_size, process_index, process_count)
    return Stream(_EvaluationBatches(examples, view, batch_size, rows), check_workers(workers))


@dataclass(frozen=True)
class _TrainingBatches:
    """Batch i is that of step `first_step + i`."""

    examples: Split
    view: TrainingView
    batch_size: int
    rows: range
    order: Order
    first_step: int

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, i: int) -> Batch:
        first = (self.first_step + i) * self.batch_size + self.rows.start
        images, labels = [], []
        for position, index in enumerate(self.order.indices(first, len(self.rows)), start=first):
            example = self.examples[int(index)]
            check_label(example)
            key = np.array([self.order.seed, position], np.uint64)
            rng = np.random.Generator(np.random.Philox(key=key, counter=_VIEWS))
            images.append(_named(example, self.view, rng))
            labels.append(example.label)
            _check_shape(example, images)
        return Batch(np.stack(images), np.array(labels, np.int32), np.ones(len(labels), bool))


@dataclass(frozen=True)
class _EvaluationBatches:
    """Batch i of this host."""

    examples: Split
    view: EvaluationView
    batch_size: int
    rows: range

    def __len__(self) -> int:
        return -(-len(self.examples) // self.batch_size)

    def __getitem__(self, i: int) -> Batch:
        size, count = len(self.examples), len(self.rows)
        first = i * self.batch_size + self.rows.start
        examples = [self.examples[index] for index in range(first, min(first + count, size))]
        # A host whose share is all padding learns the shape of a view from the last example.
        made: list[np.ndarray] = []
        for example in examples or [self.examples[size - 1]]:
            made.append(_named(example, self.view))
            _check_shape(example, made)
        images = np.zeros((count, *made[0].shape), made[0].dtype)
        images[: len(examples)] = np.stack(made)[: len(examples)]
        labels = np.zeros(count, np.int32)
        labels[: len(examples)] = [example.label for example in examples]
        return Batch(images, labels, np.arange(count) < len(examples))


def _named(
    example: Example, view: Callable[..., np.ndarray], *rng: np.random.Generator
) -> np.ndarray:
    """Makes a view; exceptions name the example, and can be pickled whatever they were."""
    try:
        return view(example.image, *rng)
    except DataError as error:
        raise DataError(f"{example.name}: {error}") from error
    except Exception as error:
        raise RuntimeError(f"{example.name}: {type(error).__name__}: {error}") from error


def _check_shape(example: Example, views: list[np.ndarray]) -> None:
    """Raises ValueError unless the last view, the example's, has the shape of the first."""
    first, last = np.shape(views[0]), np.shape(views[-1])
    if first != last:
        raise ValueError(
            f"{example.name}: its view has shape {last}, that of the batch's first example has "
            f"{first}: a view must make arrays of one shape for all."
        )


def _share(batch_size: int, process_index: int, process_count: int) -> range:
    """Returns the rows of a global batch that a host makes."""
    process_index = integer("process_index", process_index)
    process_count = integer("process_count", process_count)
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index must be in 0 .. process_count - 1, got process_index={process_index}, "
            f"process_count={process_count}."
        )
    if batch_size % process_count:
        raise ValueError(
            f"batch_size={batch_size} must be a multiple of process_count={process_count}: each "
            "host makes an equal part."
        )
    share = batch_size // process_count
    return range(process_index * share, (process_index + 1) * share)
