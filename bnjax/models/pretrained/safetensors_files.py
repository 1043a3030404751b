"""Variables to a safetensors file and back, bitwise."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Arrays = dict[str, np.ndarray]

_DTYPES = {  # of the format, as names of JAX's
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}


class Saved(NamedTuple):
    """The contents of a file, from `load_safetensors`.

    Attributes:
        variables: nested dictionaries of NumPy arrays.
        metadata: the texts that were given to `save_safetensors`.
    """

    variables: dict[str, Any]
    metadata: dict[str, str]


def save_safetensors(
    variables: Mapping[str, Any],
    path: str | Path,
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a model's variables, for anyone to read.

    Each array has the name of its path, joined by slashes: `params/conv_1a/conv/kernel`,
    `batch_stats/conv_1a/norm/var`. Layouts are Flax's: kernels `[h, w, in, out]` and `[in, out]`.

    Args:
        variables: nested dictionaries of arrays, of a dtype that the format has: not of 4 bits,
            of the float8 types `float8_e4m3fn` and `float8_e5m2`.
        path: of the new file; ends in `.safetensors`. An existing file is replaced.
        metadata: text by name, kept in the file.

    Raises:
        ValueError: for another ending, names with a slash, nothing to save, leaves that are no
            arrays or of a dtype that the format lacks, or metadata that is not text.
        OSError: if the file cannot be written.

    Example:
        >>> import tempfile
        >>> variables = {"params": {"dense": {"kernel": np.ones((2, 3), np.float32)}}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_safetensors(variables, f"{folder}/ours.safetensors", metadata={"by": "me"})
        ...     saved = load_safetensors(f"{folder}/ours.safetensors")
        >>> saved.variables["params"]["dense"]["kernel"].shape, saved.metadata["by"]
        ((2, 3), 'me')
    """
    from safetensors import SafetensorError  # late, as every reader of files here
    from safetensors.numpy import save_file

    path = _checked_path(path)
    arrays: Arrays = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(variables):
        names = [getattr(key, "key", None) for key in keys]
        if not all(isinstance(name, str) and name and "/" not in name for name in names):
            raise ValueError(
                f"variables must be nested dictionaries with names without a slash, got the path "
                f"{jax.tree_util.keystr(keys)}."
            )
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
            raise ValueError(
                f"variables{jax.tree_util.keystr(keys)} must be an array, got {type(leaf)}."
            )
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
            raise ValueError(
                f"variables{jax.tree_util.keystr(keys)} is of dtype {leaf.dtype}, which no file "
                "holds: give jax.random.key_data of it."
            )
        if leaf.dtype.name not in _DTYPES.values():
            raise ValueError(
                f"variables{jax.tree_util.keystr(keys)} is of dtype {leaf.dtype}, which "
                f"safetensors files do not hold; they hold {', '.join(_DTYPES.values())}."
            )
        arrays["/".join(map(str, names))] = np.array(leaf, order="C")
    if not arrays:
        raise ValueError("variables holds no array: there is nothing to save.")
    texts = dict(metadata or {})
    for name, text in texts.items():
        if not (isinstance(name, str) and isinstance(text, str)):
            raise ValueError(f"metadata must be text by name, got {name!r}: {text!r}.")
    try:
        save_file(arrays, path, metadata=texts)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def load_safetensors(path: str | Path) -> Saved:
    """Reads what `save_safetensors` wrote: the same bits, dtypes and structure.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for another ending, a file that is damaged or not of safetensors, or names that
            are not those of nested dictionaries.

    Example:
        >>> saved = load_safetensors("ours.safetensors")  # doctest: +SKIP
        >>> model.apply(saved.variables, images, train=False)  # doctest: +SKIP
    """
    arrays, metadata = read_safetensors(_checked_path(path))
    variables: dict[str, Any] = {}
    for name, value in arrays.items():
        *parents, last = name.split("/")
        place: Any = variables
        for parent in parents:
            place = place.setdefault(parent, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last in place:
            raise ValueError(f"{path} has an array {name!r} and another inside it.")
        place[last] = value
    return Saved(variables, metadata)


def read_safetensors(path: Path) -> tuple[Arrays, dict[str, str]]:
    """The arrays of a file by name, and its metadata.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or not of safetensors.
    """
    from safetensors import SafetensorError, deserialize, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        unknown = [f"{name} of {kind}" for name, kind in kinds.items() if kind not in _DTYPES]
        if unknown:
            raise ValueError(f"{path} holds {', '.join(unknown[:20])}: types that we cannot read.")
        # The tensors of safe_open cannot be float8: NumPy's names are looked up for them.
        return {
            name: np.frombuffer(entry["data"], jnp.dtype(_DTYPES[entry["dtype"]])).reshape(
                entry["shape"]
            )
            for name, entry in deserialize(path.read_bytes())
        }, metadata
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged, truncated, or not of safetensors: {error}."
        ) from error


def _checked_path(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {path}.")
    return path
