"""The manifest of a checkpoint: its leaves and config, and the digests that prove it whole."""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np

from bnjax.evidence.records import differences
from bnjax.training.keys import array_form, is_key, key_impl
from bnjax.version import __version__

PyTree: TypeAlias = Any
Leaf: TypeAlias = Mapping[str, Any]
"""A leaf as the manifest has it: `path`, `shape`, `dtype`, of a key `prng_impl`, and `sha256`."""

SCHEMA_VERSION = 1
_RECORDED_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or does not belong to what was asked."""


class DamageError(Exception):
    """A checkpoint does not hold what was written; the message says what is wrong."""


def as_array(leaf: Any) -> Any:
    """Returns a Python integer as the array that JAX makes of it, as of Flax's `TrainState.step`.

    Other leaves are returned as they are, floats among them: float32 has other values.
    """
    dtype = jax.dtypes.canonicalize_dtype(np.int64)
    limits = np.iinfo(dtype)
    fits = type(leaf) is int and limits.min <= leaf <= limits.max
    return np.array(leaf, dtype) if fits else leaf


def describe(name: str, tree: PyTree, *abstract: Any) -> list[dict[str, Any]]:
    """Returns path, shape and dtype of every leaf.

    Raises:
        TypeError: a leaf is not an array, an integer that fits one, nor of the `abstract` types,
            of a native numeric dtype other than longdouble.
    """
    leaves = []
    allowed = (jax.Array, np.ndarray, np.generic, *abstract)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        where, leaf = jax.tree_util.keystr(path), as_array(leaf)
        if not isinstance(leaf, allowed):
            raise TypeError(
                f"{name}{where} must be an array, got {leaf!r} of type {type(leaf).__name__}; "
                "convert it with np.asarray and a dtype."
            )
        numeric = any(jax.dtypes.issubdtype(leaf.dtype, kind) for kind in (np.number, np.bool_))
        wide = numeric and leaf.dtype.char in "gG"  # TensorStore does not know them
        if wide or not (is_key(leaf) or (numeric and leaf.dtype.isnative)):
            raise TypeError(
                f"{name}{where} must have a native numeric or bool dtype, other than longdouble, "
                f"got {leaf.dtype}."
            )
        facts: dict[str, Any] = {"path": where, "shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        if isinstance(leaf, jax.Array) and is_key(leaf):
            facts["prng_impl"] = key_impl(leaf)
        leaves.append(facts)
    return leaves


def with_digests(leaves: Iterable[Leaf], arrays: Iterable[np.ndarray]) -> list[dict[str, Any]]:
    """Returns leaves, each with the digest of its values."""
    pairs = zip(leaves, arrays, strict=True)
    return [{**leaf, "sha256": sha256(array)} for leaf, array in pairs]


def sha256(array: np.ndarray) -> str:
    """Returns the digest of an array's values."""
    # As bytes, because hashlib does not know the buffers of bfloat16 and its kin.
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def stored_form(leaf: Leaf) -> jax.ShapeDtypeStruct:
    """Returns shape and dtype in which a leaf's values are stored; a key's are its data."""
    impl = leaf.get("prng_impl")
    if impl is None:
        return jax.ShapeDtypeStruct(leaf["shape"], np.dtype(leaf["dtype"]))
    key = jax.eval_shape(lambda: jax.random.key(0, impl=impl))
    return array_form(jax.ShapeDtypeStruct(leaf["shape"], key.dtype))


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes a manifest and its own digest."""
    text = json.dumps(manifest, indent=1).encode()
    (folder / "manifest.json").write_bytes(text)
    (folder / "manifest.sha256").write_bytes(_manifest_digest(text))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns a checkpoint's manifest.

    Raises:
        DamageError: if it cannot be read, or is not what was written for this step.
        CheckpointError: if it has another schema version.
    """
    try:
        text = (folder / "manifest.json").read_bytes()
        digest = (folder / "manifest.sha256").read_bytes()
    except OSError as error:
        raise DamageError(f"its manifest cannot be read: {one_line(error)}") from error
    if digest != _manifest_digest(text):
        raise DamageError("manifest.json differs from its digest in manifest.sha256")
    try:
        manifest = json.loads(text)
        schema, writer = manifest["schema_version"], manifest["versions"]["bnjax"]
        whole = schema != SCHEMA_VERSION or _is_whole(manifest)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise DamageError(f"manifest.json is no manifest: {one_line(error)}") from error
    if not whole:
        raise DamageError("manifest.json is no manifest: it lacks facts, or has some of wrong kind")
    if schema != SCHEMA_VERSION:
        raise CheckpointError(
            f"{folder} has schema version {schema}, this bnjax reads {SCHEMA_VERSION}; "
            f"use bnjax {writer}, which wrote it."
        )
    if str(manifest["step"]) != folder.name:
        raise DamageError(f"its manifest is that of step {manifest['step']}")
    return manifest


