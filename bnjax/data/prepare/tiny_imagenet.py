"""Checks the zip file of Tiny ImageNet and prepares it, without TensorFlow.

python -m bnjax.data.tiny_imagenet prepare --zip tiny-imagenet-200.zip --data-dir DIR    # a minute
python -m bnjax.data.tiny_imagenet prepare --folder tiny-imagenet-200 --data-dir DIR

Tiny ImageNet, of Stanford's course CS231n, is 110,000 photographs of 200 classes of ImageNet,
64 x 64 pixels. TFDS_DATA_DIR is then to name DIR; the data set is `tiny_imagenet`. Files stay as
published: some are grayscale JPEGs, some occur more than once, and the command says how many.
A label is the place of the WordNet id in wnids.txt. The 10,000 images of the folder `test` have no
labels and are left out.
"""

import hashlib
import io
import sys
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from bnjax.data.data_set import DataError
from bnjax.data.prepare.builder import build, new_builder
from bnjax.data.prepare.checksums import check_md5
from bnjax.extras import extra
from bnjax.paths import local_path, writable_folder

with extra("data"):
    import tyro

NAME = "tiny_imagenet"
VERSION = "1.0.0"
_ROOT = "tiny-imagenet-200/"
_SOURCE = "get tiny-imagenet-200.zip of Stanford's course CS231n again"


class Release(NamedTuple):
    """Known facts of the published zip file.

    Attributes:
        size: bytes of the zip file.
        md5: hex digest of the zip file.
        classes: number of classes.
        train: images of each class to learn from.
        validation: images of each class to measure on.
        side: height and width of each image, pixels.
    """

    size: int
    md5: str
    classes: int
    train: int
    validation: int
    side: int


PUBLISHED = Release(248_100_043, "90528d7ca1a48142e341f4ef8d21d0de", 200, 500, 50, 64)
"""Facts of tiny-imagenet-200.zip. Its users hand on the MD5; Stanford gives none."""


class Files(NamedTuple):
    """The files of the release, in a folder or in the zip file.

    Attributes:
        names: paths below the release's own folder, sorted.
        read: returns the bytes of one.
    """

    names: tuple[str, ...]
    read: Callable[[str], bytes]


class Photo(NamedTuple):
    """One file of the release.

    Attributes:
        split: "train" or "validation".
        file: its path.
        label: its class.
        sha256: digest of its bytes.
        gray: whether it has one channel.
    """

    split: str
    file: str
    label: int
    sha256: bytes
    gray: bool


def check_zip(path: Path, release: Release = PUBLISHED) -> None:
    """Checks the size of the zip file, at once, then every byte, with progress.

    Raises:
        DataError: the file is missing or another.
    """
    if not path.is_file():
        raise DataError(f"{path}: missing; name the file tiny-imagenet-200.zip.")
    if (size := path.stat().st_size) != release.size:
        raise DataError(
            f"{path}: has {size:,} bytes and must have {release.size:,}"
            + (": the download broke off" if size < release.size else "")
            + f"; {_SOURCE}."
        )
    check_md5({path: release.md5}, _SOURCE)


@contextmanager
def zip_files(path: Path) -> Iterator[Files]:
    """Opens the zip file's files, without unpacking it."""
    with zipfile.ZipFile(path) as archive:
        names = (name for name in archive.namelist() if name.startswith(_ROOT) and name[-1] != "/")
        sorted_names = tuple(sorted(name.removeprefix(_ROOT) for name in names))
        yield Files(sorted_names, lambda name: archive.read(_ROOT + name))


def folder_files(root: Path) -> Files:
    """Opens the files of the unpacked folder."""
    paths = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return Files(tuple(sorted(paths)), lambda name: (root / name).read_bytes())


def list_photos(files: Files, release: Release = PUBLISHED) -> tuple[list[str], list[Photo]]:
    """Reads all labelled images and checks that they are those of the release, by their numbers.

    Returns:
        The WordNet ids of the classes, by label, and the photos in the order of their paths.

    Raises:
        DataError: a file is missing, more or other than expected.
    """
    wnids = _text(files, "wnids.txt").split()
    if len(set(wnids)) != release.classes or len(wnids) != release.classes:
        raise DataError(f"wnids.txt: expected {release.classes} ids, each once, got {len(wnids)}.")
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    lines = _text(files, "val/val_annotations.txt").splitlines()
    wnid_of = {name: wnid for name, wnid, *_ in (line.split("\t") for line in lines)}
    photos = []
    for file in files.names:
        folder, name = file.rpartition("/")[::2]
        parts = folder.split("/")
        if parts[0] == "train" and parts[2:] == ["images"]:
            split, wnid = "train", parts[1]
        elif folder == "val/images":
            split, wnid = "validation", wnid_of.get(name, "none in val_annotations.txt")
        else:
            continue
        if wnid not in label_of:
            raise DataError(f"{file}: its class is {wnid}, which wnids.txt does not have.")
        photos.append(_photo(files, file, split, label_of[wnid], release))
    counts = Counter((photo.split, photo.label) for photo in photos)
    for split, expected in (("train", release.train), ("validation", release.validation)):
        for wnid, label in label_of.items():
            if (got := counts[split, label]) != expected:
                raise DataError(f"{wnid}: expected {expected} {split} images, got {got}.")
    return wnids, photos


