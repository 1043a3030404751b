"""Several processes that make one run: how they find each other, and how they agree.

Every process runs the same program. What they must do together (start, stop, restore) goes through
the functions below, which all of them must call, in the same order. In a run of one process these
do nothing.

JAX would detect Slurm and Cloud TPU by itself, but only inside `jax.distributed.initialize`, which
comes too late for the roll call; and under Slurm it gives each process one GPU of its host, where
here a process has all that it sees, and counts the tasks of the job instead of the step.
"""

import glob
import importlib.util
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from bnjax.evidence.records import differences
from bnjax.training.parallel.roll_call import HostsError, call_roll

Tree = Any
Result = TypeVar("Result")


class Meeting(NamedTuple):
    """The address where the processes meet, and which of them this is.

    Attributes:
        coordinator: `host:port` of process 0.
        process_count: number of processes of all hosts together.
        process_index: number of this process, from zero.
    """

    coordinator: str
    process_count: int
    process_index: int


def initialize_hosts(
    coordinator: str | None = None,
    process_count: int | None = None,
    process_index: int | None = None,
    *,
    timeout_s: int = 300,
) -> None:
    """Joins the processes of a run. Call it before anything asks for devices.

    Who takes part is told by the arguments, all three of them; else by Slurm's variables, in a step
    of several tasks; else by those of Cloud TPU, or its metadata on a TPU machine. Otherwise the
    process is alone.

    Args:
        coordinator: `host:port` of process 0, reached from all hosts.
        process_count: number of processes of all hosts together.
        process_index: number of this process, from zero.
        timeout_s: how long to wait for the other processes.

    Raises:
        HostsError: if a process is missing, or they do not fit; on each of them.
        ValueError: for some but not all arguments, or bad ones.
    """
    given = {
        "coordinator": coordinator,
        "process_count": process_count,
        "process_index": process_index,
    }
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise ValueError(f"{' and '.join(missing)} must be given too: give all of {list(given)}.")
    if coordinator is not None and process_count is not None and process_index is not None:
        meeting = Meeting(coordinator, process_count, process_index)
    else:
        found = find_meeting(os.environ)
        if found is None:
            if _on_tpu_machine():
                jax.distributed.initialize(initialization_timeout=timeout_s)
            return
        meeting = found
    if meeting.process_count < 1 or not 0 <= meeting.process_index < meeting.process_count:
        raise ValueError(
            f"process_index must be in 0..{meeting.process_count - 1} with "
            f"process_count={meeting.process_count}, got {meeting.process_index}."
        )
    if meeting.process_count == 1:
        return
    call_roll(*meeting, timeout_s=timeout_s)
    jax.distributed.initialize(
        *meeting, initialization_timeout=timeout_s, cluster_detection_method="deactivate"
    )


def find_meeting(environment: Mapping[str, str]) -> Meeting | None:
    """Returns what a scheduler's variables say, or None for a process that is alone.

    Raises:
        HostsError: if they say only part of it.
    """
    for find in (_of_slurm, _of_cloud_tpu):
        try:
            found = find(environment)
        except KeyError as error:
            raise HostsError(
                f"the environment says that this run has several processes, but {error.args[0]} is "
                "not set: start it by srun, or give coordinator, process_count and process_index."
            ) from error
        if found is not None:
            return found
    return None


def _of_slurm(environment: Mapping[str, str]) -> Meeting | None:
    # The step's count: the job's is also set in its batch script and in a shell, which are alone.
    count = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
    if count == 1:
        return None
    # "node7,node9" or "node[007-011,20],other3": the first of them runs process 0.
    nodes = re.match(r"([^,\[]+)(?:\[([^\],-]+))?", environment["SLURM_STEP_NODELIST"])
    if nodes is None:
        raise KeyError("SLURM_STEP_NODELIST")
    port = 61440 + int(environment["SLURM_JOB_ID"]) % 4096  # jobs that share a node seldom collide
    coordinator = f"{nodes[1]}{nodes[2] or ''}:{port}"
    return Meeting(coordinator, count, int(environment["SLURM_PROCID"]))


