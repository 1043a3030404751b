"""Folders of tensorflow-datasets: where they are, and a check that they name no foreign code."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bnjax.data.data_set import DataError
from bnjax.paths import local_path

_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")  # "type" until 4.4


def local_root(data_dir: str | Path | None) -> Path:
    """Returns the folder under which tensorflow-datasets keeps prepared data.

    Args:
        data_dir: the folder; by default the environment's TFDS_DATA_DIR, else
            ~/tensorflow_datasets.

    Raises:
        ValueError: it is a URL.
    """
    if data_dir:
        return local_path("data_dir", data_dir)
    root = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return local_path("TFDS_DATA_DIR", root)


def check_features(folder: Path) -> None:
    """Refuses a prepared folder that names other features than tensorflow-datasets' own.

    To restore a feature, tensorflow-datasets imports whatever module the folder's files name: that
    would run a program that lies in the current folder.

    Args:
        folder: that of a version. Files that it lacks are not looked for.

    Raises:
        DataError: a name is not one of `tfds.features`.
        ValueError, OSError: a file cannot be read as JSON.
    """
    import tensorflow_datasets as tfds

    own = {
        f"{kind.__module__}.{kind.__name__}"
        for kind in vars(tfds.features).values()
        if isinstance(kind, type) and issubclass(kind, tfds.features.FeatureConnector)
    }
    for file in (folder / "features.json", folder / "dataset_info.json"):
        if not file.is_file():
            continue
        value = json.loads(file.read_text("utf-8"))
        features = value if file.name == "features.json" else value.get("features")
        for name in _class_names(features):
            if name not in own:
                raise DataError(
                    f"{file}: names the feature {name!r}, which is not one of "
                    "tensorflow-datasets; opening the folder would run it. Prepare the data with "
                    "tfds.features alone"
                )


def _class_names(value: Any) -> Iterator[Any]:
    """Yields the Python classes that a feature's JSON names, also in JSON within its strings."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            if isinstance(inner := json.loads(value), dict | list):
                yield from _class_names(inner)
    elif isinstance(value, list):
        for item in value:
            yield from _class_names(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in _CLASS_KEYS and isinstance(item, str):
                yield item
            yield from _class_names(item)
