"""Where programs meet devices: the only room that says jit, pmap, shard_map, mesh and donate."""

from bnjax.training.parallel.data_parallel import DataParallel, How
from bnjax.training.parallel.members import (
    Members,
    Together,
    default_together,
    member,
    one_cpu_device_per_core,
)

__all__ = [
    "DataParallel",
    "How",
    "Members",
    "Together",
    "default_together",
    "member",
    "one_cpu_device_per_core",
]
