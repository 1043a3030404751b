"""MNIST-like files into the folder that tensorflow-datasets reads, without TensorFlow.

Three steps of tensorflow-datasets 4.9.10 import TensorFlow although nothing in them asks for it.
Each is done here by other means, and everything else (layout, features, order, writing) is its own:

- `DownloadManager` unpacks gz files through `tf.io.gfile`: `gzip` does.
- `MNIST._generate_examples` opens the IDX files through `tf.io.gfile`: `numpy.frombuffer` does.
- The `Image` feature encodes arrays with `tf.image.encode_png`: Pillow encodes, and the feature
  takes encoded bytes as they are.

The keys are those of the genuine builder, hence the order too: the folder is an ordinary one, and
gives the same `Dataset.sha256` as one that was prepared with TensorFlow.
"""

import gzip
import io
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from bnjax.data.dataset import DataError, Split
from bnjax.data.fetch import Remote
from bnjax.data.tfds import build, fed_builder
from bnjax.extras import extra

_UNSIGNED_BYTE = 8


def remote_files(name: str) -> dict[str, Remote]:
    """The files that tensorflow-datasets names for a data set, by file name."""
    with extra("data"):
        import tensorflow_datasets as tfds

    return {
        info.filename: Remote(url, int(info.size), info.checksum)
        for url, info in tfds.builder_cls(name).url_infos.items()
    }


def read_idx_files(folder: Path) -> dict[str, Split]:
    """Reads the four files of an MNIST-like set.

    Args:
        folder: holds the gz files under the names that MNIST gave them.

    Returns:
        Splits by name, in the order of the files.

    Raises:
        DataError: a file is not a gzipped IDX file of unsigned bytes.
    """
    return {
        split: Split(
            read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")[..., None],
            read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz").astype(np.int32),
        )
        for split, prefix in (("train", "train"), ("test", "t10k"))
    }


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
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: not a whole gz file: {error}") from error
    ndim = data[3] if data[:3] == bytes((0, 0, _UNSIGNED_BYTE)) else 0
    start = 4 + 4 * ndim
    shape = np.frombuffer(data[4:start], ">u4").tolist() if len(data) >= start else []
    if not shape or len(data) - start != math.prod(shape):
        raise DataError(
            f"{path}: not an IDX file of unsigned bytes: it begins with {data[:4].hex()}, states "
            f"the shape {shape} and has {len(data) - start} values"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def write_prepared(name: str, splits: Mapping[str, Split], data_dir: Path) -> None:
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


def _examples(split: Split) -> Iterator[tuple[int, dict[str, bytes | int]]]:
    for index, (image, label) in enumerate(zip(*split, strict=True)):
        yield index, {"image": _encode_png(image), "label": int(label)}


def _encode_png(image: np.ndarray) -> bytes:
    with extra("data"):
        from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image[..., 0]).save(file, "PNG")
    return file.getvalue()
