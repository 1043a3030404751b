"""Local paths, told from URLs."""

import os
import re
import sys
from pathlib import Path

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # two letters or more before it: not C:/


def local_path(name: str, path: str | Path) -> Path:
    """The path, if it is one of this machine.

    `Path("gs://bucket")` has lost one slash already and would be a new folder named `gs:`.

    Args:
        name: of the argument, for the error.
        path: which may begin with "~".

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
