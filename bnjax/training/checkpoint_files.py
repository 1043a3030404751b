"""One checkpoint on disk: written with digests of its values, read back only if it is whole."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bnjax.evidence.records import sync
from bnjax.training.keys import from_array, to_array
from bnjax.training.manifests import (
    SCHEMA_VERSION,
    DamageError,
    Leaf,
    PyTree,
    as_array,
    check_files,
    check_same_leaves,
    file_digests,
    read_manifest,
    sha256,
    stored_form,
    versions,
    with_digests,
    write_manifest,
)
from bnjax.training.stored_arrays import as_written, read_arrays, write_arrays


def host_copies(state: PyTree) -> list[np.ndarray]:
    """Returns each leaf as a NumPy array that shares no memory with it; keys as their data."""
    # On CPU device_get returns views of the device buffers, which donation would overwrite.
    leaves = jax.device_get([to_array(as_array(leaf)) for leaf in jax.tree.leaves(state)])
    arrays = [np.array(leaf, order="C") for leaf in leaves]
    if not any(array.size for array in arrays):
        raise ValueError("state has no values to save; give a pytree with at least one array.")
    return arrays


def write_checkpoint(
    folder: Path,
    *,
    step: int,
    leaves: Sequence[Leaf],
    arrays: Sequence[np.ndarray],
    config: Mapping[str, Any],
) -> None:
    """Writes a checkpoint into an empty folder, reads it back and waits for the disk.

    `leaves` and `arrays` are those of `describe` and `host_copies`; `config` is JSON.

    Raises:
        DamageError: the disk holds other values than were written.
    """
    write_arrays(folder, arrays)
    manifest: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "step": step,
        "leaves": with_digests(leaves, arrays),
        "files": file_digests(folder),
        "versions": versions(),
        "config": config,
        "extra": {},  # which earlier versions ask for; nothing is read from it
    }
    write_manifest(folder, manifest)
    _read_values(folder, manifest["leaves"])
    for path in (*folder.rglob("*"), folder):
        sync(path)


def read_checkpoint(folder: Path, wanted: Sequence[Leaf]) -> list[Any]:
    """Returns the leaves, in the order of `wanted` (from `describe`).

    Raises:
        DamageError: the checkpoint is not what was written.
        CheckpointError: it holds other leaves, or has another schema version.
    """
    manifest = read_manifest(folder)
    check_same_leaves(folder, manifest["leaves"], wanted)
    check_files(folder, manifest["files"])
    values = _read_values(folder, manifest["leaves"])
    impls = {leaf["path"]: leaf.get("prng_impl") for leaf in manifest["leaves"]}
    paths = [leaf["path"] for leaf in wanted]
    return [from_array(values[path], impls[path]) for path in paths]


def holds(folder: Path, leaves: Sequence[Leaf], arrays: Sequence[np.ndarray]) -> bool:
    """Whether a checkpoint has these values; raises DamageError if it is not what was written."""
    manifest = read_manifest(folder)
    check_files(folder, manifest["files"])
    return manifest["leaves"] == with_digests(leaves, arrays)


def set_aside(folder: Path) -> None:
    """Renames a damaged checkpoint, so that its step is free and its files can be examined."""
    aside = folder.with_name(f"{folder.name}.damaged")
    count = 1
    while aside.exists():
        count += 1
        aside = folder.with_name(f"{folder.name}.damaged-{count}")
    folder.rename(aside)


def _read_values(folder: Path, leaves: Sequence[Leaf]) -> dict[str, np.ndarray]:
    """Returns the arrays on disk by path, each compared with its leaf's digest; keys as data."""
    stored = iter(read_arrays(folder))
    values: dict[str, np.ndarray] = {}
    wrong = []
    for leaf in leaves:
        form = stored_form(leaf)
        array = np.empty(form.shape, form.dtype)  # without elements, it is not on disk
        if array.size:
            array = as_written(next(stored, None), array.dtype)
        if not (
            isinstance(array, np.ndarray)
            and (array.shape, array.dtype) == (form.shape, form.dtype)
            and sha256(array) == leaf["sha256"]
        ):
            wrong.append(leaf["path"])
        values[leaf["path"]] = array
    if wrong:
        raise DamageError(f"values differ from their SHA-256: {', '.join(wrong)}")
    return values