def prepare(files: Files, data_dir: Path, release: Release = PUBLISHED) -> tuple[Path, str]:
    """Writes the prepared data set.

    The folder appears under its name when all of it is written, and not before.

    Args:
        files: of the release.
        data_dir: the root of prepared data sets.
        release: what the files must be.

    Returns:
        The prepared folder, and what is to be said of its images.

    Raises:
        DataError: the folder is there already, or the files are not those of the release.
        ValueError: if `data_dir` is a URL, or cannot be written.
    """
    data_dir = writable_folder("data_dir", data_dir)
    folder = data_dir / NAME / VERSION
    if folder.exists():
        raise DataError(f"{folder}: is there already; delete it, or name another data_dir.")
    wnids, photos = list_photos(files, release)
    splits = {
        split: _examples(files, [photo for photo in photos if photo.split == split])
        for split in ("train", "validation")
    }
    build(new_builder(NAME, VERSION, data_dir, labels=wnids, splits=splits))
    return folder, describe(photos)


def describe(photos: list[Photo]) -> str:
    """Says how many images are grayscale, and how many occur more than once."""
    gray = Counter(photo.split for photo in photos if photo.gray)
    same = defaultdict(list)
    for photo in photos:
        same[photo.sha256].append(photo)
    repeated = [group for group in same.values() if len(group) > 1]
    across = sum(len({photo.split for photo in group}) > 1 for group in repeated)
    classes = sum(len({photo.label for photo in group}) > 1 for group in repeated)
    return (
        f"{gray['train']:,} training and {gray['validation']:,} validation images are grayscale. "
        f"{len(repeated):,} images occur more than once, byte for byte: {across:,} of them in both "
        f"splits, {classes:,} under several classes. All are kept, as published."
    )


def _text(files: Files, name: str) -> str:
    if name not in files.names:
        raise DataError(f"{name}: missing; expected the layout of tiny-imagenet-200.zip.")
    return files.read(name).decode()


def _photo(files: Files, file: str, split: str, label: int, release: Release) -> Photo:
    with extra("data"):
        from PIL import Image

    data = files.read(file)
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            size, gray = image.size, image.mode == "L"
    except OSError as error:
        raise DataError(f"{file}: not a JPEG file ({error}); {_SOURCE}.") from error
    if size != (release.side, release.side):
        raise DataError(
            f"{file}: expected {release.side} x {release.side} pixels, got {size[0]} x {size[1]}."
        )
    return Photo(split, file, label, hashlib.sha256(data).digest(), gray)


def _examples(files: Files, photos: list[Photo]) -> Iterator[tuple[str, dict[str, Any]]]:
    for photo in photos:
        name = photo.file.rpartition("/")[2]
        image = files.read(photo.file)
        yield name, {"file_name": name, "image": image, "label": photo.label}


@dataclass(frozen=True)
class Check:
    """Checks size and MD5 of the zip file."""

    zip: Path
    """the file tiny-imagenet-200.zip"""


@dataclass(frozen=True)
class Prepare:
    """Checks the zip file, or counts a folder's files, then writes DATA_DIR/tiny_imagenet."""

    data_dir: Path
    """folder of prepared data sets, to be named by TFDS_DATA_DIR afterwards"""
    zip: Path | None = None
    """the file tiny-imagenet-200.zip; this or --folder"""
    folder: Path | None = None
    """the unpacked folder tiny-imagenet-200, with wnids.txt, train and val in it"""


def main(argv: list[str] | None = None) -> None:
    """Reads the command line, checks and prepares."""
    command = tyro.cli(
        Annotated[Check, tyro.conf.subcommand("check")]
        | Annotated[Prepare, tyro.conf.subcommand("prepare")],
        args=argv,
        prog="python -m bnjax.data.tiny_imagenet",
        description="Tiny ImageNet: checks the published zip file, and prepares it for "
        "tensorflow-datasets, without TensorFlow.",
    )
    try:
        if isinstance(command, Check):
            check_zip(local_path("--zip", command.zip))
            print("The file is the published one.")
        else:
            folder, said = _prepare(command)
            print(f"Prepared {folder}\n{said}")
    except (DataError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; nothing is kept")


def _prepare(command: Prepare) -> tuple[Path, str]:
    data_dir = local_path("--data-dir", command.data_dir)
    if (command.zip is None) == (command.folder is None):
        raise ValueError("give one of --zip and --folder.")
    if command.folder is not None:
        return prepare(folder_files(local_path("--folder", command.folder)), data_dir)
    path = local_path("--zip", command.zip or "")
    check_zip(path)
    with zip_files(path) as files:
        return prepare(files, data_dir)
