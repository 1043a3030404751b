"""Profiles of a few dispatches, for Perfetto and TensorBoard."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

FIRST, LAST = 3, 5
"""Dispatches that are profiled, counted from one: compiling and filling queues are over."""


@contextmanager
def profiled(train: Callable[..., Any], directory: Path | None) -> Iterator[Callable[..., Any]]:
    """Yields a training function that writes a profile of its third to fifth call.

    Below `directory`, `plugins/profile/TIME/` holds `perfetto_trace.json.gz`, for
    https://ui.perfetto.dev, and what TensorBoard's profile plugin reads. The profiled calls wait
    for the device. Without a directory, the function is yielded as it is.
    """
    if directory is None:
        yield train
        return
    count, traces = 0, False

    def stop() -> None:
        nonlocal traces
        if traces:
            traces = False
            jax.profiler.stop_trace()

    def run(*arguments: Any) -> Any:
        nonlocal count, traces
        count += 1
        if count == FIRST:
            jax.profiler.start_trace(str(directory), create_perfetto_trace=True)
            traces = True
        if not traces:
            return train(*arguments)
        with jax.profiler.StepTraceAnnotation("train", step_num=count):
            result = jax.block_until_ready(train(*arguments))
        if count == LAST:
            stop()
        return result

    try:
        yield run
    finally:
        stop()  # a run of fewer calls
