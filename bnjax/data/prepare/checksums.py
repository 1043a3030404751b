"""Published files are checked, every byte, before hours go into them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from bnjax.data.data_set import DataError
from bnjax.progress import ProgressBar

_CHUNK = 1 << 22


def check_md5(files: Mapping[Path, str], remedy: str) -> None:
    """Reads files, with progress, and compares their MD5 with the published one.

    Args:
        files: the expected hex digest of each path.
        remedy: ends the message.

    Raises:
        DataError: a digest differs.
        OSError: a file cannot be read.
    """
    total = sum(path.stat().st_size for path in files)
    with ProgressBar(total, description="MD5", unit="B") as bar:
        for path, expected in files.items():
            digest = hashlib.md5(usedforsecurity=False)
            with path.open("rb") as opened:
                while chunk := opened.read(_CHUNK):
                    digest.update(chunk)
                    bar.update(len(chunk))
            if (got := digest.hexdigest()) != expected:
                raise DataError(f"{path}: damaged: expected MD5 {expected}, got {got}; {remedy}.")
