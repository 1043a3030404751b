"""Checks of paths: that they are local, and that folders can be written."""

import os
import re
import sys
import tempfile
from pathlib import Path

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # two letters or more before it: not C:/


def local_path(name: str, path: str | Path) -> Path:
    """Returns the path, if it is on this machine.

    `Path("gs://bucket")` has lost one slash already and would be a new folder named `gs:`.

    Args:
        name: name of the argument, for the error.
        path: the path; it may begin with "~".

    Raises:
        ValueError: it is a URL, or the locale cannot read it.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{name} {os.fsencode(path)!r} is no text in this locale ({sys.getfilesystemencoding()}"
            "): set LC_ALL=C.UTF-8, or give another name."
        ) from None
    if _URL.match(str(path)):
        raise ValueError(
            f"{name} must be a local folder, got {str(path)!r}; mount the bucket, or copy."
        )
    return Path(path).expanduser()


def writable_folder(name: str, path: str | Path) -> Path:
    """Makes the folder if need be, and checks that it can be written, before hours of work.

    Args:
        name: name of the argument, for the error.
        path: the path, as for `local_path`.

    Raises:
        ValueError: as for `local_path`; or it cannot be made or written.
    """
    folder = local_path(name, path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(name, folder, error) from error
    return check_writable(name, folder)


def check_writable(name: str, folder: Path) -> Path:
    """Returns the folder, if it can be written or made; changes nothing.

    Raises:
        ValueError: it cannot.
    """
    try:
        there = next(part for part in (folder, *folder.parents) if part.exists())
        with tempfile.TemporaryFile(dir=there) as probe:  # root may do what a disk does not allow
            probe.write(b"0")
    except OSError as error:
        raise _refused(name, folder, error) from error
    return folder


def _refused(name: str, folder: Path, error: OSError) -> ValueError:
    return ValueError(
        f"{name} {folder} cannot be written ({error.strerror}): give a folder that you may write."
    )
