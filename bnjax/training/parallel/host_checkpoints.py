"""Checkpoints of a run of several processes: on the disk of process 0, for all of them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import jax
import numpy as np

from bnjax.training.checkpoints import CheckpointError, Checkpoints, Restored
from bnjax.training.keys import array_form, from_array, key_impl, to_array
from bnjax.training.manifests import as_array
from bnjax.training.parallel.hosts import (
    HostsError,
    all_succeed,
    broadcast_from_first,
    gather_json,
    is_first,
)

Tree = Any
Result = TypeVar("Result")


class HostCheckpoints:
    """`Checkpoints` for all processes at once: to save and restore, as a context manager.

    Process 0 opens the directory, writes and reads; what it restores is broadcast. Its errors are
    raised on all processes, so that none waits for one that has left. Every process must make the
    same calls in the same order. Arguments and errors are those of `Checkpoints`.
    """

    def __init__(self, directory: str | Path, *, config: Mapping[str, Any], keep: int = 2) -> None:
        self._directory = Path(directory)
        self._own: Checkpoints | None = None

        def open_directory() -> None:
            self._own = Checkpoints(directory, config=config, keep=keep)

        _on_first(open_directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        # Alone: a process that fails by itself must not wait for the others here.
        if self._own is not None:
            self._own.__exit__(kind, error, trace)

    def save(self, step: int, state: Tree) -> None:
        """Saves process 0's `state`: NumPy arrays, or arrays that it holds whole."""
        _on_first(lambda: self._first.save(step, state))

    def restore(self, target: Tree) -> Restored | None:
        """Reads the newest whole checkpoint, the same on all processes."""
        read: Restored | None = None

        def restore_here() -> Any:
            nonlocal read
            read = self._first.restore(target)
            if read is None:
                return None
            impls = [key_impl(leaf) for leaf in jax.tree.leaves(read.state)]
            return [read.step, impls]

        found = _on_first(restore_here)
        if found is None:
            return None
        step, impls = found
        if read is None:  # another process, whose values do not matter
            forms = jax.tree.map(lambda leaf: array_form(as_array(leaf)), target)
            arrays = jax.tree.map(lambda form: np.zeros(form.shape, form.dtype), forms)
        else:
            arrays = jax.tree.map(lambda leaf: np.asarray(to_array(leaf)), read.state)
        leaves, tree = jax.tree.flatten(broadcast_from_first(arrays))
        leaves = [from_array(leaf, impl) for leaf, impl in zip(leaves, impls, strict=True)]
        return Restored(step, jax.tree.unflatten(tree, leaves))

    @property
    def _first(self) -> Checkpoints:
        assert self._own is not None
        return self._own


def _on_first(act: Callable[[], Result]) -> Result:
    """Lets process 0 act, and returns its result, a JSON value, or raises its error, on all."""
    try:
        result = all_succeed(lambda: act() if is_first() else None)
    except HostsError as error:
        raise CheckpointError(str(error)) from None
    return gather_json(result)[0]
