"""The memory that a process holds; watched over a run, it shows a leak."""

import os
from pathlib import Path
from typing import NamedTuple

import jax


class Held(NamedTuple):
    """Memory in use at one moment, bytes.

    Attributes:
        host: resident memory of this process; None where the system does not say (Linux does).
        arrays: all JAX arrays of this process on its devices; a shared buffer counts once.
    """

    host: int | None
    arrays: int


def held() -> Held:
    """Returns the memory in use now."""
    shards = [shard for array in jax.live_arrays() for shard in array.addressable_shards]
    # By buffer: JAX keeps shards that were looked at, and then counts them as arrays of their own.
    buffers = {(s.device, s.data.unsafe_buffer_pointer()): s.data.nbytes for s in shards}
    return Held(_resident(), sum(buffers.values()))


def _resident() -> int | None:
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
