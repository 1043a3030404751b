"""One writer at a time: a file that a process holds until it closes it or ends."""

import fcntl
import os
from pathlib import Path
from typing import TextIO


class LockError(RuntimeError):
    """Another process writes there, or locks are impossible there."""


def lock(file: Path, what: Path) -> TextIO:
    """Holds `file`, made if it does not exist, until the returned file is closed.

    Args:
        file: in a folder that exists, on a local disk.
        what: the folder that it stands for, named in errors.

    Raises:
        LockError: another writer holds it, or it cannot be locked.
    """
    try:
        held = open(file, "a+")  # noqa: SIM115 - outlives this function
    except OSError as error:
        raise LockError(
            f"{what} cannot be locked ({error}): {file} must be a file that you may write; remove "
            "what is there, or use another directory."
        ) from error
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = _owner(held)
        held.close()
        if isinstance(error, BlockingIOError):
            raise LockError(
                f"{what} is in use by another writer (process {owner}); "
                "close that one, or use another directory."
            ) from error
        raise LockError(
            f"{what} cannot be locked ({error}); use a directory on a local disk."
        ) from error
    held.truncate(0)
    held.write(str(os.getpid()))
    held.flush()
    return held


def _owner(held: TextIO) -> str:
    held.seek(0)
    try:
        return held.read(20) or "unknown"
    except ValueError:  # somebody else's bytes
        return "unknown"
