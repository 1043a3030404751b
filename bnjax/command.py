"""What every `python -m` of this repository shares: how it ends."""

import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from bnjax.extras import MissingExtraError


@contextmanager
def command() -> Iterator[None]:
    """Around, or as a decorator of, what a command does.

    A missing extra is one line without a traceback. A pipe whose reader has gone (`| head -1`)
    ends the command without a word, by the status that a shell gives to SIGPIPE.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except MissingExtraError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:
        if not _reader_has_gone():  # then it is another pipe, such as a worker's
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes at its end
        sys.exit(128 + signal.SIGPIPE)


def _reader_has_gone() -> bool:
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors are always told
    return bool(poll.poll(0))
