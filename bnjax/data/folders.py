"""Image folders: train/ and val/ (or validation/), each with one folder of images a class.

Classes are numbered by their sorted names. Examples have a fixed random order, because the folder's
own would put one class after another, and so fill a shard or a batch with one class.
"""

import hashlib
import os
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bnjax.data.data_set import DataError, DataSet, Example, Split, split_shards
from bnjax.data.order import permutation
from bnjax.paths import local_path

SUFFIXES = (".jpeg", ".jpg", ".png")
"""Endings of image files, in any case. Other files are refused, except hidden ones (.DS_Store)."""
VALIDATION = ("val", "validation")
_LAYOUT = "expected train/CLASS/*.jpg and val/CLASS/*.jpg, one folder a class"


@dataclass(frozen=True, repr=False)
class FolderSplit:
    """The images of one split.

    Attributes:
        root: the split's folder.
        files: `class/file.jpg`, as stored: sorted. About 100 bytes each.
        labels: int32 `[n]`, the class of each file.
        order: int32 `[n]`: example i is file `order[i]`.
    """

    root: Path
    files: tuple[str, ...]
    labels: np.ndarray
    order: np.ndarray

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Sizes of equal parts of the order."""
        return split_shards((len(self.files),))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        file = int(self.order[index])
        path = self.root / self.files[file]
        try:
            return Example(path.read_bytes(), int(self.labels[file]), str(path))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error}).") from error


def open_folder(root: str | Path) -> DataSet[Split]:
    """Lists an image folder, without reading the images.

    Args:
        root: has `train` and one of `VALIDATION` in it.

    Returns:
        The data set, named `folder:` and the folder's own name. `sha256` covers the names and the
        sizes of all files: not their bytes.

    Raises:
        ValueError: the root is a URL.
        DataError: something is missing, empty, unreadable or no image, or the splits have other
            classes.
    """
    root = local_path("root of an image folder", root)
    found = [name for name in ("train", *VALIDATION) if (root / name).is_dir()]
    if "train" not in found or len(found) != 2:
        there = ", ".join(sorted(path.name for path in root.iterdir())[:8]) if root.is_dir() else ""
        raise DataError(
            f"{root}: {_LAYOUT}; found {there or 'nothing'}. Name the folder that has both "
            "splits in it, and one of val and validation."
        )
    splits = [_list_split(root / name) for name in found]
    classes, others = ({file.partition("/")[0] for file in files} for files in splits)
    if {_composed(name) for name in classes - others} & {_composed(name) for name in others}:
        raise DataError(
            f"{root}: the same names are written in other Unicode forms in the splits: "
            f"{_some(classes - others, ascii)} in train, {_some(others - classes, ascii)} in "
            f"{found[1]}. Rename the folders of one of them, to NFC in both."
        )
    if classes != others:
        raise DataError(
            f"{root}: the splits must have the same classes; {_some(classes - others)} only in "
            f"train, {_some(others - classes)} only in {found[1]}."
        )
    digest = hashlib.sha256()
    for split, files in zip(("train", "validation"), splits, strict=True):
        for file, size in files.items():
            digest.update(f"{split}/{file}\0{size}\n".encode(errors="surrogateescape"))
    train, test = (
        _order_split(root / name, tuple(files)) for name, files in zip(found, splits, strict=True)
    )
    name = f"folder:{os.path.basename(os.path.abspath(root))}"  # of ".", too
    return DataSet(name, len(classes), 3, train, test, digest.hexdigest())


def _list_split(split: Path) -> dict[str, int]:
    """Returns sizes of the images by `class/file`, sorted."""
    try:
        folders = sorted(path for path in split.iterdir() if not path.name.startswith("."))
        files: dict[str, int] = {}
        for folder in folders:
            if not folder.is_dir():
                raise DataError(f"{folder}: a file among the class folders; {_LAYOUT}.")
            files |= _list_class(folder)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror}).") from error
    if not files:
        raise DataError(f"{split}: no class folders; {_LAYOUT}.")
    return files


def _list_class(folder: Path) -> dict[str, int]:
    files: dict[str, int] = {}
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if not entry.is_file() or not entry.name.lower().endswith(SUFFIXES):
                raise DataError(f"{entry.path}: not an image file ({', '.join(SUFFIXES)}).")
            files[f"{folder.name}/{entry.name}"] = entry.stat().st_size
    if not files:
        raise DataError(f"{folder}: a class without an image; add some, or remove the folder.")
    return files


def _order_split(root: Path, files: tuple[str, ...]) -> FolderSplit:
    names = [file.partition("/")[0] for file in files]
    labels = np.unique(names, return_inverse=True)[1].astype(np.int32)
    order = permutation(0, 0, len(files))  # any fixed one would do, and digests rest on this one
    return FolderSplit(root, files, labels, order)


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _some(classes: set[str], show: Callable[[str], str] = str) -> str:
    names = [show(name) for name in sorted(classes)]
    return (", ".join(names[:4]) + (", ..." if len(names) > 4 else "")) or "none"
