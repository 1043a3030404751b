"""Checkpoints that are proved whole before a run resumes from them.

Orbax stores the arrays. It does not notice a flipped byte, casts dtypes silently and stops at a
damaged newest step, so each checkpoint carries a manifest of SHA-256 digests. Restoring checks the
files before Orbax parses them, and every leaf afterwards.

A checkpoint directory holds, for each step::

    <step>/arrays/            Orbax: the leaves as one list, typed PRNG keys as their key data
    <step>/manifest.json      schema version, step, leaves, files, versions, config
    <step>/manifest.sha256    the manifest's own digest, as sha256sum writes it

``<step>.tmp`` is an unfinished write or delete and is cleared at the next start;
``<step>.damaged`` is a checkpoint that failed its checks and was set aside when training wrote on
from an earlier one.
"""

import atexit
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax

from bnjax.evidence.records import differences, sync
from bnjax.extras import extra
from bnjax.paths import local_path
from bnjax.scalars import integer
from bnjax.training.checkpoint_files import (
    holds,
    host_copies,
    read_checkpoint,
    set_aside,
    write_checkpoint,
)
from bnjax.training.locks import LockError, lock
from bnjax.training.manifests import (
    CheckpointError,
    DamageError,
    PyTree,
    describe,
    one_line,
    read_manifest,
)

__all__ = ["CheckpointError", "Checkpoints", "Restored"]


class Restored(NamedTuple):
    """The result of `Checkpoints.restore`.

    Attributes:
        step: Step it was saved under.
        state: NumPy arrays in the target's structure; typed PRNG keys are JAX key arrays.
    """

    step: int
    state: PyTree


