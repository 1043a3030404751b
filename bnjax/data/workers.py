"""Grain's threads and processes, which make batches ahead, and how they end.

Batches come from a source by index: batch i is a function of i alone, so that it does not matter
which worker makes it.
"""

import gc
import os
import re
import signal
import threading
import weakref
from collections.abc import Iterator
from multiprocessing import connection, parent_process
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from bnjax.cores import usable_cores
from bnjax.data.data_set import DataError
from bnjax.extras import extra
from bnjax.scalars import integer

MOST_THREADS = 8
"""Threads of `workers=0`, at most one for each core. Views hold Python's lock for some of their
time, so that more would wait for one another."""
MOST_WORKERS = 1024
"""Processes of a host: more than it has cores."""
AHEAD = 2
"""Batches that are made ahead, for each thread or process."""
GRACE_S = 30
"""Seconds that a worker process goes on after SIGTERM or a hangup, for its parent to save and close
it."""
_ENDINGS = {
    "SIGBUS": "found no room in shared memory (/dev/shm): enlarge it (docker run --shm-size, "
    "mount -o remount,size=8G /dev/shm), or give --workers 0, which are threads and need none",
    "SIGKILL": "was killed, as the system does when memory runs out: give fewer --workers",
}
"""Causes of a worker process's end, by signal, and their remedies."""


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


class Batches(Protocol):
    """Batches by index; `pickle` carries them to worker processes."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Batch:
        """Makes a batch."""
        ...


class Stream(Iterator[Batch]):
    """Batches from workers. Close it, or use it in a `with`; an exception of a view closes it."""

    def __init__(self, batches: Batches, workers: int) -> None:
        with extra("data"):
            import grain
            from absl import flags

        if workers and not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads its own before it starts a process
        threads = min(usable_cores(), MOST_THREADS)
        # A process makes its batches one by one: its queue holds those ahead.
        options = (
            grain.ReadOptions(0, 0) if workers else grain.ReadOptions(threads, AHEAD * threads)
        )
        batches_of_all = grain.MapDataset.source(batches).to_iter_dataset(options)
        processes = grain.MultiprocessingOptions(workers, per_worker_buffer_size=AHEAD)
        iterator = iter(batches_of_all.mp_prefetch(processes, _begin_worker))
        iterator.start_prefetch()
        self._shares_memory = workers > 0
        # A list that closing empties: Grain's objects complain when they outlive its modules.
        self._iterator: list[Any] = [iterator]
        self._finalizer = weakref.finalize(self, _close, self._iterator, workers > 0)

    def __next__(self) -> Batch:
        if not self._iterator:
            raise StopIteration
        try:
            batch = next(self._iterator[0])
        except BaseException as error:  # the end, too
            self.close()
            if self._shares_memory and (reason := _ending(error)):
                raise DataError(f"workers: a process that makes views {reason}") from error
            raise
        # Copied, so that shared memory is given back at once.
        return Batch(*map(np.array, batch)) if self._shares_memory else batch

    def close(self) -> None:
        """Ends the workers: processes now, threads when the batch that they are at is made."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def check_workers(workers: int) -> int:
    """Returns the number; ValueError if it is negative or more than a host has use for."""
    workers = integer("workers", workers, least=0)
    if workers > MOST_WORKERS:
        raise ValueError(f"workers must be at most {MOST_WORKERS}, got {workers}: processes.")
    return workers


def _ending(error: BaseException) -> str | None:
    """Returns why a worker process ended, where Grain's error names a signal."""
    code = re.search(r"terminated unexpectedly with exit code -(\d+)", str(error))
    return code and _ENDINGS.get(signal.Signals(int(code[1])).name)


def _close(iterator: list[Any], shares_memory: bool) -> None:
    while iterator:
        iterator.pop().close()
    if shares_memory:
        gc.collect()  # cycles among Grain's objects hold the last batches


def _begin_worker(index: int, count: int) -> None:
    """Begins a worker process: its parent decides when it ends.

    Ctrl-C, a batch system's SIGTERM and the hangup of a terminal reach the workers as well as their
    parent, which goes on for some batches, to save; a parent that is killed closes nobody.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, lambda *_: signal.alarm(GRACE_S))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
