"""The arrays of a checkpoint on disk, as Orbax writes them."""

import glob
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bnjax.training.manifests import DamageError, one_line

_STORED_AS_BYTES = (  # TensorStore does not know them
    *("int1", "uint1", "uint2", "uint4"),
    *("float6_e2m3fn", "float6_e3m2fn", "float8_e4m3"),
)


def write_arrays(folder: Path, arrays: Iterable[np.ndarray]) -> None:
    """Writes arrays into `folder`/arrays; those without elements are left out."""
    import orbax.checkpoint as ocp

    # Orbax refuses arrays without elements; the reader makes them from their shape.
    stored = [
        array.view(np.uint8) if array.dtype.name in _STORED_AS_BYTES else array
        for array in arrays
        if array.size
    ]
    with _plain(folder) as plain, _orbax_checkpointer() as checkpointer:
        checkpointer.save(plain / "arrays", args=ocp.args.StandardSave(stored))


def read_arrays(folder: Path) -> list[np.ndarray]:
    """Returns what `write_arrays` wrote; raises DamageError where Orbax cannot read it."""
    try:
        with _plain(folder) as plain, _orbax_checkpointer() as checkpointer:
            return checkpointer.restore(plain / "arrays")
    except Exception as error:  # what Orbax raises on broken files is not specified
        raise DamageError(f"Orbax cannot read arrays/: {one_line(error)}") from error


def as_written(array: Any, dtype: np.dtype) -> Any:
    """Returns an array that was read in its own dtype, if that is one that is stored as bytes."""
    stored = isinstance(array, np.ndarray) and array.dtype == np.uint8
    return array.view(dtype) if stored and dtype.name in _STORED_AS_BYTES else array


@contextmanager
def _plain(folder: Path) -> Iterator[Path]:
    """Yields the folder under a path without special characters.

    Orbax reads a path as a pattern of `glob`, and TensorStore a backslash as a slash.
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
