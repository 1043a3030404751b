"""A name in, a checked data set in memory out, or an error that says what to do.

`mnist5k` comes with bnjax. `mnist` and `fashion_mnist` are read from a folder that
tensorflow-datasets prepared in array_record format, here or elsewhere; one that is missing is
fetched and prepared. None of it imports TensorFlow; `bnjax.data.prepare` says which steps of
tensorflow-datasets do. Its decoder of images is not used either: Pillow alone is faster, and does
not advise anybody to install OpenCV.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np

from bnjax.data import mnist5k
from bnjax.data.dataset import DataError, Dataset, Split, check_split, make_dataset
from bnjax.data.fetch import fetch_file
from bnjax.data.png import check_rows
from bnjax.data.prepare import read_idx_files, remote_files, write_prepared
from bnjax.data.tfds import local_root
from bnjax.extras import extra

DATASETS = ("mnist5k", "mnist", "fashion_mnist")
"""The names that `load_dataset` knows."""
SPLIT_SIZES = {"train": 60_000, "test": 10_000}
"""Examples in each split of `mnist` and of `fashion_mnist`."""
IMAGE_SHAPE = (28, 28, 1)
NUM_CLASSES = 10
_REMEDY = (
    "delete it and load again to have it prepared anew, copy it anew from where it is whole, "
    "or give another data_dir"
)


def load_dataset(name: str, *, data_dir: str | Path | None = None) -> Dataset:
    """Loads a data set, fetching and preparing it first where that is needed.

    Args:
        name: one of `DATASETS`.
        data_dir: local folder under which tensorflow-datasets keeps prepared data; by default the
            environment's TFDS_DATA_DIR, else ~/tensorflow_datasets. `mnist5k` needs none.

    Returns:
        Images uint8 [n, 28, 28, 1] and labels int32 [n] in two splits: 4,000 + 1,000 for `mnist5k`,
        60,000 + 10,000 for the others, in the order in which they are stored.

    Raises:
        ValueError: the name is unknown, or data_dir is a URL.
        DataError: the data is damaged, or it is missing and cannot be fetched.
    """
    if name not in DATASETS:
        raise ValueError(f"name must be one of {', '.join(DATASETS)}; got {name!r}")
    root = local_root(data_dir)
    return mnist5k.load() if name == "mnist5k" else _load_prepared(name, root)


def _load_prepared(name: str, root: Path) -> Dataset:
    with extra("data"):
        import tensorflow_datasets as tfds

    builder_cls = tfds.builder_cls(name)
    folder = root / name / str(builder_cls.VERSION)
    if not folder.exists():
        _prepare(name, root, folder)
    if not (folder / "dataset_info.json").exists():
        raise DataError(f"{folder}: half-prepared, it has no dataset_info.json; {_REMEDY}")
    try:
        builder = builder_cls(data_dir=str(root))
        splits = {key: _read_split(builder, key, folder) for key in SPLIT_SIZES}
    except Exception as error:  # json, protobuf, array_record and Pillow each raise their own
        raise DataError(
            f"{folder}: cannot be read ({type(error).__name__}: {error}); {_REMEDY}"
        ) from error
    return make_dataset(name, splits["train"], splits["test"], num_classes=NUM_CLASSES)


def _prepare(name: str, root: Path, folder: Path) -> None:
    try:
        downloads = root / "downloads" / name
        for filename, remote in remote_files(name).items():
            fetch_file(remote, downloads / filename)
        splits = read_idx_files(downloads)
        for key, split in splits.items():
            _check(split, key, downloads)
        write_prepared(name, splits, root)
    except (DataError, OSError) as error:
        if (folder / "dataset_info.json").exists():
            return  # another process prepared it meanwhile
        raise DataError(
            f"{name} is not in {folder} and cannot be prepared there: {error}\n"
            "Two ways on:\n"
            f"- where there is a network, load_dataset({name!r}, data_dir=DIR) prepares DIR; copy "
            "it, and name the copy with TFDS_DATA_DIR, data_dir or --data-dir;\n"
            "- load 'mnist5k', 5,000 genuine digits that come with bnjax."
        ) from error


def _read_split(builder: Any, key: str, folder: Path) -> Split:
    with extra("data"):
        import tensorflow_datasets as tfds
        from PIL import Image

    source = builder.as_data_source(split=key, decoders={"image": tfds.decode.SkipDecoding()})
    examples = source.__getitems__(range(len(source)))
    images = []
    for example in examples:
        check_rows(example["image"])
        with Image.open(io.BytesIO(example["image"]), formats=["PNG"]) as image:
            images.append(np.asarray(image))
    labels = np.array([example["label"] for example in examples], np.int32)
    split = Split(np.stack(images)[..., None], labels)
    _check(split, key, folder)
    return split


def _check(split: Split, key: str, folder: Path) -> None:
    check_split(
        split,
        count=SPLIT_SIZES[key],
        image_shape=IMAGE_SHAPE,
        num_classes=NUM_CLASSES,
        where=f"{folder}, {key}",
    )
