"""Fetching: verified and whole or not at all, and no long wait, against a server on localhost."""

import contextlib
import hashlib
import re
import socket
import threading
import urllib.request

import pytest
from made_mnist import FILES, announce, assert_nothing_prepared, fake_files

from bnjax.data import DataError, open_data
from bnjax.data.prepare import fetch as fetch_module


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


def test_refused_connection_is_not_tried_again(tmp_path, monkeypatch, origin):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    announce(monkeypatch, f"http://127.0.0.1:{port}/", fake_files())
    asked = []

    def urlopen(url, **settings):
        asked.append(url)
        return urllib.request.urlopen(url, **settings)

    monkeypatch.setattr(fetch_module, "urlopen", urlopen)
    with pytest.raises(DataError, match="refused") as caught:
        open_data("mnist", data_dir=tmp_path)
    assert len(asked) == 1
    assert f"127.0.0.1:{port}/" in str(caught.value)
    assert_tells_two_ways_on(str(caught.value), tmp_path)
    assert not list(tmp_path.iterdir())


def test_server_that_never_answers_fails_in_time(tmp_path, monkeypatch, origin):
    """Fails where only the socket's own time limit counts, which is longer."""
    assert fetch_module.ANSWER_S <= 4
    monkeypatch.setattr(fetch_module, "ANSWER_S", 0.5)
    monkeypatch.setattr(fetch_module, "STALL_S", 3600)
    said = []

    def ask():
        try:
            open_data("mnist", data_dir=tmp_path)
        except DataError as error:
            said.append(str(error))

    thread = threading.Thread(target=ask, daemon=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        announce(monkeypatch, f"http://127.0.0.1:{server.getsockname()[1]}/", fake_files())
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
    (message,) = said
    assert "no answer within 0.5 s" in message
    assert_tells_two_ways_on(message, tmp_path)
    assert not list(tmp_path.iterdir())


def test_error_status_is_named(tmp_path, origin):
    del origin.answers[FILES["train"][0]]
    with pytest.raises(DataError, match="404"):
        open_data("mnist", data_dir=tmp_path)
