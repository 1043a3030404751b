"""A name in, a data set of encoded images out, opened and checked before any compute.

data = open_images("folder:photos")
data.train[0].image     # the bytes of a JPEG

Nothing is downloaded here, and TensorFlow is never imported.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bnjax.data import mnist5k
from bnjax.data.array_records import open_array_records
from bnjax.data.dataset import DataError, Split
from bnjax.data.examples import Example, Examples, Image, ImageData, split_shards
from bnjax.data.folders import open_folder
from bnjax.data.tfds import local_root
from bnjax.paths import local_path

__all__ = ["IMAGE_DATA", "Example", "Examples", "Image", "ImageData", "open_images"]


class Facts(NamedTuple):
    """What a data set is known to be.

    Attributes:
        folder: where tensorflow-datasets keeps its versions, below the root.
        classes: how many.
        train: images to learn from.
        validation: images to measure on.
        remedy: how to come by it.
    """

    folder: str
    classes: int
    train: int
    validation: int
    remedy: str


def _built(name: str) -> str:
    return (
        f"where TensorFlow and a network are at hand, prepare it with `tfds build {name} "
        f"--file_format=array_record --data_dir=DIR` (in an environment of its own), then name DIR "
        f"with TFDS_DATA_DIR or data_dir; the folder is then DIR/{name}/VERSION"
    )


FACTS = {
    "cifar10": Facts("cifar10", 10, 50_000, 10_000, _built("cifar10")),
    "cifar10_jpeg": Facts(
        "cifar10_jpeg",
        10,
        50_000,
        10_000,
        "it is CIFAR-10 encoded as JPEG, prepared by hand: name the folder that holds "
        "cifar10_jpeg/VERSION with TFDS_DATA_DIR or data_dir, or use 'cifar10'",
    ),
    "imagenette": Facts(
        "imagenette/full-size-v2",
        10,
        9_469,
        3_925,
        _built("imagenette/full-size-v2"),
    ),
    "imagenet_resized/64x64": Facts(
        "imagenet_resized/64x64",
        1000,
        1_281_167,
        50_000,
        _built("imagenet_resized/64x64"),
    ),
    "imagenet2012": Facts(
        "imagenet2012",
        1000,
        1_281_167,
        50_000,
        "prepare it from the two tar files with `python -m bnjax.data.imagenet prepare --tars TARS "
        "--data-dir DIR`, then name DIR with TFDS_DATA_DIR or data_dir",
    ),
}
IMAGE_DATA = ("mnist5k", *FACTS, "folder:PATH", "tfds:PATH")
"""The names that `open_images` knows."""


@dataclass(frozen=True, repr=False)
class ArrayExamples:
    """Images in memory.

    Attributes:
        split: images and labels.
        name: of the split, for messages.
    """

    split: Split
    name: str

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Equal parts."""
        return split_shards((len(self.split.labels),))

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: int) -> Example:
        label = int(self.split.labels[index])
        return Example(self.split.images[index], label, f"{self.name} image {index}")


def open_images(name: str, *, data_dir: str | Path | None = None) -> ImageData:
    """Opens a data set of images: encoded ones, but for `mnist5k`.

    Args:
        name: one of `IMAGE_DATA`. `folder:PATH` is an image folder (`bnjax.data.folders`);
            `tfds:PATH` the folder of a version of any data set of images with labels that
            tensorflow-datasets prepared in array_record format, `.../NAME/VERSION`.
        data_dir: local folder under which tensorflow-datasets keeps prepared data; by default the
            environment's TFDS_DATA_DIR, else ~/tensorflow_datasets. `mnist5k` and paths need none.

    Returns:
        The data set; of several prepared versions the newest.

    Raises:
        ValueError: the name is unknown, or a folder is a URL.
        DataError: the data is missing, half-prepared, or not what it is known to be; says what to
            do.
    """
    root = local_root(data_dir)
    kind, _, path = name.partition(":")
    if kind in ("folder", "tfds") and path:
        if kind == "folder":
            return open_folder(path)
        folder = local_path("PATH of tfds:PATH", path).resolve()
        remedy = "name the folder of a version, .../NAME/1.0.0, and copy all of it"
        name = f"tfds:{folder.parent.name}/{folder.name}"
        return open_array_records(folder, name=name, remedy=remedy)
    if name == "mnist5k":
        digits = mnist5k.load()
        train, test = (ArrayExamples(digits.train, "train"), ArrayExamples(digits.test, "test"))
        return ImageData(name, digits.num_classes, train, test, digits.sha256)
    if name not in FACTS:
        raise ValueError(f"name must be one of {', '.join(IMAGE_DATA)}; got {name!r}")
    facts = FACTS[name]
    folder = _newest_version(root / facts.folder, name, facts)
    data = open_array_records(folder, name=name, remedy=facts.remedy)
    got = (data.classes, len(data.train), len(data.validation))
    if got != facts[1:4]:
        raise DataError(
            f"{folder}: {name} has {facts.classes:,} classes, {facts.train:,} images to learn from "
            f"and {facts.validation:,} to measure on; got {got[0]:,}, {got[1]:,} and {got[2]:,}. "
            f"Prepare it anew, or call it 'tfds:{folder}'"
        )
    return data


def _newest_version(folder: Path, name: str, facts: Facts) -> Path:
    versions = [
        path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.is_dir() and all(part.isdigit() for part in path.name.split("."))
    ]
    if not versions:
        raise DataError(f"{name} is not in {folder}: {facts.remedy}")
    return max(versions, key=lambda path: tuple(map(int, path.name.split("."))))
