"""`mnist` against tiny MNIST-like files made here and served on localhost."""

import contextlib
import gzip
import hashlib
import http.server
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow_datasets as tfds

from bnjax.data import DataError, in_memory, open_data
from bnjax.data.prepare import fetch as fetch_module
from bnjax.data.sets import FACTS

COUNTS = {"train": 60, "test": 20}
FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
SHARD = "mnist-train.array_record-00000-of-00001"
GENUINE = FACTS["mnist"]
ORDER_HEAD = [39, 55, 28, 6, 50, 47, 33, 16]  # of the numbers below 60 in the genuine mnist/3.0.1


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


@pytest.fixture
def origin(monkeypatch):
    """Tiny `mnist` at a server that has it; what the server sends can be changed by the test."""
    be_tiny(monkeypatch)
    server = Origin()
    server.answers = {name: [data] for name, data in fake_files().items()}
    announce(monkeypatch, server.url, fake_files())
    yield server
    server.close()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with tiny `mnist` in it; read it, or copy it."""
    root = tmp_path_factory.mktemp("prepared")
    server = Origin()
    server.answers = {name: [data] for name, data in fake_files().items()}
    with pytest.MonkeyPatch.context() as patch:
        be_tiny(patch)
        announce(patch, server.url, fake_files())
        open_data("mnist", data_dir=root)
    server.close()
    return root


@pytest.fixture
def copied(prepared, tmp_path, monkeypatch):
    """A copy of the prepared folder, to be damaged: its root and the folder of the version."""
    be_tiny(monkeypatch)
    root = tmp_path / "data"
    shutil.copytree(prepared / "mnist", root / "mnist")
    return root, root / "mnist" / "3.0.1"


def assert_nothing_prepared(root):
    assert not list(root.glob("mnist/*"))
    assert not list(root.rglob("*.part"))


def test_unknown_name_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"mnist5k, mnist, fashion_mnist, .*; got 'mnist6k'"):
        open_data("mnist6k")


def test_url_as_data_dir_is_refused():
    """Fails where a bucket's name would become a local folder called `gs:`."""
    with pytest.raises(ValueError, match=r"local folder, got 'gs://bucket/data'"):
        open_data("mnist", data_dir="gs://bucket/data")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_missing_data_is_fetched_prepared_and_loaded(name, tmp_path, monkeypatch, origin):
    announce(monkeypatch, origin.url, fake_files(), builder=name)
    data = in_memory(open_data(name, data_dir=tmp_path))
    assert data.name == name
    assert data.classes == 10
    digest = hashlib.sha256()
    for split, (images, labels) in fake_arrays(COUNTS).items():
        got = getattr(data, split)
        assert got.images.dtype == np.uint8
        assert got.labels.dtype == np.int32
        assert got.images.shape == (COUNTS[split], 28, 28, 1)
        # The order is that of tensorflow-datasets; as sets, what was served is what is loaded.
        pairs = sorted((i.tobytes(), int(n)) for i, n in zip(images, labels, strict=True))
        assert pairs == sorted(
            (i.tobytes(), int(n)) for i, n in zip(got.images, got.labels, strict=True)
        )
        digest.update(got.images.tobytes() + got.labels.astype("<i4").tobytes())
    assert data.sha256 == digest.hexdigest()
    assert sorted(origin.asked) == sorted(fake_files())  # each once


@pytest.mark.filterwarnings("ignore:.*OpenCV is not installed")
def test_plain_tensorflow_datasets_reads_what_was_prepared(prepared, monkeypatch):
    """Layout, features and order are those of the genuine builder."""
    be_tiny(monkeypatch)
    data = in_memory(open_data("mnist", data_dir=prepared))
    for split in COUNTS:
        source = tfds.data_source("mnist", split=split, data_dir=str(prepared))
        images, labels = getattr(data, split).images, getattr(data, split).labels
        np.testing.assert_array_equal(images, np.stack([e["image"] for e in source]))
        np.testing.assert_array_equal(labels, [e["label"] for e in source])
    assert list(source.dataset_info.features) == ["image", "label"]


