"""What the machine is, in a line, and what it can do: its rate of float32 matrix products."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def surroundings(result: dict[str, Any]) -> str:
    """Processor, versions and allocator of a result with `environment`, `peers`, `allocation`."""
    environment = result["environment"]
    versions = {"python": environment["python"], **environment["versions"], **result["peers"]}
    settings = " ".join(f"{key}={value}" for key, value in result["allocation"].items())
    device = environment["processor"]
    if environment["backend"] != "cpu":
        device += f", {environment['device_kind']}"
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{device}; {named}{'; ' if settings else ''}{settings}."


def matmul_flops_per_second(size: int, tries: int) -> float:
    """The best rate of square float32 matrix products on all cores, in FLOP/s.

    A product of n x n matrices counts as 2 n^3 FLOPs. Each try runs it twice: by one device, with
    all threads that XLA gives it, and with the rows of the first factor split over all devices.

    Args:
        size: n, >= 1.
        tries: how often; the first, uncounted one compiles.

    Raises:
        ValueError: if size or tries is below one.
    """
    for name, value in (("size", size), ("tries", tries)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}.")
    devices = jax.local_devices()
    rows = -(-size // len(devices)) * len(devices)  # a whole number of rows for each device
    left, right = np.ones((rows, size), np.float32), np.ones((size, size), np.float32)
    placements = []
    for used in (devices[:1], devices):
        mesh = Mesh(np.array(used), ("rows",))
        placements.append(
            (
                jax.device_put(left, NamedSharding(mesh, P("rows"))),
                jax.device_put(right, NamedSharding(mesh, P())),
            )
        )
    multiply = jax.jit(jnp.matmul)
    seconds = [[_seconds(multiply, factors) for factors in placements] for _ in range(tries + 1)]
    return 2 * rows * size**2 / min(min(pair) for pair in seconds[1:])


def _seconds(multiply: jax.stages.Wrapped, factors: tuple[jax.Array, jax.Array]) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(multiply(*factors))
    return time.perf_counter() - begin
