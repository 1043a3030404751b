"""The speed of this machine: its memory's bandwidth, its rate of float32 matrix products."""

import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def bytes_per_second(size: int, tries: int) -> float:
    """Returns the best rate of a + 3 b in float32, which reads two arrays and writes one.

    Args:
        size: bytes of each array, >= 4.
        tries: how often, >= 1; one more, uncounted, comes first.
    """
    a, b = (jnp.full(size // 4, value, jnp.float32) for value in (1, 2))
    triad = jax.jit(lambda a, b: a + 3 * b)
    # Launching takes time on an accelerator: many calls share it.
    calls = 1 if jax.default_backend() == "cpu" else 20
    seconds = []
    for _ in range(tries + 1):
        begin = time.perf_counter()
        for _ in range(calls):
            result = triad(a, b)
        result.block_until_ready()
        seconds.append((time.perf_counter() - begin) / calls)
    return 3 * a.nbytes / min(seconds[1:])


def matmul_flops_per_second(size: int, tries: int) -> float:
    """Returns the best rate of square float32 matrix products on all cores, in FLOP/s.

    A product of n x n matrices counts as 2 n^3 FLOPs. Each try runs it twice: by one device, with
    all threads that XLA gives it, and with the rows of the first factor split over all devices.

    Args:
        size: n, >= 1.
        tries: how often, >= 1; one more, uncounted, compiles first.
    """
    devices = jax.local_devices()
    rows = -(-size // len(devices)) * len(devices)  # a whole number of rows for each device
    left, right = np.ones((rows, size), np.float32), np.ones((size, size), np.float32)
    placements = []
    for used in (devices[:1], devices):
        mesh = Mesh(np.array(used), ("rows",))
        split, whole = NamedSharding(mesh, P("rows")), NamedSharding(mesh, P())
        placements.append((jax.device_put(left, split), jax.device_put(right, whole)))
    multiply = jax.jit(jnp.matmul)
    seconds = [[_seconds(multiply, factors) for factors in placements] for _ in range(tries + 1)]
    return 2 * rows * size**2 / min(min(pair) for pair in seconds[1:])


def _seconds(multiply: jax.stages.Wrapped, factors: tuple[jax.Array, jax.Array]) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(multiply(*factors))
    return time.perf_counter() - begin
