"""The time of a compiled program at the rates that makers state: a floor, and no promise.

Products and memory overlap wholly, so that the slower of the two counts for the whole program;
collectives then come on top. Left out is what no data sheet states: the latency of collectives
and kernels, operations that reach neither rate, and waiting for data. XLA's own estimate, where it
has one, is `ProgramCost.seconds`.
"""

import re
from math import prod
from typing import NamedTuple

from bnjax.compilers.cost import ProgramCost
from bnjax.compilers.topologies import CUBE, GPUS_PER_HOST, Chip

# A TPU has two links along each direction of its torus. A row of chips also joins its ends if it is
# 16 long (v5e, v6e), and in slices of whole cubes (v4, v5p): Cloud TPU's page on each. That of v5e
# bears the rates out: 51.2 TB/s all-reduce and 1.6 TB/s bisection for 16x16.
_RING = 16

# Between hosts of H100s: a network card of 400 Gbit/s for each GPU (NVIDIA's DGX H100 data sheet).
_HOST_BYTES_PER_SECOND = 50e9


class StepTime(NamedTuple):
    """Seconds of one run of a program.

    Attributes:
        products: all of its FLOPs at the chip's rate of bfloat16 matrix products.
        memory: all of its bytes at the memory's rate.
        exchange: its collectives over the links.
    """

    products: float
    memory: float
    exchange: float

    @property
    def seconds(self) -> float:
        """The slower of products and memory, then the exchange."""
        return max(self.products, self.memory) + self.exchange


def step_time(cost: ProgramCost, chip: Chip) -> StepTime | None:
    """Returns the time of a program at stated rates; None for a CPU, which has none.

    Args:
        cost: from `compile_program`, for a topology of this chip.
        chip: with its rates.
    """
    products, memory = chip.matmul_flops_per_second, chip.memory_bytes_per_second
    if products is None or memory is None or chip.link_bytes_per_second is None:
        return None
    exchange = sum(
        exchange_seconds(collective.kind, collective.bytes, cost.topology, chip)
        for collective in cost.collectives
    )
    return StepTime(cost.flops / products, cost.bytes_accessed / memory, exchange)


def exchange_seconds(kind: str, size: int, topology: str, chip: Chip) -> float:
    """Returns the seconds of collectives over all chips of a topology, at the rate of their links.

    Each of n chips sends (n - 1)/n of the bytes for a gathering or scattering collective; an
    all-reduce is one of each. Groups of fewer chips are taken for all chips. GPUs of several
    hosts exchange within the host, and an eighth each between hosts.

    Args:
        kind: as in `hlo_counts.COLLECTIVES`.
        size: bytes of their operands on one chip, or of their results, whichever are more.
        topology: such as `v5e:2x4`.
        chip: the topology's, with a stated rate of its links.

    Raises:
        ValueError: for a chip without links.
    """
    links = chip.link_bytes_per_second
    if links is None:
        raise ValueError(f"chip: {chip.name} has no stated rate of links.")
    edges = [int(edge) for edge in re.findall("[0-9]+", topology.partition(":")[2])]
    count = prod(edges)
    if count == 1:
        return 0.0
    times = 2 if kind == "all-reduce" else 1
    if chip.platform == "tpu":
        return times * _share(count) * size / (links * _used_links(edges))
    inside = min(count, GPUS_PER_HOST)
    between = _share(count // inside) * (size / inside) / _HOST_BYTES_PER_SECOND
    return times * (_share(inside) * size / links + between)


def _share(count: int) -> float:
    return (count - 1) / count


def _used_links(edges: list[int]) -> float:
    """Returns the share of a chip's links that exist in its slice."""
    flat = len(edges) == 2
    cubes = not flat and not any(edge % CUBE for edge in edges)
    used = 0
    for edge in edges:
        joined = edge == _RING if flat else cubes
        used += 0 if edge == 1 else 2 if joined else 1
    return used / (2 * len(edges))
