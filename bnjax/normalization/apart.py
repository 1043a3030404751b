"""A border that XLA's CPU backend does not fuse over.

It computes an elementwise chain again in each of its readers, once for every place that a pad or a
transposition reads; and `lax.optimization_barrier` is gone before it fuses.
"""

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata

Function = Callable[..., Any]


def apart(function: Function, *, static_argnames: Sequence[str] = ()) -> Function:
    """`function`, with arguments and results that are written to memory, each once.

    For the `cpu` branch of `lax.platform_dependent`: other backends fuse better without a border.
    Where `jit` divides a program over devices, there is none: the partitioner removes it.

    Args:
        function: of arrays, or trees of them.
        static_argnames: its other arguments, by keyword and hashable.
    """

    @partial(jax.jit, static_argnames=static_argnames)
    @wraps(function)
    def inside(*arrays: Any, **static: Any) -> Any:
        with set_xla_metadata(inlineable="true"):  # calls inside may be fused
            return function(*arrays, **static)

    @wraps(function)
    def call(*arrays: Any, **static: Any) -> Any:
        with set_xla_metadata(inlineable="false"):
            return inside(*arrays, **static)

    return call
