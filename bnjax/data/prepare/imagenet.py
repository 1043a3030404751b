"""Checks the two tar files of ImageNet 2012 and prepares them, without TensorFlow.

python -m bnjax.data.imagenet check --tars TARS                  # minutes: 155 GB are read once
python -m bnjax.data.imagenet prepare --tars TARS --data-dir DIR    # hours

TARS holds ILSVRC2012_img_train.tar (one tar file a class, with JPEGs) and ILSVRC2012_img_val.tar
(50,000 JPEGs), from https://image-net.org/download-images, which asks to register. TFDS_DATA_DIR is
then to name DIR. The result is an ordinary `imagenet2012/5.1.0` of tensorflow-datasets:
its own builder writes it, with its keys, hence its order, its labels (classes are numbered by their
sorted WordNet ids) and its file names. 23 images are re-encoded as there (22 CMYK, 1 PNG), but by
Pillow: their bytes differ from TensorFlow's.
"""

import io
import shutil
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from bnjax.data.data_set import DataError
from bnjax.data.prepare.builder import build, fed_builder
from bnjax.data.prepare.checksums import check_md5
from bnjax.extras import extra
from bnjax.paths import local_path, writable_folder

with extra("data"):
    import tyro

_SOURCE = "download it again from https://image-net.org/download-images"


class Tar(NamedTuple):
    """A tar file and what it must be.

    Attributes:
        name: of the file.
        size: in bytes.
        md5: hex digest of its bytes.
        images: JPEGs in it.
    """

    name: str
    size: int
    md5: str
    images: int


class Release(NamedTuple):
    """Known facts of the two files of a release.

    Attributes:
        train: a tar file of tar files.
        validation: a tar file of images.
        wnids: WordNet ids of the classes, by label.
        validation_wnids: the class of each image of `validation`, by sorted file name.
    """

    train: Tar
    validation: Tar
    wnids: tuple[str, ...]
    validation_wnids: tuple[str, ...]


def ilsvrc2012() -> Release:
    """Returns the facts of 2012's release; its labels come with tensorflow-datasets."""
    with extra("data"):
        import tensorflow_datasets as tfds

    folder = Path(tfds.core.tfds_path("datasets/imagenet2012"))
    return Release(
        Tar("ILSVRC2012_img_train.tar", 147_897_477_120, MD5_TRAIN, 1_281_167),
        Tar("ILSVRC2012_img_val.tar", 6_744_924_160, MD5_VALIDATION, 50_000),
        tuple((folder / "labels.txt").read_text().split()),
        tuple((folder / "validation_labels.txt").read_text().split()),
    )


MD5_TRAIN = "1d675b47d978889d74fa0da5fadfb00e"
MD5_VALIDATION = "29b22e2961454d5413ddabcf34fc5622"


def check_tars(tars: Path, release: Release) -> None:
    """Checks names and sizes, at once, then every byte, with progress.

    Args:
        tars: the folder of the tar files.
        release: what they must be.

    Raises:
        DataError: a file is missing or another; says all that is wrong with names and sizes.
    """
    files = (release.train, release.validation)
    wrong = []
    for tar in files:
        path = tars / tar.name
        if not path.is_file():
            wrong.append(f"{tar.name} is missing")
        elif path.stat().st_size != tar.size:
            wrong.append(
                f"{tar.name} has {path.stat().st_size:,} bytes and must have {tar.size:,}"
                + (": the download broke off" if path.stat().st_size < tar.size else "")
            )
    if wrong:
        there = sorted(path.name for path in tars.iterdir()) if tars.is_dir() else []
        raise DataError(
            f"tars {tars}: {'; '.join(wrong)}. "
            f"The folder has: {', '.join(there[:8]) or 'nothing'}. "
            f"The names must be these, and the files as downloaded, not unpacked: {_SOURCE}."
        )
    check_md5({tars / tar.name: tar.md5 for tar in files}, _SOURCE)


