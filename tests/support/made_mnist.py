"""Tiny MNIST-like files, served on localhost and announced as the genuine ones."""

import contextlib
import gzip
import hashlib
import http.server
import threading
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from bnjax.data.sets import FACTS

COUNTS = {"train": 60, "test": 20}
FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
GENUINE = FACTS["mnist"]


class UrlInfo(NamedTuple):
    size: int
    checksum: str
    filename: str


class Origin:
    """A server on localhost; `answers[file]` are the bodies it sends, the last one for ever."""

    def __init__(self):
        self.answers: dict[str, list[bytes]] = {}
        self.sent_length: int | None = None
        self.asked: list[str] = []
        origin = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.lstrip("/")
                origin.asked.append(name)
                bodies = origin.answers.get(name)
                if bodies is None:
                    self.send_error(404)
                    return
                body = bodies.pop(0) if len(bodies) > 1 else bodies[0]
                self.send_response(200)
                self.send_header("Content-Length", str(origin.sent_length or len(body)))
                self.end_headers()
                with contextlib.suppress(OSError):  # the client may have read enough
                    self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def idx(array):
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0)


def fake_arrays(counts):
    rng = np.random.default_rng(0)
    return {
        split: (
            rng.integers(0, 256, (n, 28, 28), dtype=np.uint8),
            np.arange(n, dtype=np.uint8) % 10,
        )
        for split, n in counts.items()
    }


def fake_files(counts=COUNTS):
    return {
        name: idx(array)
        for split, arrays in fake_arrays(counts).items()
        for name, array in zip(FILES[split], arrays, strict=True)
    }


def announce(monkeypatch, url, files, builder="mnist"):
    """Makes tensorflow-datasets name these files, at this address, as the set's origin."""
    infos = {
        url + name: UrlInfo(len(data), hashlib.sha256(data).hexdigest(), name)
        for name, data in files.items()
    }
    monkeypatch.setattr(tfds.builder_cls(builder), "url_infos", infos)


def be_tiny(monkeypatch):
    for name in ("mnist", "fashion_mnist"):
        monkeypatch.setitem(FACTS, name, GENUINE._replace(**COUNTS, folder=name))


def assert_nothing_prepared(root):
    assert not list(root.glob("mnist/*"))
    assert not list(root.rglob("*.part"))
