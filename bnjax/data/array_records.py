"""Folders that tensorflow-datasets prepared in array_record format, read without TensorFlow.

A folder (`.../NAME/VERSION`) says in dataset_info.json how many records each of its files holds;
each file is opened and its count compared, which takes 0.1 ms a file, before anything else happens.
Images stay encoded.
"""

import hashlib
import itertools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bnjax.data.data_set import DataError, DataSet, Example, Split, check_label, split_shards
from bnjax.data.tfds import check_features
from bnjax.extras import extra

EDGE = 1 << 16
"""Bytes of each file's beginning and end that the digest covers."""


@dataclass(frozen=True, repr=False)
class RecordSplit:
    """The records of one split.

    Attributes:
        source: data source of tensorflow-datasets that leaves images encoded and files open.
        split: name of the split.
        files: the files of records.
        file_sizes: records in each.
        classes: labels are below it.
    """

    source: Any
    split: str
    files: tuple[Path, ...]
    file_sizes: tuple[int, ...]
    classes: int

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Sizes of the files, or of equal parts of large ones."""
        return split_shards(self.file_sizes)

    @cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(self.file_sizes))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Reads many at once, several times as fast as one by one."""
        names = list(map(self._name, indices))
        try:
            records = self.source.__getitems__(indices)
        except Exception as error:  # array_record and protobuf each raise their own
            if len(indices) > 1:
                return [self[index] for index in indices]  # the error names the damaged one
            raise DataError(f"{names[0]}: cannot be read ({error}).") from error
        for i, record in enumerate(records):
            if "file_name" in record:
                names[i] += f", {record['file_name'].decode()}"
        examples = [
            Example(record["image"], int(record["label"]), name)
            for record, name in zip(records, names, strict=True)
        ]
        for example in examples:
            check_label(example, self.classes)
        return examples

    def _name(self, index: int) -> str:
        file = bisect_right(self._ends, index)
        place = index - (self._ends[file - 1] if file else 0)
        return f"{self.files[file]}, {self.split} record {index} (number {place} of the file)"


def open_array_records(folder: Path, *, name: str, remedy: str) -> DataSet[Split]:
    """Opens a prepared folder after checking that all of it is there.

    Args:
        folder: that of the version, with dataset_info.json in it.
        name: the data set's name.
        remedy: ends the message of each error.

    Returns:
        The data set; its `test` is the split `validation`, or `test` where there is none. `sha256`
        covers the splits' file sizes in records and bytes, the features, and the first and last
        `EDGE` bytes of each file, where array_record keeps its index: not the bytes between, whose
        checksums array_record itself verifies when they are read. Data prepared twice may
        differ.

    Raises:
        DataError: a file is missing, incomplete or of another kind, or names code; or the first
            image of a split has no label, as those of many a challenge. Of others, when they are
            read.
    """
    with extra("data"):
        import tensorflow_datasets as tfds

    for needed in ("dataset_info.json", "features.json"):
        if not (folder / needed).is_file():
            raise DataError(f"{folder}: not prepared, or half: it has no {needed}; {remedy}.")
    try:
        check_features(folder)
        info = tfds.builder_from_directory(str(folder)).info
        kind, features, found = info.file_format, info.features, sorted(info.splits)
    except DataError as error:
        raise DataError(f"{error}; {remedy}.") from error
    except Exception as error:  # json, protobuf and tensorflow-datasets each raise their own
        raise DataError(f"{folder}: cannot be read ({error}); {remedy}.") from error
    if kind is not tfds.core.FileFormat.ARRAY_RECORD:
        raise DataError(
            f"{folder}: prepared as {kind.value if kind else 'nothing known'}, which takes "
            f"TensorFlow to read: prepare it with file_format='array_record'; {remedy}."
        )
    kinds = {key: type(features[key]) for key in features} if features else {}
    if (kinds.get("image"), kinds.get("label")) != (tfds.features.Image, tfds.features.ClassLabel):
        raise DataError(f"{folder}: its features must be an image and a label, got {features}.")
    validation = "validation" if "validation" in found else "test"
    for split in ("train", validation):
        if split not in found:
            raise DataError(f"{folder}: no split {split!r}, it has {found}; {remedy}.")

    digest = hashlib.sha256((folder / "features.json").read_bytes())
    train, test = (
        _open_split(folder, info, split, digest, remedy) for split in ("train", validation)
    )
    channels = 1 if features["image"].shape[-1] == 1 else 3
    classes = features["label"].num_classes
    return DataSet(name, classes, channels, train, test, digest.hexdigest())


def _open_split(folder: Path, info: Any, split: str, digest: Any, remedy: str) -> RecordSplit:
    with extra("data"):
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.data_sources.array_record import ArrayRecordDataSource

    files = tuple(folder / Path(path).name for path in info.splits[split].filepaths)
    sizes = tuple(info.splits[split].shard_lengths)
    for file, size in zip(files, sizes, strict=True):
        got = _count_records(file, remedy)
        if got != size:
            raise DataError(
                f"{file}: expected {size} records, got {got}: not the whole file; {remedy}."
            )
        digest.update(f"{split} {size} {file.stat().st_size}\n".encode() + _edges(file))
    _allow_open_files(len(files))
    skip = {"image": tfds.decode.SkipDecoding()}
    source = ArrayRecordDataSource(info, split=split, decoders=skip)
    opened = RecordSplit(source, split, files, sizes, info.features["label"].num_classes)
    if len(opened):
        opened[0]  # has a label: in a split without labels none has
    return opened


def _count_records(file: Path, remedy: str) -> int:
    with extra("data"):
        from array_record.python.array_record_module import ArrayRecordReader

    if not file.is_file():
        raise DataError(f"{file}: missing; {remedy}.")
    try:
        reader = ArrayRecordReader(str(file))
        count = int(reader.num_records())
        reader.close()  # it is here that a file cut short is found out
    except RuntimeError as error:
        raise DataError(f"{file}: damaged ({error}); {remedy}.") from error
    return count


def _edges(file: Path) -> bytes:
    with file.open("rb") as opened:
        head = opened.read(EDGE)
        opened.seek(max(0, file.stat().st_size - EDGE))
        return head + opened.read(EDGE)


def _allow_open_files(count: int) -> None:
    """Raises the limit of open files: ImageNet has 1,088 files, and 1,024 is a common limit."""
    try:
        import resource
    except ImportError:  # not a Unix
        return
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 1024
    if limit == resource.RLIM_INFINITY or limit >= wanted:
        return
    if most != resource.RLIM_INFINITY and most < wanted:
        raise DataError(
            f"{count} files have to stay open, and this process may open {most}: raise the limit "
            f"to {wanted} or more (ulimit -Hn)."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
