"""Fetching a file: it arrives verified and whole, or not at all and without a long wait.

Not by pooch, which was tried (1.9.0). Its time limit is that of requests, which bounds neither the
name look-up (one of 12 s took 12 s with a limit of 3 s) nor, apart from a stall, the wait for the
first byte; it reads a body that is longer than expected to its end, however long; and an error
names the digest that it got, not the size, which tells a page of an error from a file cut off. The
thread, the copying and the messages below would remain as a downloader of ours, and pooch would
save the temporary file and its renaming, ten lines.
"""

import hashlib
import threading
import uuid
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import BinaryIO, NamedTuple
from urllib.error import HTTPError
from urllib.request import urlopen

from bnjax.data.data_set import DataError
from bnjax.progress import ProgressBar

ANSWER_S = 3.0
"""Seconds that a server has to begin its answer, name look-up and connecting included."""
STALL_S = 10.0
"""Seconds without a byte after which a transfer that has begun is given up."""
ATTEMPTS = 2
"""Requests for a file that arrives other than expected."""
_CHUNK = 1 << 16


class Remote(NamedTuple):
    """A file on a server and what it must be.

    Attributes:
        url: where it is.
        size: in bytes.
        sha256: hex digest of its bytes.
    """

    url: str
    size: int
    sha256: str


def fetch_file(remote: Remote, path: Path) -> Path:
    """Fetches a file to a path, unless the right one is there already.

    The path either holds the verified file or stays as it was: bytes go to a temporary file beside
    it, which is renamed once its size and digest are right and removed otherwise.

    Args:
        remote: what to fetch.
        path: where to put it; its folder is made if it is missing.

    Returns:
        The path.

    Raises:
        DataError: no answer came within `ANSWER_S`, or `ATTEMPTS` answers were not the file.
    """
    if path.is_file() and _describe_file(path) == _expected(remote):
        return path
    for _ in range(ATTEMPTS):
        got = _fetch_once(remote, path)
        if got == _expected(remote):
            return path
    raise DataError(f"{remote.url}: expected {_expected(remote)}; got {got}, {ATTEMPTS} times.")


def _fetch_once(remote: Remote, path: Path) -> str:
    """Asks for the file once, keeps it if it is right, and says what came."""
    with _open(remote.url) as response:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")  # others may fetch it too
        try:
            with part.open("xb") as file:
                got = _copy(response, file, remote)
            if got == _expected(remote):
                part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return got


def _copy(response: HTTPResponse, file: BinaryIO, remote: Remote) -> str:
    """Writes what the server sends, at most a chunk more than expected, and says what it was."""
    digest, size, end = hashlib.sha256(), 0, ""
    name = remote.url.rpartition("/")[2]
    with ProgressBar(remote.size, description=name, unit="B") as bar:
        try:
            while size <= remote.size and (chunk := response.read1(_CHUNK)):
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                bar.update(len(chunk))
        except (OSError, HTTPException) as error:
            end = f", then {type(error).__name__}: {error}"
    return _describe(size, digest.hexdigest()) + end


def _open(url: str) -> HTTPResponse:
    """Opens a URL or raises within `ANSWER_S`.

    urllib's timeout bounds neither the name look-up nor the sum over a host's addresses, so the
    request runs in a thread of its own, which is left behind when time is up.
    """
    answers: SimpleQueue[HTTPResponse | Exception] = SimpleQueue()

    def ask() -> None:
        try:
            answers.put(urlopen(url, timeout=STALL_S))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=ANSWER_S)
    except Empty:
        raise DataError(f"{url}: no answer within {ANSWER_S:g} s.") from None
    if isinstance(answer, HTTPError):
        answer.close()
    if isinstance(answer, Exception):
        raise DataError(f"{url}: {answer}") from answer
    return answer


def _describe_file(path: Path) -> str:
    with path.open("rb") as file:
        return _describe(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _expected(remote: Remote) -> str:
    return _describe(remote.size, remote.sha256)


def _describe(size: int, sha256: str) -> str:
    return f"{size} bytes with SHA-256 {sha256}"
