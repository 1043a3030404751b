"""Fetches and prepares MNIST and data sets like it, without TensorFlow.

Three steps of tensorflow-datasets 4.9.10 import TensorFlow without need. Each is done here by other
means, and everything else (layout, features, order, writing) is its own:

- `DownloadManager` unpacks gz files through `tf.io.gfile`: `gzip` does.
- `MNIST._generate_examples` opens the IDX files through `tf.io.gfile`: `numpy.frombuffer` does.
- The `Image` feature encodes arrays with `tf.image.encode_png`: Pillow encodes, and the feature
  takes encoded bytes as they are.

The keys are those of the genuine builder, hence the order too: the folder is an ordinary one, and
gives the same `DataSet.sha256` as one that was prepared with TensorFlow.
"""

import gzip
import io
import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from bnjax.data.arrays import ArraySplit
from bnjax.data.data_set import DataError
from bnjax.data.prepare.builder import build, fed_builder
from bnjax.data.prepare.fetch import Remote, fetch_file
from bnjax.extras import extra

IMAGE_SHAPE = (28, 28, 1)
NUM_CLASSES = 10
_UNSIGNED_BYTE = 8


def prepare_mnist(name: str, root: Path, counts: Mapping[str, int]) -> None:
    """Fetches the four files of an MNIST-like set and writes its folder.

    Args:
        name: a data set of tensorflow-datasets with the files and features of MNIST.
        root: the root of prepared data sets; downloads are kept in `downloads/NAME` below it.
        counts: examples that each split must have.

    Raises:
        DataError: it cannot be fetched or written, or the files are not the data set. Not if
            another process has prepared it meanwhile.
    """
    with extra("data"):
        import tensorflow_datasets as tfds

    folder = root / name / str(tfds.builder_cls(name).VERSION)
    try:
        downloads = root / "downloads" / name
        for filename, remote in remote_files(name).items():
            fetch_file(remote, downloads / filename)
        splits = read_idx_files(downloads)
        for key, split in splits.items():
            _check(split, counts[key], f"{downloads}, {key}")
        write_prepared(name, splits, root)
    except (DataError, OSError) as error:
        if (folder / "dataset_info.json").exists():
            return  # another process prepared it meanwhile
        raise DataError(
            f"{name} is not in {folder} and cannot be prepared there: {error}\n"
            "Two ways on:\n"
            f"- where there is a network, open_data({name!r}, data_dir=DIR) prepares DIR; copy "
            "it, and name the copy with TFDS_DATA_DIR, data_dir or --data-dir;\n"
            "- open 'mnist5k', 5,000 genuine digits that come with bnjax."
        ) from error


def _check(split: ArraySplit, count: int, where: str) -> None:
    """Refuses a split with another shape, count or label than MNIST's."""
    for field, array, expected in (
        ("images", split.images, ("uint8", (count, *IMAGE_SHAPE))),
        ("labels", split.labels, ("int32", (count,))),
    ):
        got = (str(array.dtype), array.shape)
        if got != expected:
            raise DataError(
                f"{where}: expected {field} {expected[0]} {list(expected[1])}, "
                f"got {got[0]} {list(got[1])}."
            )
    if split.labels.min() < 0 or split.labels.max() >= NUM_CLASSES:
        raise DataError(
            f"{where}: labels must be in 0 .. {NUM_CLASSES - 1}, "
            f"got {split.labels.min()} .. {split.labels.max()}."
        )


def remote_files(name: str) -> dict[str, Remote]:
    """Returns the files that tensorflow-datasets names for a data set, by file name."""
    with extra("data"):
        import tensorflow_datasets as tfds

    return {
        info.filename: Remote(url, int(info.size), info.checksum)
        for url, info in tfds.builder_cls(name).url_infos.items()
    }


def read_idx_files(folder: Path) -> dict[str, ArraySplit]:
    """Reads the four files of an MNIST-like set.

    Args:
        folder: holds the gz files under the names that MNIST gave them.

    Returns:
        Splits by name, in the order of the files.

    Raises:
        DataError: a file is not a gzipped IDX file of unsigned bytes, or a split has not as many
            labels as images.
    """
    splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")[..., None]
        labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz").astype(np.int32)
        try:
            splits[split] = ArraySplit(images, labels, split)
        except ValueError as error:
            raise DataError(str(error)) from error
    return splits


def read_idx(path: Path) -> np.ndarray:
    """Reads a gzipped IDX file.

    IDX is two zero bytes, the code of the type, the number of dimensions, each dimension as a
    big-endian 32-bit integer, then the values in C order.

    Args:
        path: the file.

    Returns:
        uint8, in the shape that the file states.

    Raises:
        DataError: it is not a gzipped IDX file of unsigned bytes.
    """
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a whole gz file: {error}.") from error
    ndim = data[3] if len(data) > 3 and data[:3] == bytes((0, 0, _UNSIGNED_BYTE)) else 0
    start = 4 + 4 * ndim
    values = max(0, len(data) - start)
    shape = np.frombuffer(data[4:start], ">u4").tolist() if len(data) >= start else []
    if not shape or values != math.prod(shape):
        raise DataError(
            f"{path}: not an IDX file of unsigned bytes: it begins with {data[:4].hex()}, states "
            f"the shape {shape} and has {values} values."
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def write_prepared(name: str, splits: Mapping[str, ArraySplit], data_dir: Path) -> None:
    """Writes a data set as tensorflow-datasets would, in array_record format.

    The folder appears under its name when all of it is written, and not before.

    Args:
        name: a data set of tensorflow-datasets with the features of MNIST.
        splits: images uint8 [n, 28, 28, 1] and labels int32 [n] by split, in the files' order.
        data_dir: the root of prepared data sets.

    Raises:
        OSError: the folder cannot be written, or stands there already.
    """
    examples = {key: _examples(split) for key, split in splits.items()}
    build(fed_builder(name, data_dir, examples))


def _examples(split: ArraySplit) -> Iterator[tuple[int, dict[str, bytes | int]]]:
    for index, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
        yield index, {"image": _encode_png(image), "label": int(label)}


def _encode_png(image: np.ndarray) -> bytes:
    with extra("data"):
        from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image[..., 0]).save(file, "PNG")
    return file.getvalue()
