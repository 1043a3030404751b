"""Batches of views, made ahead by Grain in threads or in processes; each host makes its own share.

stream = training_batches(data.train, view, seed=0, first_step=step, batch_size=32)
batch = next(stream)        # images uint8 [32, s, s, 3]

A batch is a function of (seed, step) and never of the number of workers or hosts: the global batch
of a step is one range of positions in the order (`bnjax.data.order`), host p of n makes the p-th of
n equal parts of it, and the randomness of a view is a function of the seed and its position. So
nothing is saved and a resume costs nothing. Every host reads any example: all need the whole data,
and there may be more hosts than shards.
"""

import gc
import os
import re
import signal
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from bnjax.data.data_set import DataError, Example, Image, Split
from bnjax.data.order import Order, Shuffle
from bnjax.extras import extra

TrainingView = Callable[[Image, np.random.Generator], np.ndarray]
EvaluationView = Callable[[Image], np.ndarray]
Damaged = Literal["refuse", "skip"]

MOST_THREADS = 8
"""Threads of `workers=0`, at most one for each core. Views hold Python's lock for some of their
time, so that more would wait for one another."""
MOST_WORKERS = 1024
"""Processes of a host: more than it has cores."""
AHEAD = 2
"""Batches that are made ahead, for each thread or process."""
GRACE_S = 30
"""Seconds that a worker process goes on after SIGTERM, for its parent to save and close it."""
_ENDINGS = {
    "SIGBUS": "found no room in shared memory (/dev/shm): enlarge it (docker run --shm-size, "
    "mount -o remount,size=8G /dev/shm), or give --workers 0, which are threads and need none",
    "SIGKILL": "was killed, as the system does when memory runs out: give fewer --workers",
}
"""Causes of a worker process's end, by signal, and their remedies."""
_ENDLESS = 1 << 60
_VIEWS = np.array([0, 0, 0, 1], np.uint64)
"""Counter that generators of views start from: those of the order have the same keys, and without
this would give the same bits."""


class Batch(NamedTuple):
    """The share of a global batch that this host makes.

    Attributes:
        images: uint8 `[n, ...]`, one view each; `[n, s, s, 3]`, or `[n, crops, s, s, 3]`.
        labels: int32 `[n]`.
        mask: bool `[n]`; False on padding, which is zero.
    """

    images: np.ndarray
    labels: np.ndarray
    mask: np.ndarray


