"""How fast a run trains, and how long it waits for images."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from experiments.harness.images.feed import Feed
from experiments.harness.images.resident import ResidentFeed


class Clock:
    """Measures training from its first dispatch's end on, without evaluations."""

    def __init__(self, feed: Feed | ResidentFeed) -> None:
        self._feed = feed
        self._started: float | None = None
        self._first = self._last = 0
        self._paused = 0.0

    def tick(self, step: int) -> None:
        """Says that a dispatch has ended, after so many steps of the run."""
        self._last = step
        if self._started is None:  # compiling is over
            self._first = step
            self._started, self._paused, self._feed.waited = time.perf_counter(), 0.0, 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count what is done inside."""
        started = time.perf_counter()
        yield
        self._paused += time.perf_counter() - started

    def timing(self, images: int) -> dict[str, float] | None:
        """What a record says of it, by the images of a step; None for less than two dispatches."""
        if self._started is None or self._first == self._last:
            return None
        seconds = time.perf_counter() - self._started - self._paused
        return {
            "training_seconds": round(seconds, 1),
            "waiting_share": round(self._feed.waited / seconds, 4),
            "images_per_second": round((self._last - self._first) * images / seconds, 1),
        }