class Checkpoints:
    """The checkpoints of one run in one local directory, with one writer at a time.

    Use it as a context manager: leaving the block waits until the last save is on disk. A process
    that ends without leaving the block or calling `close` may lose the save it was writing. In a
    run of several processes, process 0 opens the directory and saves leaves that it holds whole.

    Args:
        directory: Local directory; created if it does not exist.
        config: JSON-able description of what the state belongs to (experiment, arm, seeds, ...).
        keep: How many of the newest checkpoints to keep, at least 1. With 1 there is nothing to
            fall back to.

    Raises:
        CheckpointError: Another writer holds the directory; or it holds checkpoints of another
            config, or of another schema version; or this is not process 0.
        TypeError: `config` is not JSON-able.
        ValueError: `keep` is no integer or below 1, or `directory` is a URL.
    """

    def __init__(self, directory: str | Path, *, config: Mapping[str, Any], keep: int = 2) -> None:
        # Imported here so that importing bnjax stays light, and not first in the writing thread.
        with extra("train"):
            import orbax.checkpoint  # noqa: F401

        self._keep = integer("keep", keep, least=1)
        self._config = _as_json("config", config)
        directory = local_path("directory", directory)
        if jax.process_index() != 0:
            raise CheckpointError(
                f"this is process {jax.process_index()} of {jax.process_count()}; open checkpoints "
                "on process 0 and broadcast what it restores."
            )
        self._directory = directory.absolute()
        try:
            with self._usable():
                self._directory.mkdir(parents=True, exist_ok=True)
                self._lock = lock(self._directory / ".lock", self._directory)
        except LockError as error:
            raise CheckpointError(str(error)) from error
        self._damaged: set[int] = set()  # found by restore; set aside by the next save
        self._pending: tuple[int, Future[None]] | None = None
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        # Too late to save anything, but a write that failed because nobody waited is then reported.
        atexit.register(self.close)
        try:
            with self._usable():
                self._clear_unfinished()
                self._check_config()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self.close()
        except CheckpointError as failed:
            if error is None:
                raise
            error.add_note(f"Also: {failed}")  # the error that ended the block stays in front

    def save(self, step: int, state: PyTree) -> None:
        """Copies `state` to the host and writes it in the background.

        When this returns, the arrays may be donated or overwritten. A save that is still being
        written is waited for first. Steps must grow; the newest step again is accepted, and nothing
        is written, if that checkpoint is whole and holds the same values. Checkpoints that
        `restore` found damaged do not count; the first save afterwards sets them aside.

        Args:
            step: Step number, at least 0.
            state: Pytree of JAX arrays, NumPy arrays or typed PRNG keys, of any numeric or bool
                dtype but longdouble. Python integers are saved as the int32 of JAX.

        Raises:
            CheckpointError: The save before this one failed; or `step` is not after the newest
                step; or the disk is too full; or the object is closed.
            TypeError: A leaf is not an array; a Python float is none, as float32 would change it.
            ValueError: `step` is no integer or negative, or `state` has no values.
        """
        self._wait()
        step = integer("step", step, least=0)
        leaves = describe("state", state)
        arrays = host_copies(state)
        newest = self.latest()
        if newest is not None and step <= newest:
            try:
                if step == newest and holds(self._folder(step), leaves, arrays):
                    return
            except DamageError as damage:
                raise CheckpointError(
                    f"step {step} cannot be saved: {self._folder(step)} exists and is damaged "
                    f"({damage}); continue from restore(), or use another directory."
                ) from damage
            content = ", with other content" if step == newest else ""
            raise CheckpointError(
                f"step {step} cannot be saved: {self._directory} already holds step {newest}"
                f"{content}; continue from restore(), or use another directory."
            )
        self._check_space(sum(array.nbytes for array in arrays))
        write = partial(
            write_checkpoint,
            step=step,
            leaves=leaves,
            arrays=arrays,
            config=self._config,
        )
        self._pending = step, self._writer.submit(self._write, step, write)

    def latest(self) -> int | None:
        """Returns the newest step on disk that is not known to be damaged, or None.

        Waits for a save that is still being written. Only `restore` checks the content.

        Raises:
            CheckpointError: That save failed, or the object is closed.
        """
        self._wait()
        steps = [step for step in self._steps() if step not in self._damaged]
        return steps[-1] if steps else None

    def restore(self, target: PyTree) -> Restored | None:
        """Reads the newest whole checkpoint.

        Damaged checkpoints are passed over with a warning and left as they are.

        Args:
            target: Pytree with the structure, shapes and dtypes to read, of what `save` takes or
                `jax.ShapeDtypeStruct`. Its shardings do not matter: the caller places the result.

        Returns:
            The step and state, or None if the directory has no checkpoint.

        Raises:
            CheckpointError: Tree paths, shapes or dtypes differ from the target's; or checkpoints
                exist and all are damaged; or a save failed; or the object is closed.
            TypeError: A leaf of `target` is not an array.
        """
        self._wait()
        wanted = describe("target", target, jax.ShapeDtypeStruct)
        problems: dict[int, str] = {}
        for step in reversed(self._steps()):
            try:
                leaves = read_checkpoint(self._folder(step), wanted)
            except DamageError as damage:
                problems[step] = str(damage)
                continue
            self._damaged = set(problems)
            if problems:
                warnings.warn(
                    f"{self._listing(problems)}\nstep {step} is restored instead", stacklevel=2
                )
            state = jax.tree.unflatten(jax.tree.structure(target), leaves)
            return Restored(step, state)
        if problems:
            raise CheckpointError(
                f"no checkpoint is whole; {self._listing(problems)}\n"
                "put back a good copy of one of them, or start again in another directory."
            )
        return None

    def close(self) -> None:
        """Waits until the last save is on disk and releases the directory; idempotent.

        Raises:
            CheckpointError: The last save failed.
        """
        if self._lock.closed:
            return
        atexit.unregister(self.close)
        try:
            self._wait()
        finally:
            self._writer.shutdown()
            self._lock.close()

    def _wait(self) -> None:
        if self._lock.closed:
            raise CheckpointError(
                f"the checkpoints in {self._directory} are closed; open them again."
            )
        if self._pending is None:
            return
        step, written = self._pending
        error = written.exception()
        self._pending = None
        if error is not None:
            raise CheckpointError(
                f"step {step} was not saved in {self._directory}: {one_line(error)}; "
                "check that the directory exists, is writable and has free space."
            ) from error

    def _folder(self, step: int) -> Path:
        return self._directory / str(step)

    def _steps(self) -> list[int]:
        """Returns the steps on disk, ascending."""
        with self._usable():
            names = [path.name for path in self._directory.iterdir() if path.is_dir()]
        return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]*", name))

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """Raises CheckpointError for an error of the file system."""
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"{self._directory} cannot be used ({one_line(error)}); if it was moved or "
                "removed, put it back or give its new place; checkpoints that were saved are whole."
            ) from error

    def _listing(self, problems: Mapping[int, str]) -> str:
        lines = (f"  {self._folder(step)}: {what}" for step, what in problems.items())
        return "damaged checkpoints:\n" + "\n".join(lines)

    def _check_space(self, needed: int) -> None:
        with self._usable():
            free = shutil.disk_usage(self._directory).free
        if free < needed:
            raise CheckpointError(
                f"the state has {needed:,} bytes, but the disk of {self._directory} has only "
                f"{free:,} free; free some (a new checkpoint is written before an old one goes)."
            )

    def _clear_unfinished(self) -> None:
        for path in self._directory.iterdir():
            if not re.fullmatch(r"[0-9]+\.tmp", path.name):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _check_config(self) -> None:
        for step in self._steps():
            try:
                stored = read_manifest(self._folder(step))["config"]
            except DamageError:
                continue  # restore reports it
            changed = differences(stored, self._config)
            if changed:
                raise CheckpointError(
                    f"{self._folder(step)} belongs to another config:\n  "
                    + "\n  ".join(changed)
                    + "\ngive the stored values to resume it, or use another directory."
                )

    def _write(self, step: int, write: Callable[[Path], None]) -> None:
        """Writes one checkpoint; the rename at its end makes it exist, whole or not at all."""
        self._clear_unfinished()
        unfinished = self._directory / f"{step}.tmp"
        unfinished.mkdir()
        try:
            write(unfinished)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)  # a full disk needs the space back
            raise
        for damaged in self._damaged.intersection(self._steps()):
            set_aside(self._folder(damaged))
        self._damaged.clear()
        unfinished.rename(self._folder(step))
        sync(self._directory)
        for old in self._steps()[: -self._keep]:
            # Renamed first: a kill while deleting must not leave half a checkpoint under its name.
            shutil.rmtree(self._folder(old).rename(self._directory / f"{old}.tmp"))


def _as_json(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `value` as JSON gives it back, so that what is stored and what is compared agree."""
    try:
        return json.loads(json.dumps(dict(value)))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} must be a mapping of JSON values, got {value!r} ({error}); convert "
            "dataclasses with dataclasses.asdict, arrays with .tolist() and paths with str."
        ) from error