def test_order_is_that_of_the_genuine_builder(prepared, monkeypatch):
    """Other keys than the genuine builder's give another order, and another digest."""
    be_tiny(monkeypatch)
    data = in_memory(open_data("mnist", data_dir=prepared))
    images, _ = fake_arrays(COUNTS)["train"]
    number = {image.tobytes(): n for n, image in enumerate(images)}
    assert [number[image.tobytes()] for image in data.train.images][:8] == ORDER_HEAD


def test_digest_does_not_depend_on_the_way(prepared, tmp_path, origin):
    fetched = open_data("mnist", data_dir=tmp_path)
    assert fetched.sha256 == open_data("mnist", data_dir=prepared).sha256


def test_data_dir_goes_before_the_environment(copied, tmp_path, monkeypatch, origin):
    """TFDS_DATA_DIR is read at the call, and nothing is fetched when the data is there."""
    root, _ = copied
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    expected = open_data("mnist").sha256
    assert not origin.asked
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "absent"))
    assert open_data("mnist", data_dir=root).sha256 == expected
    assert not origin.asked
    open_data("mnist")
    assert (tmp_path / "absent" / "mnist" / "3.0.1").is_dir()


def test_home_is_the_last_resort(copied, monkeypatch, origin):
    root, _ = copied
    root.rename(root.parent / "tensorflow_datasets")
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(root.parent))
    monkeypatch.setenv("USERPROFILE", str(root.parent))
    open_data("mnist")
    assert not origin.asked


def test_wrong_file_is_asked_for_twice_and_refused(tmp_path, origin):
    name = FILES["test"][0]
    wrong = fake_files({"train": 60, "test": 21})[name]
    right = fake_files()[name]
    origin.answers[name] = [wrong]
    with pytest.raises(DataError) as caught:
        open_data("mnist", data_dir=tmp_path)
    message = str(caught.value)
    for part in (
        origin.url + name,
        f"expected {len(right)} bytes with SHA-256 {hashlib.sha256(right).hexdigest()}",
        f"got {len(wrong)} bytes with SHA-256 {hashlib.sha256(wrong).hexdigest()}, 2 times",
    ):
        assert part in message
    assert origin.asked.count(name) == 2
    assert not list(tmp_path.rglob(name))
    assert_nothing_prepared(tmp_path)


def test_same_size_with_other_bytes_is_refused(tmp_path, origin):
    name = FILES["train"][1]
    data = fake_files()[name]
    origin.answers[name] = [data[:-1] + bytes([data[-1] ^ 1])]
    with pytest.raises(DataError, match="SHA-256"):
        open_data("mnist", data_dir=tmp_path)


@pytest.mark.parametrize("damage", ["short", "long", "broken off"])
def test_second_try_mends_a_bad_first(damage, tmp_path, origin):
    name = FILES["train"][0]
    data = fake_files()[name]
    bad = {"short": data[:1000], "long": data + bytes(300_000), "broken off": data[:1000]}[damage]
    origin.answers[name] = [bad, data]
    if damage == "broken off":
        origin.sent_length = len(data)
        origin.answers = {name: [bad, data]}
        remote = fetch_module.Remote(origin.url + name, len(data), hashlib.sha256(data).hexdigest())
        path = fetch_module.fetch_file(remote, tmp_path / "file.gz")
        assert path.read_bytes() == data
    else:
        open_data("mnist", data_dir=tmp_path)
    assert origin.asked.count(name) == 2


def test_body_without_end_is_cut_short(tmp_path, origin):
    """Fails where a server can fill the disk."""
    name = FILES["train"][1]
    origin.answers[name] = [bytes(10_000_000)]
    with pytest.raises(DataError) as caught:
        open_data("mnist", data_dir=tmp_path)
    got = re.search(r"got (\d+) bytes", str(caught.value))
    assert got
    assert int(got[1]) < 200_000


