"""Devices and processes: the only room that says jit, pmap, shard_map, mesh and donate."""

from bnjax.training.parallel.data_parallel import DataParallel, How
from bnjax.training.parallel.host_checkpoints import HostCheckpoints
from bnjax.training.parallel.hosts import (
    all_hosts_agree,
    all_succeed,
    broadcast_from_first,
    gather_json,
    initialize_hosts,
    is_first,
)
from bnjax.training.parallel.members import (
    Members,
    Together,
    default_together,
    member,
    one_cpu_device_per_core,
)
from bnjax.training.parallel.roll_call import HostsError

__all__ = [
    "DataParallel",
    "HostCheckpoints",
    "HostsError",
    "How",
    "Members",
    "Together",
    "all_hosts_agree",
    "all_succeed",
    "broadcast_from_first",
    "default_together",
    "gather_json",
    "initialize_hosts",
    "is_first",
    "member",
    "one_cpu_device_per_core",
]
