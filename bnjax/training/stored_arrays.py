"""The arrays of a checkpoint on disk, as Orbax writes them."""

import glob
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bnjax.training.manifests import DamageError, one_line, sha256

_STORED_AS_BYTES = ("uint2", "uint4", "float8_e4m3")  # TensorStore does not know them


def write_arrays(folder: Path, arrays: Iterable[np.ndarray]) -> None:
    """Writes arrays into `folder`/arrays; those without elements are left out."""
    import orbax.checkpoint as ocp

    # Orbax refuses arrays without elements; reading makes them from their shape.
    stored = [_as_stored(array) for array in arrays if array.size]
    with _plain(folder) as plain, _orbax_checkpointer() as checkpointer:
        checkpointer.save(plain / "arrays", args=ocp.args.StandardSave(stored))


def check_arrays(folder: Path, arrays: Iterable[np.ndarray]) -> None:
    """Raises DamageError unless the arrays on disk are those that were to be written."""
    wanted = [_as_stored(array) for array in arrays if array.size]
    found = read_arrays(folder)
    if not (
        len(found) == len(wanted)
        and all(
            isinstance(read, np.ndarray)
            and (read.shape, read.dtype) == (given.shape, given.dtype)
            and sha256(read) == sha256(given)
            for read, given in zip(found, wanted, strict=True)
        )
    ):
        raise DamageError("arrays/ holds other values than were written")


def read_arrays(folder: Path) -> list[np.ndarray]:
    """What `write_arrays` wrote; raises DamageError where Orbax cannot read it."""
    try:
        with _plain(folder) as plain, _orbax_checkpointer() as checkpointer:
            return checkpointer.restore(plain / "arrays")
    except Exception as error:  # what Orbax raises on broken files is not specified
        raise DamageError(f"Orbax cannot read arrays/: {one_line(error)}") from error


def as_written(array: Any, dtype: np.dtype) -> Any:
    """What was read, in the dtype that was written where that is stored as bytes."""
    stored = isinstance(array, np.ndarray) and array.dtype == np.uint8
    return array.view(dtype) if stored and dtype.name in _STORED_AS_BYTES else array


def _as_stored(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint8) if array.dtype.name in _STORED_AS_BYTES else array


@contextmanager
def _plain(folder: Path) -> Iterator[Path]:
    """The folder under a path that Orbax takes as it is.

    Orbax takes a path for a pattern of `glob`, and TensorStore a backslash for a slash.
    """
    if glob.escape(str(folder)) == str(folder) and "\\" not in str(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as other:
        link = Path(other) / "checkpoint"
        link.symlink_to(folder, target_is_directory=True)
        yield link


def _orbax_checkpointer() -> Any:
    import orbax.checkpoint as ocp

    # Process 0 reads and writes alone, so Orbax must not wait for the others at its barriers.
    alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
    return ocp.Checkpointer(
        ocp.StandardCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone
    )
