"""The arrays of a Keras file, named by the kind of their layer and its place in the file.

Keras gives layers running names that change from one model to the next, and itself reads a file
by order; so do we: `conv2d_5/kernel` is that of the sixth convolution in the file.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from bnjax.extras import extra

Arrays = dict[str, np.ndarray]

_DAMAGES = (  # what h5py raises, or returns and we stumble over, where a file is damaged
    OSError,
    LookupError,
    RuntimeError,
    TypeError,
    AttributeError,
    UnicodeError,
    MemoryError,
)
_WEIGHTS = {  # of a layer, by how many there are
    "conv2d": {1: ("kernel",), 2: ("kernel", "bias")},
    "dense": {1: ("kernel",), 2: ("kernel", "bias")},
    "batch_normalization": {
        3: ("beta", "moving_mean", "moving_variance"),
        4: ("gamma", "beta", "moving_mean", "moving_variance"),
    },
}


def read_keras(path: Path) -> Arrays:
    """The weights of a `.weights.h5` of Keras 3, or of an `.h5` of Keras 2.

    Args:
        path: what `model.save_weights` or, as `.h5`, `model.save` wrote.

    Raises:
        MissingExtraError: without h5py.
        ValueError: for another file, a damaged one, or layers of another kind.
    """
    with extra("pretrained"):
        import h5py
    try:
        with h5py.File(path, "r") as file:
            group = file.get("model_weights", file)
            if "layer_names" in group.attrs:
                return _read_by_order(path, group)
            if "layers" in group:
                return _read_by_name(path, group["layers"])
    except _DAMAGES as error:
        raise ValueError(
            f"{path} is not a readable HDF5 file, or is damaged or truncated: {error}."
        ) from error
    raise ValueError(f"{path} is an HDF5 file, but not of weights that Keras saved.")


def _read_by_name(path: Path, layers: Any) -> Arrays:
    """Keras 3: `<kind>_<number>/vars/<number>`, numbered by their order in the model."""
    arrays: Arrays = {}
    for name, layer in layers.items():
        values = layer.get("vars", {})
        found = [np.asarray(values[str(i)]) for i in range(len(values))]
        if found:
            arrays |= _named(path, name, found)
    return arrays


def _read_by_order(path: Path, group: Any) -> Arrays:
    """Keras 2: lists of names, in the order of the model."""
    arrays: Arrays = {}
    seen: Counter[str] = Counter()
    for layer in map(_text, group.attrs["layer_names"]):
        names = [_text(name) for name in group[layer].attrs["weight_names"]]
        if not names:
            continue
        kind = "dense" if layer == "predictions" else _kind(layer)
        number = f"_{seen[kind]}" if seen[kind] else ""
        seen[kind] += 1
        named = _named(path, kind + number, [np.asarray(group[layer][name]) for name in names])
        endings = [name.rpartition("/")[2].removesuffix(":0") for name in names]
        if endings != [name.rpartition("/")[2] for name in named]:
            raise ValueError(f"{path} has the weights {names} in layer {layer!r}: unknown to us.")
        arrays |= named
    return arrays


def _named(path: Path, layer: str, values: list[np.ndarray]) -> Arrays:
    names = _WEIGHTS.get(_kind(layer), {}).get(len(values))
    if names is None:
        raise ValueError(
            f"{path} has a layer {layer!r} with {len(values)} weights: a file of another network."
        )
    return {f"{layer}/{name}": value for name, value in zip(names, values, strict=True)}


def _kind(layer: str) -> str:
    return re.sub(r"_\d+$", "", layer)


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name
