"""The tensors of a file that `torch.save` wrote, read without running what its pickle says.

A pickle is a program. Here it can make dictionaries, lists, numbers, strings and descriptions of
tensors; whatever else it names, the file is refused. torch itself is not needed.
"""

import io
import math
import pickle
import pickletools
import reprlib
import struct
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import jax.numpy as jnp
import numpy as np

Arrays = dict[str, np.ndarray]

_MAGIC = 0x1950A86A20F9469CFC6C  # begins a file of torch before 1.6, which is no archive
_PROTOCOL = 1001
_STORAGES = {  # torch's classes, as names of NumPy's dtypes
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


class _Storage(NamedTuple):
    key: str
    dtype: str
    size: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch(path: Path) -> Arrays:
    """The arrays of a state dict by name; it may be the entry `state_dict` of a checkpoint.

    Args:
        path: what `torch.save(model.state_dict(), path)` wrote, in the format of any torch since
            0.4, or a dictionary with such a `state_dict`.

    Raises:
        ValueError: for another file, a damaged one, or one whose pickle names anything but tensors.
    """
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        if start == b"PK\x03\x04":
            saved, contents = _read_archive(path, file)
        elif start[:1] == b"\x80":
            saved, contents = _read_stream(path, file)
        else:
            raise ValueError(f"{path} is not a file of torch.save: it begins with {start!r}.")
    if isinstance(saved, dict) and isinstance(saved.get("state_dict"), dict):
        saved = saved["state_dict"]
    if not isinstance(saved, dict):
        raise ValueError(f"{path} holds a {type(saved).__name__}: save the model's state_dict().")
    if not saved:
        raise ValueError(f"{path} holds no tensor: save the model's state_dict().")
    for name, value in saved.items():
        if not (isinstance(name, str) and isinstance(value, _Tensor)):
            raise ValueError(
                f"{path} holds {reprlib.repr(name)} of type {type(value).__name__} among its "
                "tensors: save the model's state_dict() alone."
            )
    return {name: _array(path, name, tensor, contents) for name, tensor in saved.items()}


def _read_archive(path: Path, file: BinaryIO) -> tuple[Any, dict[str, bytes]]:
    """Since torch 1.6: a zip archive of a pickle and one member for each storage."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            pickles = [name for name in names if name.endswith("/data.pkl")]
            if len(pickles) != 1 or any(name.endswith("/constants.pkl") for name in names):
                raise ValueError(
                    f"{path} is an archive, but not of torch.save (a TorchScript file?): save the "
                    "model's state_dict()."
                )
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError(
                    f"{path} has compressed members, which torch.save never writes: save the "
                    "model's state_dict() with torch."
                )
            if sum(member.file_size for member in members) > path.stat().st_size:
                raise _damaged(path, "its members are longer than the file")
            top = pickles[0].removesuffix("data.pkl")
            order = f"{top}byteorder"
            if order in names and archive.read(order) != b"little":
                raise ValueError(f"{path} was written on a big-endian machine: save it on another.")
            storages: dict[str, _Storage] = {}
            saved = _load(path, io.BytesIO(archive.read(pickles[0])), storages)
            contents = {}
            for key, storage in storages.items():
                name = f"{top}data/{key}"
                if name not in names:
                    raise _damaged(path, f"it has no storage {key!r}")
                if archive.getinfo(name).file_size != _bytes(storage):
                    raise _damaged(path, f"storage {key!r} is not of {storage.size} values")
                contents[key] = archive.read(name)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise _damaged(path, error) from error
    return saved, contents


def _read_stream(path: Path, file: BinaryIO) -> tuple[Any, dict[str, bytes]]:
    """Before torch 1.6: five pickles one after the other, then each storage with its length."""
    storages: dict[str, _Storage] = {}
    magic = _load(path, file, storages)
    if type(magic) is not int or magic != _MAGIC:
        raise ValueError(f"{path} is a pickle, but not of torch.save.")
    protocol, machine = _load(path, file, storages), _load(path, file, storages)
    if protocol != _PROTOCOL or not (isinstance(machine, dict) and machine.get("little_endian")):
        raise ValueError(f"{path} is of an unknown version of torch: save it again with a new one.")
    saved, keys = _load(path, file, storages), _load(path, file, storages)
    if not isinstance(keys, list) or set(keys) != set(storages):
        raise _damaged(path, "its list of storages is not that of its tensors")
    contents = {}
    for key in keys:
        length = file.read(8)
        data = file.read(max(0, _bytes(storages[key])))
        if length != struct.pack("<q", storages[key].size) or len(data) != _bytes(storages[key]):
            raise _damaged(path, f"storage {key!r} is not of {storages[key].size} values")
        contents[key] = data
    return saved, contents


def _bytes(storage: _Storage) -> int:
    return storage.size * jnp.dtype(storage.dtype).itemsize


def _load(path: Path, file: Any, storages: dict[str, _Storage]) -> Any:
    """One pickle; adds the storages that it refers to."""
    try:
        _check_size(file)
        return _Unpickler(path, file, storages).load()
    except _RefusedError as error:
        raise ValueError(str(error)) from None
    except zipfile.BadZipFile:
        raise
    except Exception as error:  # of an interpreter that runs on damaged input: any at all
        raise _damaged(path, error) from error


class _RefusedError(Exception):
    pass


def _check_size(file: BinaryIO) -> None:
    """Raises ValueError for a pickle that asks for more memory or time than its length explains.

    It counts what each value on the pickle's stack is made of: tuples of one tuple twice, again and
    again, would take ages to hash. (pickle itself makes room for any index of its memo, and for any
    length that a string claims.)
    """
    start = file.tell()
    end = file.seek(0, io.SEEK_END)
    file.seek(start)
    bounded = cast(BinaryIO, _Bounded(file, end))
    stack: list[int | None] = []  # None is a mark
    memo: dict[int, int] = {}
    for code, argument, position in pickletools.genops(bounded):
        limit = position if position is not None else end
        if code.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            index = len(memo) if argument is None else int(argument)
            if index > limit - start or not stack:
                raise ValueError(f"its pickle asks for place {index} of its memo")
            memo[index] = stack[-1] or 0
            continue
        if code.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument or 0)])
            continue
        if code.name == "DUP":
            raise ValueError("its pickle duplicates values, which torch.save never does")
        weight = 1
        if pickletools.markobject in code.stack_before:
            while stack and (value := stack.pop()) is not None:
                weight += value
            taken = code.stack_before.index(pickletools.markobject)
        else:
            taken = len(code.stack_before)
        for _ in range(taken):
            weight += stack.pop() or 0
        if weight > 100 * (end - start):  # torch.save may refer to a tuple several times
            raise ValueError("its pickle asks for more values than its length explains")
        if code.name == "MARK":
            stack.append(None)
        elif code.stack_after:
            stack.append(weight)
    file.seek(start)


class _Bounded:
    """A file that is never asked for more than it has: read would make room for it."""

    def __init__(self, file: BinaryIO, end: int) -> None:
        self._file = file
        self._end = end
        self.readline = file.readline
        self.tell = file.tell

    def read(self, count: int) -> bytes:
        return self._file.read(min(count, self._end - self._file.tell()))


class _Unpickler(pickle.Unpickler):
    """Knows by name only what `_allowed` lists; all of it is harmless with any arguments."""

    def __init__(self, path: Path, file: Any, storages: dict[str, _Storage]) -> None:
        super().__init__(file, encoding="utf-8")  # the strings of Python 2
        self._path = path
        self._storages = storages
        self._allowed = _allowed()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._allowed:
            return self._allowed[module, name]
        raise _RefusedError(
            f"{self._path} names {module}.{name}, which is no part of a state dict: nothing of it "
            "was run. If you trust the file, load it with torch and save the model's state_dict()."
        )

    def persistent_load(self, pid: Any) -> _Storage:
        word, dtype, key, _, count, *view = pid
        if word not in ("storage", b"storage") or dtype not in _STORAGES.values() or any(view):
            raise _RefusedError(
                f"{self._path} refers to {reprlib.repr(pid)}: save it again with new torch."
            )
        storage = _Storage(str(key), dtype, int(count))
        if self._storages.setdefault(storage.key, storage) != storage:
            raise _RefusedError(f"{self._path} refers to storage {key!r} in two ways.")
        return storage


def _allowed() -> dict[tuple[str, str], Any]:
    """New functions for each pickle, so that none can leave its mark on them."""

    def tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
        if type(storage) is not _Storage or len(shape) != len(strides):
            raise TypeError("not a tensor")
        numbers = [int(n) for n in (offset, *shape, *strides)]
        if min(numbers) < 0:
            raise ValueError("a negative size")
        end = 1 + len(shape)
        return _Tensor(storage, numbers[0], tuple(numbers[1:end]), tuple(numbers[end:]))

    def parameter(data: Any, *_: Any) -> Any:
        return data

    allowed: dict[tuple[str, str], Any] = {
        ("torch", name): dtype for name, dtype in _STORAGES.items()
    }
    return allowed | {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor"): tensor,
        ("torch._utils", "_rebuild_tensor_v2"): tensor,
        ("torch._utils", "_rebuild_parameter"): parameter,
    }


def _array(path: Path, name: str, tensor: _Tensor, contents: dict[str, bytes]) -> np.ndarray:
    """The part of its storage that a tensor views: no copy, or many could view one storage."""
    dtype = jnp.dtype(tensor.storage.dtype)
    size = math.prod(tensor.shape)
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
    if size and (tensor.offset + last >= tensor.storage.size or size > tensor.storage.size):
        raise _damaged(path, f"{name} of shape {tensor.shape} is larger than its storage")
    values = np.frombuffer(contents[tensor.storage.key], dtype)[tensor.offset :]
    strides = [step * dtype.itemsize for step in tensor.strides]
    try:
        return np.lib.stride_tricks.as_strided(values, tensor.shape, strides, writeable=False)
    except (ValueError, OverflowError) as error:
        raise _damaged(path, f"{name} of shape {tensor.shape}: {error}") from error


def _damaged(path: Path, why: object) -> ValueError:
    return ValueError(f"{path} is damaged or truncated ({why}): fetch it again.")