def _of_cloud_tpu(environment: Mapping[str, str]) -> Meeting | None:
    hosts = [host for host in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]
    if len(hosts) < 2 or int(environment.get("MEGASCALE_NUM_SLICES", 1)) > 1:
        return None  # several slices are left to JAX, which asks the metadata server
    return Meeting(f"{hosts[0]}:8476", len(hosts), int(environment["TPU_WORKER_ID"]))


def _on_tpu_machine() -> bool:
    """Whether JAX is to ask the metadata server, which only a TPU machine can reach."""
    if "TPU_SKIP_MDS_QUERY" in os.environ or "cpu" in (
        jax.config.values["jax_platforms"] or ""
    ).split(","):
        return False
    one_host = "TPU_WORKER_HOSTNAMES" in os.environ and "MEGASCALE_NUM_SLICES" not in os.environ
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and not one_host and importlib.util.find_spec("libtpu") is not None


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def own_share(examples: int) -> slice:
    """Returns which examples of a global batch are this process's, of equal shares in order."""
    share = examples // jax.process_count()
    return slice(share * jax.process_index(), share * (jax.process_index() + 1))


def broadcast_from_first(tree: Tree) -> Tree:
    """Returns process 0's arrays, bit for bit, on all processes.

    Args:
        tree: NumPy arrays; those of the other processes must have the same shapes and dtypes, and
            their values do not matter.
    """
    if jax.process_count() == 1:
        return tree

    def broadcast(leaf: np.ndarray) -> np.ndarray:
        leaf = np.asarray(leaf)
        # As bytes: JAX broadcasts by a sum with zeros, and -0.0 + 0.0 is 0.0.
        own = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
        sent = np.array(multihost_utils.broadcast_one_to_all(own))
        return sent.view(leaf.dtype).reshape(leaf.shape)

    return jax.tree.map(broadcast, tree)


def gather_json(value: Any) -> list[Any]:
    """Returns what each process gave, a JSON value, in the order of processes."""
    if jax.process_count() == 1:
        return [json.loads(json.dumps(value))]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    # JAX gathers arrays of one shape: the sizes first, then the texts, filled up to the longest.
    sizes = multihost_utils.process_allgather(np.int32(text.size))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: text.size] = text
    texts = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:size]).decode()) for row, size in zip(texts, sizes, strict=True)]


def all_hosts_agree(value: Any, what: str) -> None:
    """Refuses processes that were started with different settings, on each of them.

    Args:
        value: a JSON value, or a mapping of JSON values, for example the config.
        what: its name, for the error.

    Raises:
        HostsError: with the processes that differ from process 0, and in what.
    """
    given = gather_json(value)
    lines = []
    for index, other in enumerate(given[1:], 1):
        both = (given[0], other)
        first, own = (each if isinstance(each, dict) else {what: each} for each in both)
        changed = differences(first, own)
        if changed:
            lines.append(f"process {index}: " + "; ".join(changed))
    if lines:
        raise HostsError(
            f"{what} must be the same on all processes; stored is process 0's, given is another's:"
            "\n  " + "\n  ".join(lines)
        )


def all_succeed(act: Callable[[], Result]) -> Result:
    """Lets each process act; an error of one is raised on all, so that none waits for it in vain.

    Args:
        act: what may fail on one process alone: opening its data, reading its disk.

    Raises:
        HostsError: on the processes that did not fail, with the errors of those that did.
    """
    result, error = None, None
    try:
        result = act()
    except Exception as raised:
        error = raised
    raise_on_all(error)
    return result  # type: ignore[return-value]


def raise_on_all(error: Exception | None) -> None:
    """Raises this process's error; without one, HostsError with those of the others, if any."""
    told = gather_json(None if error is None else str(error))
    if error is not None:
        raise error
    failed = [f"process {index}: {text}" for index, text in enumerate(told) if text is not None]
    if failed:
        raise HostsError("; ".join(failed))


def agree_to_stop(signum: int, failed: bool, late: bool) -> tuple[int, bool, bool]:
    """Returns all processes' largest signal number, 0 for none; if any failed; if any is late.

    All call it between the same two steps, so that what stops one stops all of them there.
    """
    if jax.process_count() == 1:
        return signum, failed, late
    own = np.array([signum, failed, late], np.int32)
    signum, failed, late = multihost_utils.process_allgather(own).max(0)
    return int(signum), bool(failed), bool(late)
