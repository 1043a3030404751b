"""A border that XLA's CPU backend does not fuse over. Without it: the same values, computed often.

That backend fuses an elementwise chain into each of its readers, and so computes it again in each,
and once for every place that a pad or a transposition reads. `lax.optimization_barrier` does not
help: it is removed before the fusion.
"""

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata

Function = Callable[..., Any]


def fusion_border(function: Function, *, static_argnames: Sequence[str] = ()) -> Function:
    """Returns the function with its arguments and results written to memory, each once.

    It is for the `cpu` branch of `lax.platform_dependent`: other backends fuse better without a
    border. Where `jit` divides a program over devices there is none, for the partitioner removes
    it.

    Args:
        function: takes and returns arrays, or trees of them.
        static_argnames: its other arguments, given by keyword and hashable.
    """

    @partial(jax.jit, static_argnames=static_argnames)
    @wraps(function)
    def inside(*arrays: Any, **static: Any) -> Any:
        # The attribute is inherited by the calls within, which may be inlined and fused.
        with set_xla_metadata(inlineable="true"):
            return function(*arrays, **static)

    @wraps(function)
    def call(*arrays: Any, **static: Any) -> Any:
        # A call (of the jitted function) that XLA may not inline stays a function of its own.
        with set_xla_metadata(inlineable="false"):
            return inside(*arrays, **static)

    return call
