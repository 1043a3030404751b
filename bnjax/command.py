"""The frame of every `python -m` of this repository: its outputs, and how it ends."""

import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from bnjax.extras import MissingExtraError

BROKEN_PIPE = 128 + 13
"""Status of a command whose output's reader has gone, as a shell tells it: by SIGPIPE."""


@contextmanager
def command() -> Iterator[None]:
    """A context, or a decorator, for the work of a command.

    A missing extra is one line without a traceback. When nobody reads the output any more, as with
    `| head -1`, the command ends without a word. An output that is closed from the start is
    replaced by one that keeps nothing: otherwise a file of the command would get its number, and
    messages of libraries to standard error would go into that file. Characters that an output's
    encoding lacks become "?".

    Raises:
        SystemExit: with a line for a missing extra, or with `BROKEN_PIPE`.
        OSError: standard output cannot be written for another reason, such as a full disk.
    """
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, _nothing(number))
        elif isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except MissingExtraError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:
        if not (_ended(sys.stdout) or _ended(sys.stderr)):
            raise  # another pipe, of workers say
        sys.exit(BROKEN_PIPE)
    finally:
        for stream in (sys.stdout, sys.stderr):
            if _ended(stream):  # Python flushes it once more at its end, and would complain
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _nothing(number: int) -> TextIO:
    """Returns a stream that keeps nothing, at this file descriptor unless that is in use."""
    try:
        os.fstat(number)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return open(os.devnull, "w", encoding="utf-8")


def _ended(stream: TextIO) -> bool:
    """Whether nobody reads a stream any more; the first error may have emptied its buffer."""
    try:
        stream.flush()
        number = stream.fileno()
    except io.UnsupportedOperation:  # one of Python's own
        return False
    except (OSError, ValueError):
        return True
    if not hasattr(select, "poll"):  # on Windows
        return False
    poll = select.poll()
    poll.register(number, 0)  # errors alone
    return any(event & select.POLLERR for _, event in poll.poll(0))
