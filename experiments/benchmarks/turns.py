"""Timing turn by turn: all contestants in one process, in random order, again and again.

Whatever the machine does meanwhile, it does to all of them.
"""

import math
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Runner = Callable[[int], Any]
"""Makes the given number of calls and returns when the last is done."""


class Turn(NamedTuple):
    """One contestant's turn, per call.

    Attributes:
        seconds: wall time.
        page_faults: pages that the system had to map, over all threads.
    """

    seconds: float
    page_faults: float


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float


def take_turns(
    runners: Mapping[str, Runner], *, repeats: int, turn_seconds: float
) -> dict[str, list[Turn]]:
    """Times each contestant once in every repeat, in a new random order each time.

    A turn begins with an untimed call, in which caches fill and the threads of the contestant
    before come to rest. As many timed calls follow as fit into `turn_seconds`, at least one.

    Args:
        runners: compiled and ready; two calls of each come before the first turn.
        repeats: turns of each.
        turn_seconds: a turn's length.
    """
    calls = {}
    for name, run in runners.items():
        run(1)
        seconds = _turn(run, 1).seconds
        calls[name] = max(1, math.ceil(turn_seconds / seconds))
    turns: dict[str, list[Turn]] = {name: [] for name in runners}
    random = np.random.default_rng(0)
    for _ in range(repeats):
        for name in random.permutation(list(runners)).tolist():
            runners[name](1)
            turns[name].append(_turn(runners[name], calls[name]))
    return turns


def raw(turns: Mapping[str, list[Turn]]) -> dict[str, dict[str, list[float]]]:
    """Returns the turns as JSON values, by field and contestant."""
    return {
        field: {name: [getattr(turn, field) for turn in taken] for name, taken in turns.items()}
        for field in Turn._fields
    }


def spread(values: list[float]) -> Spread:
    """Returns median and quartiles; all three are the value where there is one."""
    if len(values) == 1:
        return Spread(*values * 3)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def _turn(run: Runner, calls: int) -> Turn:
    faults = _page_faults()
    begin = time.perf_counter()
    run(calls)
    seconds = time.perf_counter() - begin
    return Turn(seconds / calls, (_page_faults() - faults) / calls)


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