def test_transfer_that_stalls_is_given_up(tmp_path, monkeypatch, origin):
    """Fails, by never ending, where a body may take for ever."""
    monkeypatch.setattr(fetch_module, "STALL_S", 0.2)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc"
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/f"
        server.settimeout(5)
        done = threading.Event()

        def serve():
            with contextlib.ExitStack() as connections:
                for _ in range(fetch_module.ATTEMPTS):
                    connection = connections.enter_context(server.accept()[0])
                    connection.recv(1 << 16)
                    connection.sendall(head)
                done.wait()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with pytest.raises(DataError, match=r"got 3 bytes .* then TimeoutError"):
                fetch_module.fetch_file(fetch_module.Remote(url, 1000, "0"), tmp_path / "f")
        finally:
            done.set()
            thread.join()
    assert not list(tmp_path.iterdir())


def assert_tells_two_ways_on(message, root):
    assert str(root / "mnist" / "3.0.1") in message
    for part in (
        "mnist is not in",
        "TFDS_DATA_DIR",
        "--data-dir",
        "open_data('mnist'",
        "mnist5k",
    ):
        assert part in message


def test_refused_connection_fails_at_once(tmp_path, monkeypatch, origin):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    announce(monkeypatch, f"http://127.0.0.1:{port}/", fake_files())
    start = time.monotonic()
    with pytest.raises(DataError, match="refused") as caught:
        open_data("mnist", data_dir=tmp_path)
    assert time.monotonic() - start < 2
    assert f"127.0.0.1:{port}/" in str(caught.value)
    assert_tells_two_ways_on(str(caught.value), tmp_path)
    assert not list(tmp_path.iterdir())


def test_server_that_never_answers_fails_in_time(tmp_path, monkeypatch, origin):
    """Fails where only the socket's own time limit counts, which is longer."""
    assert fetch_module.ANSWER_S <= 4
    monkeypatch.setattr(fetch_module, "ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        announce(monkeypatch, f"http://127.0.0.1:{server.getsockname()[1]}/", fake_files())
        start = time.monotonic()
        with pytest.raises(DataError, match=r"no answer within 0\.5 s") as caught:
            open_data("mnist", data_dir=tmp_path)
        assert 0.5 <= time.monotonic() - start < 2
    assert_tells_two_ways_on(str(caught.value), tmp_path)
    assert not list(tmp_path.iterdir())


def test_error_status_is_named(tmp_path, origin):
    del origin.answers[FILES["train"][0]]
    with pytest.raises(DataError, match="404"):
        open_data("mnist", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        (FILES["train"][0], b"not gz", "not a whole gz file"),
        (FILES["train"][0], gzip.compress(b"\0\0\x0d\1\0\0\0\1abcd"), "not an IDX file"),
        (FILES["train"][0], gzip.compress(b"\0\0\x08\1\0\0\0\5abcd"), "not an IDX file"),
        (FILES["train"][0], idx(np.zeros((60, 28, 27))), r"\[60, 28, 27, 1\]"),
        (FILES["train"][1], idx(np.zeros(59)), r"labels int32 \[60\], got int32 \[59\]"),
        (FILES["test"][1], idx(np.full(20, 10)), r"labels must be in 0 \.\. 9, got 10"),
    ],
    # Not the contents: gzip writes the second into them, and workers must collect the same names.
    ids=["not gzip", "of floats", "cut short", "of 27 columns", "a label too few", "label 10"],
)
def test_files_that_are_not_the_data_set_are_not_prepared(
    name, content, match, tmp_path, monkeypatch, origin
):
    """The files are what the builder expects by digest, and still not what it is known to be."""
    announce(monkeypatch, origin.url, fake_files() | {name: content})
    origin.answers[name] = [content]
    with pytest.raises(DataError, match=match):
        open_data("mnist", data_dir=tmp_path)
    assert_nothing_prepared(tmp_path)


