"""The origin of tiny `mnist` that several test files fetch from."""

import pytest
from made_mnist import Origin, announce, be_tiny, fake_files


@pytest.fixture
def origin(monkeypatch):
    """Tiny `mnist` at a server that has it; what the server sends can be changed by the test."""
    be_tiny(monkeypatch)
    server = Origin()
    server.answers = {name: [data] for name, data in fake_files().items()}
    announce(monkeypatch, server.url, fake_files())
    yield server
    server.close()
