"""What tests of several experiments are given."""

import pytest
from made_results import write_pair

from bnjax.compilers import topologies
from bnjax.models import bn_inception


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """Runs of the MNIST experiment, written by hand; not to be changed."""
    out = tmp_path_factory.mktemp("pair")
    write_pair(out)
    return out


@pytest.fixture
def short_network(monkeypatch):
    """One of BN-Inception's ten modules."""
    monkeypatch.setattr(bn_inception, "FIGURE_5", bn_inception.FIGURE_5[2:3])


@pytest.fixture
def no_libtpu(monkeypatch):
    """As where the compiler for TPUs is not installed."""

    def describe(**_):
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology.")

    monkeypatch.setattr(topologies.jax_topologies, "get_topology_desc", describe)
