"""How much memory a process holds: watched over a run, it shows what is never given back."""

import os
from pathlib import Path
from typing import NamedTuple

import jax


class Held(NamedTuple):
    """Memory in use at one moment, bytes.

    Attributes:
        host: of this process, resident; None where the system does not say (it does on Linux).
        arrays: of all JAX arrays that this process can reach, on each device, a buffer once.
    """

    host: int | None
    arrays: int


def held() -> Held:
    """Memory in use now."""
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
