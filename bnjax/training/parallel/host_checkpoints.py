"""Checkpoints of a run of several processes: the first one's disk, everyone's state."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import jax
import numpy as np

from bnjax.training.checkpoints import CheckpointError, Checkpoints, Restored
from bnjax.training.manifests import is_key
from bnjax.training.parallel.hosts import broadcast_from_first, gather_json, is_first

Tree = Any
Result = TypeVar("Result")


class HostCheckpoints:
    """`Checkpoints` with the same interface, for all processes at once.

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

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Alone: a process that fails by itself must not wait for the others here.
        if self._own is not None:
            self._own.__exit__(exc_type, exc, traceback)

    def save(self, step: int, state: Tree, extra: Mapping[str, Any] | None = None) -> None:
        """Saves process 0's `state`: NumPy arrays, or arrays that it holds whole."""
        _on_first(lambda: self._first.save(step, state, extra))

    def latest(self) -> int | None:
        """Returns the newest step on disk that is not known to be damaged, or None."""
        return _on_first(lambda: self._first.latest())

    def restore(self, target: Tree) -> Restored | None:
        """Reads the newest whole checkpoint, the same on all processes."""
        read: Restored | None = None

        def restore_here() -> Any:
            nonlocal read
            read = self._first.restore(target)
            if read is None:
                return None
            return [read.step, read.extra, [_prng(leaf) for leaf in jax.tree.leaves(read.state)]]

        found = _on_first(restore_here)
        if found is None:
            return None
        step, extra, prngs = found
        arrays = jax.tree.map(*((_form, target) if read is None else (_array, read.state)))
        leaves, tree = jax.tree.flatten(broadcast_from_first(arrays))
        leaves = [
            leaf if prng is None else jax.random.wrap_key_data(leaf, impl=prng)
            for leaf, prng in zip(leaves, prngs, strict=True)
        ]
        return Restored(step, jax.tree.unflatten(tree, leaves), extra)

    def close(self) -> None:
        """Waits until the last save is on disk and releases the directory; idempotent."""
        if self._own is not None:
            self._own.close()

    @property
    def _first(self) -> Checkpoints:
        assert self._own is not None
        return self._own


def _on_first(act: Callable[[], Result]) -> Result:
    """Lets process 0 act; its result, a JSON value, or its error is everyone's."""
    result: Any = None
    error: Exception | None = None
    if is_first():
        try:
            result = act()
        except Exception as raised:
            error = raised
    told = gather_json({"result": result, "error": None if error is None else str(error)})[0]
    if error is not None:
        raise error
    if told["error"] is not None:
        raise CheckpointError(f"process 0: {told['error']}")
    return told["result"]


def _prng(leaf: Any) -> str | None:
    return str(jax.random.key_impl(leaf)) if is_key(leaf) else None


def _array(leaf: Any) -> np.ndarray:
    """A leaf, or a key's data."""
    return np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)


def _form(leaf: Any) -> np.ndarray:
    """What `_array` returns of a leaf like this, without its values."""
    form = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    if is_key(leaf):
        form = jax.eval_shape(jax.random.key_data, form)
    return np.zeros(form.shape, form.dtype)
