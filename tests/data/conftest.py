"""What tests of data share."""

import sys

import pytest


@pytest.fixture
def no_tensorflow(monkeypatch):
    """As if nothing had imported TensorFlow: other tests of this process may have."""
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