def _is_whole(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest has everything that is read from it, each with its type."""
    kinds = {"leaves": list, "files": dict, "config": dict}
    if not all(isinstance(manifest[name], kind) for name, kind in kinds.items()):
        return False
    texts = [*manifest["files"].values()]
    sizes = []
    for leaf in manifest["leaves"]:
        texts += [leaf["path"], leaf["dtype"], leaf["sha256"]]
        if leaf["dtype"].startswith("key<"):
            jax.random.key(0, impl=leaf["prng_impl"])  # ValueError for an unknown one
        sizes += leaf["shape"]
    return all(isinstance(text, str) for text in texts) and all(
        isinstance(size, int) for size in sizes
    )


def _manifest_digest(text: bytes) -> bytes:
    return f"{hashlib.sha256(text).hexdigest()}  manifest.json\n".encode()


def check_same_leaves(folder: Path, stored: Iterable[Leaf], wanted: Iterable[Leaf]) -> None:
    """Raises CheckpointError with every leaf in which a checkpoint and the target differ."""

    def by_path(leaves: Iterable[Leaf]) -> dict[str, str]:
        return {leaf["path"]: f"{leaf['dtype']}{leaf['shape']}" for leaf in leaves}

    changed = differences(by_path(stored), by_path(wanted))
    if changed:
        raise CheckpointError(
            f"{folder} does not fit the target:\n  "
            + "\n  ".join(changed)
            + "\nbuild the target with the code and config that saved it, or use another directory."
        )


def check_files(folder: Path, files: Mapping[str, str]) -> None:
    """Raises DamageError unless the files below `folder`/arrays are those that were written.

    Orbax must not see broken files: it leaves failing tasks in its event loop, which print.
    """
    try:
        found = file_digests(folder)
    except OSError as error:
        raise DamageError(f"its files cannot be read: {one_line(error)}") from error
    if found != files:
        names = {name for name, _ in found.items() ^ files.items()}
        broken = [name if name in found else f"{name} (missing)" for name in sorted(names)]
        raise DamageError(f"files differ from their SHA-256: {', '.join(broken)}")


def file_digests(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file below `folder`/arrays, by its path from `folder`."""
    digests = {}
    for path in sorted((folder / "arrays").rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            digests[path.relative_to(folder).as_posix()] = digest
    return digests


def versions() -> dict[str, str]:
    """Returns the versions of Python, of the packages that matter, and of this code."""
    found = {package: importlib.metadata.version(package) for package in _RECORDED_PACKAGES}
    return {"python": platform.python_version(), **found, "bnjax": __version__}


def one_line(error: BaseException) -> str:
    """Returns an error's kind and text, shortened."""
    text = " ".join(str(error).split())
    if len(text) > 400:  # Orbax and TensorStore put the cause last
        text = f"{text[:200]} ... {text[-200:]}"
    return f"{type(error).__name__}: {text}"