class Stream(Iterator[Batch]):
    """Batches from workers. Close it, or use it in a `with`; an exception of a view closes it too.

    Attributes:
        skipped: how often each damaged record was skipped, in the batches that came out so far.
    """

    def __init__(self, batches: "_TrainingBatches | _EvaluationBatches", workers: int) -> None:
        with extra("data"):
            import grain
            from absl import flags

        if workers and not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads its own before it starts a process
        threads = min(_cores(), MOST_THREADS)
        # A process makes its batches one by one: its queue holds those ahead.
        options = (
            grain.ReadOptions(0, 0) if workers else grain.ReadOptions(threads, AHEAD * threads)
        )
        batches_of_all = grain.MapDataset.source(batches).to_iter_dataset(options)
        processes = grain.MultiprocessingOptions(workers, per_worker_buffer_size=AHEAD)
        iterator = iter(batches_of_all.mp_prefetch(processes, _begin_worker))
        iterator.start_prefetch()
        self.skipped: Counter[str] = Counter()
        self._shares_memory = workers > 0
        # A list that closing empties: Grain's objects complain when they outlive its modules.
        self._iterator: list[Any] = [iterator]
        self._finalizer = weakref.finalize(self, _close, self._iterator, workers > 0)

    def __next__(self) -> Batch:
        if not self._iterator:
            raise StopIteration
        try:
            batch, skipped = next(self._iterator[0])
        except BaseException as error:  # the end, too
            self.close()
            if self._shares_memory and (reason := _ending(error)):
                raise DataError(f"workers: a process that makes views {reason}") from error
            raise
        self.skipped.update(skipped)
        # Copied, so that shared memory is given back at once.
        return Batch(*map(np.array, batch)) if self._shares_memory else batch

    def close(self) -> None:
        """Ends the workers: processes now, threads when the batch that they are at is made."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


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
    damaged: Damaged = "refuse",
) -> Stream:
    """Returns an endless stream of batches from `first_step` on.

    At most `AHEAD` batches for each worker are ready or being made, twice that for processes, and
    one more. Processes hand batches over in shared memory (/dev/shm on Linux), must be able to
    pickle `view`, and import the main module: it needs its `if __name__ == "__main__"`.

    Args:
        examples: what to learn from.
        view: makes a uint8 array, of one shape for all, from an image and a generator of its own.
        seed: of the order and of the views, >= 0.
        first_step: the step whose batch comes first.
        batch_size: examples of the global batch, over all hosts.
        shuffle: how thorough, see `bnjax.data.order.Shuffle`.
        workers: processes that make views; 0 for threads of this one. Threads start at once and do
            while views spend their time in Pillow; a process takes seconds to start.
        process_index: which host this is.
        process_count: how many hosts there are.
        damaged: what happens at a damaged image, one whose view raises DataError: `"refuse"`
            raises; `"skip"` puts the example that is stored next (after the last, the first) in its
            place and counts. A record that cannot be read at all raises in any case; damage inside
            a JPEG that cannot be known (`bnjax.data.views.decoding`) is neither refused nor
            skipped.

    Returns:
        The stream; masks are all True.

    Raises:
        ValueError: at once, for a bad argument.
        DataError: from `next`, for a damaged image or an unreadable record; names it. Or a worker
            process found too little memory.
        RuntimeError: from `next`, for any other exception of a view; names the image.
    """
    order = Order(seed, tuple(examples.shard_sizes), shuffle)
    order.check()
    if damaged not in ("refuse", "skip"):
        raise ValueError(f"damaged must be 'refuse' or 'skip', got {damaged!r}.")
    if first_step < 0:
        raise ValueError(f"first_step must be >= 0, got {first_step}.")
    if not 1 <= batch_size <= len(examples):
        raise ValueError(
            f"batch_size must be between 1 and the {len(examples)} examples, got {batch_size}."
        )
    rows = _share(batch_size, process_index, process_count)
    batches = _TrainingBatches(examples, view, batch_size, rows, order, first_step, damaged)
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
        ValueError: at once, for a bad argument.
        DataError: from `next`, for a damaged image or an unreadable record; names it. Or a worker
            process found too little memory.
        RuntimeError: from `next`, for any other exception of a view; names the image.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}.")
    rows = _share(batch_size, process_index, process_count)
    return Stream(_EvaluationBatches(examples, view, batch_size, rows), check_workers(workers))


@dataclass(frozen=True)
class _TrainingBatches:
    """Batch i is that of step `first_step + i`, with the names of the records that it skips."""

    examples: Split
    view: TrainingView
    batch_size: int
    rows: range
    order: Order
    first_step: int
    damaged: Damaged

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, i: int) -> tuple[Batch, tuple[str, ...]]:
        first = (self.first_step + i) * self.batch_size + self.rows.start
        skipped: list[str] = []
        images, labels = [], []
        for row, index in enumerate(self.order.indices(first, len(self.rows))):
            image, label = self._example(int(index), first + row, skipped)
            images.append(image)
            labels.append(label)
        mask = np.ones(len(labels), bool)
        return Batch(np.stack(images), np.array(labels, np.int32), mask), tuple(skipped)

    def _example(self, index: int, position: int, skipped: list[str]) -> tuple[np.ndarray, int]:
        """Makes the view at a position; returns it with its label."""
        size = len(self.examples)
        key = np.array([self.order.seed, position], np.uint64)
        for candidate in range(index, index + size):
            example = self.examples[candidate % size]
            rng = np.random.Generator(np.random.Philox(key=key, counter=_VIEWS))
            try:
                return _named(example, self.view, rng), example.label
            except DataError:
                if self.damaged == "refuse":
                    raise
                skipped.append(example.name)
        raise DataError(f"all {size} images are damaged, {example.name} and those before it")


@dataclass(frozen=True)
class _EvaluationBatches:
    """Batch i of this host, and no names: nothing is skipped."""

    examples: Split
    view: EvaluationView
    batch_size: int
    rows: range

    def __len__(self) -> int:
        return -(-len(self.examples) // self.batch_size)

    def __getitem__(self, i: int) -> tuple[Batch, tuple[str, ...]]:
        size, count = len(self.examples), len(self.rows)
        first = i * self.batch_size + self.rows.start
        examples = [self.examples[index] for index in range(first, min(first + count, size))]
        # A host whose share is all padding learns the shape of a view from the last example.
        made = [_named(example, self.view) for example in examples or [self.examples[size - 1]]]
        images = np.zeros((count, *made[0].shape), made[0].dtype)
        images[: len(examples)] = np.stack(made)[: len(examples)]
        labels = np.zeros(count, np.int32)
        labels[: len(examples)] = [example.label for example in examples]
        return Batch(images, labels, np.arange(count) < len(examples)), ()


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


def _ending(error: BaseException) -> str | None:
    """Returns why a worker process ended, where Grain's error names a signal."""
    code = re.search(r"terminated unexpectedly with exit code -(\d+)", str(error))
    return code and _ENDINGS.get(signal.Signals(int(code[1])).name)


def _close(iterator: list[Any], shares_memory: bool) -> None:
    while iterator:
        iterator.pop().close()
    if shares_memory:
        gc.collect()  # cycles among Grain's objects hold the last batches


def _share(batch_size: int, process_index: int, process_count: int) -> range:
    """Returns the rows of a global batch that a host makes."""
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


def check_workers(workers: int) -> int:
    """Returns the number; ValueError if it is negative or more than a host has use for."""
    if workers < 0:
        raise ValueError(f"workers must be >= 0, got {workers}; 0 is for threads.")
    if workers > MOST_WORKERS:
        raise ValueError(f"workers must be at most {MOST_WORKERS}, got {workers}: processes.")
    return workers


def _cores() -> int:
    """Counts the cores that this process may use, where the system tells."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _begin_worker(index: int, count: int) -> None:
    """Begins a worker process: its parent decides when it ends.

    Ctrl-C and a batch system's SIGTERM reach the workers as well as their parent, which goes on for
    some batches, to save; a parent that is killed closes nobody.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