def prepare(tars: Path, data_dir: Path, release: Release) -> Path:
    """Checks the tar files and writes the prepared data set.

    Takes as much room again as the tar files for the data, and once more while it is shuffled. The
    folder appears under its name when all of it is written, and not before.

    Args:
        tars: the folder of the tar files.
        data_dir: the root of prepared data sets.
        release: what the files must be.

    Returns:
        The prepared folder, `imagenet2012/VERSION` below the root.

    Raises:
        DataError: as `check_tars`; or the folder is there already, the disk too small, or the
            content of a tar file not what it must be.
        ValueError: if `data_dir` is a URL, or cannot be written.
    """
    data_dir = writable_folder("data_dir", data_dir)
    examples = {
        "train": _train_examples(tars / release.train.name, release),
        "validation": _validation_examples(tars / release.validation.name, release),
    }
    builder = fed_builder("imagenet2012", data_dir, examples)
    folder = Path(builder.data_dir)
    if folder.exists():
        raise DataError(f"{folder}: is there already; delete it, or name another data_dir.")
    needed = 2 * (release.train.size + release.validation.size)
    if (free := shutil.disk_usage(data_dir).free) < needed:
        raise DataError(
            f"{data_dir}: has {free:,} bytes free, and preparing takes {needed:,}: half of them "
            "only while it lasts."
        )
    check_tars(tars, release)
    build(builder)
    return folder


def _train_examples(path: Path, release: Release) -> Iterator[tuple[str, dict[str, Any]]]:
    with extra("data"):
        from tensorflow_datasets.datasets.imagenet2012 import (
            imagenet2012_dataset_builder as genuine,
        )

    fixed = {*genuine.CMYK_IMAGES, *genuine.PNG_IMAGES}
    labels = {wnid: label for label, wnid in enumerate(release.wnids)}
    count = 0
    for name, data in _members(path):
        wnid = name.removesuffix(".tar")
        if wnid not in labels:
            raise DataError(f"{path}: {name} is not the tar file of a class.")
        for file, image in _members(io.BytesIO(data)):
            count += 1
            encoded = _as_rgb_jpeg(image) if file in fixed else image
            yield file, {"file_name": file, "image": encoded, "label": labels[wnid]}
    _check_count(path, count, release.train)


def _validation_examples(path: Path, release: Release) -> Iterator[tuple[str, dict[str, Any]]]:
    labels = {wnid: label for label, wnid in enumerate(release.wnids)}
    with tarfile.open(path, "r:") as tar:
        names = sorted(member.name for member in tar.getmembers() if member.isfile())
    _check_count(path, len(names), release.validation)
    wnids = dict(zip(names, release.validation_wnids, strict=True))
    for file, image in _members(path):
        yield file, {"file_name": file, "image": image, "label": labels[wnids[file]]}


def _members(archive: Path | io.BytesIO) -> Iterator[tuple[str, bytes]]:
    """Yields names and bytes of the files of a tar file, one at a time."""
    opened: Any = {"name": archive} if isinstance(archive, Path) else {"fileobj": archive}
    with tarfile.open(mode="r|", **opened) as tar:
        for member in tar:
            if file := tar.extractfile(member):
                yield member.name, file.read()


def _check_count(path: Path, count: int, tar: Tar) -> None:
    if count != tar.images:
        raise DataError(f"{path}: expected {tar.images:,} images, got {count:,}.")


def _as_rgb_jpeg(data: bytes) -> bytes:
    with extra("data"):
        from PIL import Image

    file = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.convert("RGB").save(file, "JPEG", quality=100)
    return file.getvalue()


@dataclass(frozen=True)
class Check:
    """Checks names, sizes and MD5 of the two tar files; reads 155 GB."""

    tars: Path
    """folder that holds ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar"""


@dataclass(frozen=True)
class Prepare:
    """Checks the two tar files, then writes DATA_DIR/imagenet2012; takes hours and 310 GB."""

    tars: Path
    """folder that holds ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar"""
    data_dir: Path
    """folder of prepared data sets, what TFDS_DATA_DIR names afterwards"""


def main(argv: list[str] | None = None) -> None:
    """Reads the command line, checks and prepares."""
    command = tyro.cli(
        Annotated[Check, tyro.conf.subcommand("check")]
        | Annotated[Prepare, tyro.conf.subcommand("prepare")],
        args=argv,
        prog="python -m bnjax.data.imagenet",
        description="ImageNet 2012: checks the two tar files that image-net.org gives to whoever "
        "registers, and prepares them as tensorflow-datasets does, without TensorFlow.",
    )
    try:
        tars = local_path("--tars", command.tars)
        if isinstance(command, Check):
            check_tars(tars, ilsvrc2012())
            print("Both files are the ones of 2012.")
        else:
            data_dir = local_path("--data-dir", command.data_dir)
            print(f"Prepared {prepare(tars, data_dir, ilsvrc2012())}")
    except (DataError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; nothing is kept")
