"""Profiles of a few dispatches, for Perfetto and TensorBoard."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

FIRST, LAST = 3, 5
"""Dispatches that are profiled, counted from one: compiling and filling queues are over."""


def profiled(train: Callable[..., Any], directory: Path) -> Callable[..., Any]:
    """A training function that writes a profile of its third to fifth dispatch.

    Below `directory`, `plugins/profile/TIME/` holds `perfetto_trace.json.gz`, for
    https://ui.perfetto.dev, and what TensorBoard's profile plugin reads. The profiled dispatches
    wait for the device.
    """
    count = 0

    def run(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == FIRST:
            jax.profiler.start_trace(str(directory), create_perfetto_trace=True)
        if not FIRST <= count <= LAST:
            return train(*arguments)
        with jax.profiler.StepTraceAnnotation("train", step_num=count):
            result = jax.block_until_ready(train(*arguments))
        if count == LAST:
            jax.profiler.stop_trace()
        return result

    return run
