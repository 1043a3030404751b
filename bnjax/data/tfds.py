"""What tensorflow-datasets prepares: where it lies, and how its own builders write it.

A builder's steps that take TensorFlow are those that make examples. They are made elsewhere and
given to it; everything else (layout, features, order, writing) is its own, so that a folder is an
ordinary one.
"""

import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bnjax.data.dataset import DataError
from bnjax.extras import extra
from bnjax.paths import local_path

_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")  # "type" until 4.4


def local_root(data_dir: str | Path | None) -> Path:
    """The folder under which tensorflow-datasets keeps prepared data.

    Args:
        data_dir: the folder; by default the environment's TFDS_DATA_DIR, else
            ~/tensorflow_datasets.

    Raises:
        ValueError: it is a URL.
    """
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return local_path("data_dir", root)


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
    """What a feature's JSON, and JSON that stands in its strings, names as Python classes."""
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


def fed_builder(
    name: str, data_dir: Path, splits: Mapping[str, Iterator[tuple[Any, dict[str, Any]]]]
) -> Any:
    """The genuine builder of a data set, fed with examples; writes array_record files.

    Args:
        name: of the data set.
        data_dir: the root of prepared data sets.
        splits: keys and examples by split, which are read once.
    """
    with extra("data"):
        import tensorflow_datasets as tfds

    genuine: Any = tfds.builder_cls(name)

    class Builder(genuine, skip_registration=True):  # type: ignore[call-arg]
        """The genuine one, but for the steps that take TensorFlow."""

        name = genuine.name  # otherwise taken from the class, and the folder with it

        def _split_generators(self, dl_manager: Any) -> Mapping[str, Iterator]:
            return splits

    return Builder(data_dir=str(data_dir), file_format="array_record")


def build(builder: Any) -> None:
    """Writes a builder's folder, which appears under its name when all of it is written.

    Raises:
        OSError: the folder cannot be written, or stands there already.
    """
    # Its announcements on standard output say "Unknown size"; its progress is on standard error.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()