def test_interrupted_preparation_leaves_nothing_and_can_go_on(tmp_path, monkeypatch, origin):
    """Fails where the folder gets its name before it is whole, or good downloads are not kept."""
    from PIL import Image

    calls = iter(range(70))
    genuine = Image.fromarray

    def interrupt(array):
        if next(calls) == 65:  # train is written, test is not
            raise KeyboardInterrupt
        return genuine(array)

    monkeypatch.setattr(Image, "fromarray", interrupt)
    with pytest.raises(KeyboardInterrupt):
        open_data("mnist", data_dir=tmp_path)
    assert_nothing_prepared(tmp_path)
    monkeypatch.setattr(Image, "fromarray", genuine)
    asked = len(origin.asked)
    open_data("mnist", data_dir=tmp_path)
    assert len(origin.asked) == asked


def test_another_process_may_prepare_it_first(prepared, tmp_path, monkeypatch, origin):
    """Both find nothing and both prepare; the slower one takes what stands there."""
    from PIL import Image

    genuine = Image.fromarray

    def overtaken(array):
        if not (tmp_path / "mnist" / "3.0.1").exists():
            shutil.copytree(prepared / "mnist" / "3.0.1", tmp_path / "mnist" / "3.0.1")
        return genuine(array)

    monkeypatch.setattr(Image, "fromarray", overtaken)
    data = open_data("mnist", data_dir=tmp_path)
    assert data.sha256 == open_data("mnist", data_dir=prepared).sha256


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def flip(path):
    """Changes one bit where the images are: a run of bytes that do not repeat."""
    data = bytearray(path.read_bytes())
    data[20_000] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda folder: [p.unlink() for p in folder.iterdir()], "not prepared, or half"),
        (lambda folder: (folder / "dataset_info.json").unlink(), "not prepared, or half"),
        (lambda folder: cut(folder / "dataset_info.json", 300), "cannot be read"),
        (lambda folder: (folder / SHARD).unlink(), "missing"),
        (lambda folder: cut(folder / SHARD, 0), "damaged"),
        (lambda folder: cut(folder / SHARD, 70_000), "damaged"),
        (lambda folder: flip(folder / SHARD), "hash mismatch"),
    ],
    ids=["empty", "no info", "half an info", "no shard", "empty shard", "cut shard", "one bit"],
)
def test_damaged_folder_is_named_with_the_remedy(damage, match, copied, origin):
    """Fails where damage is read as data, or leads to fetching over somebody's folder."""
    root, folder = copied
    damage(folder)
    with pytest.raises(DataError, match=match) as caught:
        open_data("mnist", data_dir=root)
    assert str(folder) in str(caught.value)
    assert "delete it and open it again" in str(caught.value)
    assert not origin.asked


def test_other_counts_are_refused(copied, monkeypatch):
    """A tiny set is not MNIST, whatever its folder says."""
    root, _ = copied
    monkeypatch.setitem(FACTS, "mnist", GENUINE)
    with pytest.raises(DataError, match=r"60,000 images to learn from .* got 10, 60 and 20"):
        open_data("mnist", data_dir=root)


def test_tensorflow_is_never_imported(prepared, tmp_path, origin):
    """A stand-in for TensorFlow ends the process that imports it: while fetching or reading."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise SystemExit('imported')")
    files = {u: tuple(info) for u, info in tfds.builder_cls("mnist").url_infos.items()}
    script = f"""
import sys, warnings
sys.path.insert(0, {str(tmp_path)!r})
import bnjax.data
assert "tensorflow_datasets" not in sys.modules and "PIL" not in sys.modules
from bnjax.data import open_data
from bnjax.data.sets import FACTS
open_data("mnist5k")
assert "tensorflow_datasets" not in sys.modules
import tensorflow_datasets as tfds
from collections import namedtuple
info = namedtuple("info", "size checksum filename")
tfds.builder_cls("mnist").url_infos = {{u: info(*i) for u, i in {files!r}.items()}}
FACTS["mnist"] = FACTS["mnist"]._replace(**{COUNTS!r})
open_data("mnist", data_dir={str(prepared)!r})
open_data("mnist", data_dir={str(tmp_path / "new")!r})
assert "tensorflow" not in sys.modules
print("done")
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.stdout == "done\n", result.stderr  # and nothing else on standard output
    assert "OpenCV" not in result.stderr
    assert (tmp_path / "new" / "mnist" / "3.0.1").is_dir()
