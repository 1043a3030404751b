"""What lies on several devices: host arrays as they were, a state still there, the same on each."""

from typing import Any

import jax
import numpy as np

from bnjax.training.keys import to_array
from bnjax.training.manifests import sha256
from bnjax.training.parallel.hosts import gather_json

Tree = Any

_NAMED = 3
"""How many of the leaves that differ an error names."""


def as_own(array: Any, device: jax.Device) -> np.ndarray:
    """Returns a host array to put on a device; CPUs, which may read it in place, get a copy."""
    return np.array(array) if device.platform == "cpu" else np.asarray(array)


def check_kept(state: Tree) -> None:
    """Raises ValueError for a state whose buffers an earlier call was given.

    JAX's own error speaks of buffers, and on several devices it can end the process instead.
    """
    leaves = jax.tree.leaves(state)
    if any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in leaves):
        raise ValueError(
            "state was given up to an earlier call: go on from the state that it returned, or keep "
            "host copies, which fetch makes, and replicate them again."
        )


def check_same(results: tuple[Tree, Tree], axis_name: str) -> None:
    """Raises ValueError, on all hosts, unless a step's results have the same bits on all devices.

    Nobody else would notice: what is said to be replicated is read from one device.

    Args:
        results: state and metrics.
        axis_name: the remedy.
    """
    names = [
        f"{name}{path}"
        for name, tree in zip(("state", "metrics"), results, strict=True)
        for path in _different(tree)
    ]
    if names:
        others = f", {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        raise ValueError(
            f"{', '.join(names[:_NAMED])}{others} differ between devices, which train apart: give "
            f"axis_name={axis_name!r}, DataParallel's, to make_train_step, without which params "
            "differ, and to the layers, without which batch_stats do."
        )


def _different(tree: Tree) -> list[str]:
    """Returns the paths of the leaves that differ between any devices of all hosts."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    hosts = gather_json([_digests(leaf) for _, leaf in leaves])
    return [
        jax.tree_util.keystr(path)
        for (path, _), *digests in zip(leaves, *hosts, strict=True)
        if len({digest for of_host in digests for digest in of_host}) > 1
    ]


def _digests(leaf: jax.Array) -> list[str]:
    """Returns the digests of this host's copies, each one once."""
    copies = (shard.data for shard in leaf.addressable_shards)  # addressable_data is the first's
    return sorted({sha256(np.asarray(to_array(copy))) for copy in copies})
