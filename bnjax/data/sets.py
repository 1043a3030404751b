"""Data sets by name: opened and checked before any compute, or refused with a remedy.

data = open_data("folder:photos")
data.train[0].image     # the bytes of a JPEG

Nothing is downloaded but MNIST and Fashion-MNIST, where they are missing. TensorFlow is never
imported.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from bnjax.data import mnist5k
from bnjax.data.array_records import open_array_records
from bnjax.data.arrays import ArraySplit, digest, in_memory
from bnjax.data.data_set import DataError, DataSet, Split
from bnjax.data.folders import open_folder
from bnjax.data.prepare.mnist import prepare_mnist
from bnjax.data.tfds import local_root
from bnjax.paths import local_path
from bnjax.scalars import check_choice


class Facts(NamedTuple):
    """Known facts of a data set, and how to come by it.

    Attributes:
        folder: where tensorflow-datasets keeps its versions, below the root; None if the data
            comes with bnjax.
        classes: how many.
        train: images to learn from.
        test: images to measure on.
        remedy: what to do where it is missing or damaged; ends the message.
        prepare: fetches and prepares it where it is missing, given the name, the root and the
            number of images of each split; None if that is left to people.
        covers: what the digest covers: all "pixels" and labels, for which the data is decoded into
            memory when it is opened; or "files", as `bnjax.data.array_records` says.
    """

    folder: str | None
    classes: int
    train: int
    test: int
    remedy: str
    prepare: Callable[[str, Path, Mapping[str, int]], None] | None = None
    covers: Literal["pixels", "files"] = "files"


def _built(name: str) -> str:
    return (
        f"where TensorFlow and a network are at hand, prepare it with `tfds build {name} "
        f"--file_format=array_record --data_dir=DIR` (in an environment of its own), then name DIR "
        f"with TFDS_DATA_DIR, data_dir or --data-dir; the folder is then DIR/{name}/VERSION"
    )


def _like_mnist(name: str) -> Facts:
    remedy = (
        "delete it and open it again to have it prepared anew, copy it anew from where it is "
        "whole, or give another data_dir or --data-dir"
    )
    return Facts(name, 10, 60_000, 10_000, remedy, prepare_mnist, "pixels")


FACTS = {
    "mnist5k": Facts(None, 10, 4_000, 1_000, "reinstall bnjax", covers="pixels"),
    "mnist": _like_mnist("mnist"),
    "fashion_mnist": _like_mnist("fashion_mnist"),
    "cifar10": Facts("cifar10", 10, 50_000, 10_000, _built("cifar10")),
    "cifar10_jpeg": Facts(
        "cifar10_jpeg",
        10,
        50_000,
        10_000,
        "it is CIFAR-10 encoded as JPEG, prepared by hand: name the folder that holds "
        "cifar10_jpeg/VERSION with TFDS_DATA_DIR, data_dir or --data-dir, or use 'cifar10'",
    ),
    "imagenette": Facts(
        "imagenette/full-size-v2", 10, 9_469, 3_925, _built("imagenette/full-size-v2")
    ),
    "tiny_imagenet": Facts(
        "tiny_imagenet",
        200,
        100_000,
        10_000,
        "prepare it with `python -m bnjax.data.tiny_imagenet prepare --zip tiny-imagenet-200.zip "
        "--data-dir DIR`, then name DIR with TFDS_DATA_DIR, data_dir or --data-dir",
    ),
    "imagenet_resized/64x64": Facts(
        "imagenet_resized/64x64", 1000, 1_281_167, 50_000, _built("imagenet_resized/64x64")
    ),
    "imagenet2012": Facts(
        "imagenet2012",
        1000,
        1_281_167,
        50_000,
        "prepare it from the two tar files with `python -m bnjax.data.imagenet prepare --tars TARS "
        "--data-dir DIR`, then name DIR with TFDS_DATA_DIR, data_dir or --data-dir",
    ),
}
"""Facts of each data set that has a name of its own."""
DATA_SETS = (*FACTS, "folder:PATH", "tfds:PATH")
"""The names that `open_data` knows."""


def open_data(name: str, *, data_dir: str | Path | None = None) -> DataSet[Split]:
    """Opens a data set of images.

    Args:
        name: one of `DATA_SETS`. `folder:PATH` is an image folder (`bnjax.data.folders`);
            `tfds:PATH` the folder of a version of any data set of images with labels that
            tensorflow-datasets prepared in array_record format, `.../NAME/VERSION`.
        data_dir: local folder under which tensorflow-datasets keeps prepared data; by default the
            environment's TFDS_DATA_DIR, else ~/tensorflow_datasets. `mnist5k` and paths need none.

    Returns:
        The data set, in the order in which it is stored; of several prepared versions the newest.

    Raises:
        ValueError: the name is unknown, or a folder is a URL.
        DataError: the data is missing and cannot be prepared, is half-prepared or damaged, or is
            not what it is known to be; says what to do.

    Example:
        >>> digits = open_data("mnist5k")
        >>> digits.train[0].image.shape, digits.train[0].label
        ((28, 28, 1), 5)
        >>> open_data("folder:photos")
        Traceback (most recent call last):
            ...
        bnjax.data.data_set.DataError: ...
    """
    kind, _, path = name.partition(":")
    if kind == "folder" and path:
        return open_folder(path)
    if kind == "tfds" and path:
        folder = local_path("PATH of tfds:PATH", path).resolve()
        remedy = "name the folder of a version, .../NAME/1.0.0, and copy all of it"
        name = f"tfds:{folder.parent.name}/{folder.name}"
        return open_array_records(folder, name=name, remedy=remedy)
    check_choice("name", name, DATA_SETS)
    facts = FACTS[name]
    if facts.folder is None:
        return mnist5k.load()
    folder = _find(name, facts, facts.folder, local_root(data_dir))
    data = open_array_records(folder, name=name, remedy=facts.remedy)
    _check(data, facts, folder)
    return _with_digest_of_pixels(data, facts.remedy) if facts.covers == "pixels" else data


def _find(name: str, facts: Facts, below: str, root: Path) -> Path:
    """Returns the folder of the newest version; prepares a missing one first where it can."""
    if (folder := _newest_version(root / below)) is None and facts.prepare is not None:
        facts.prepare(name, root, {"train": facts.train, "test": facts.test})
        folder = _newest_version(root / below)
    if folder is None:
        raise DataError(f"{name} is not in {root / below}: {facts.remedy}.")
    return folder


def _newest_version(folder: Path) -> Path | None:
    versions = [
        path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.is_dir() and all(part.isdigit() for part in path.name.split("."))
    ]
    return max(versions, key=lambda path: tuple(map(int, path.name.split("."))), default=None)


def _check(data: DataSet[Split], facts: Facts, folder: Path) -> None:
    got = (data.classes, len(data.train), len(data.test))
    if got != (facts.classes, facts.train, facts.test):
        raise DataError(
            f"{folder}: {data.name} has {facts.classes:,} classes, {facts.train:,} images to learn "
            f"from and {facts.test:,} to measure on; got {got[0]:,}, {got[1]:,} and {got[2]:,}. "
            f"Prepare it anew, or call it 'tfds:{folder}'."
        )


def _with_digest_of_pixels(data: DataSet[Split], remedy: str) -> DataSet[ArraySplit]:
    try:
        decoded = in_memory(data)
    except DataError as error:
        raise DataError(f"{str(error).removesuffix('.')}; {remedy}.") from error
    return decoded._replace(sha256=digest(decoded.train, decoded.test))
