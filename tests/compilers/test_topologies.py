"""Accelerators by name: what exists, what is missing, and what is left as it was."""

import os
import subprocess
import sys

import jax
import pytest

from bnjax.compilers import topologies
from bnjax.compilers.topologies import CHIPS, MissingCompilerError, find_topologies, find_topology


@pytest.fixture
def asked(monkeypatch):
    """Keeps what JAX is asked for, which is answered with all CPU devices."""
    calls = []

    class Description:
        devices = jax.devices()

    def describe(**asked_for):
        names = (*topologies._LIBTPU, "HOME")
        calls.append({**asked_for, "env": {name: os.environ.get(name) for name in names}})
        return Description()

    monkeypatch.setattr(topologies.jax_topologies, "get_topology_desc", describe)
    return calls


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v9:2x2", "unknown chip 'v9' in 'v9:2x2'; choose from v4, v5e, v5p, v6e, h100, cpu"),
        ("", "unknown chip ''"),
        ("v5e", "no slice 'v5e'; choose from 1x1, 2x2, 2x4"),
        ("v5e:3x3", "no slice 'v5e:3x3'; choose from 1x1, 2x2, 2x4, 4x4"),
        ("v5e:16x32", "no slice 'v5e:16x32'"),
        ("v6e:8", "no slice 'v6e:8'"),
        ("v4:2x2", "no slice 'v4:2x2'; choose from 2x2x1, 2x2x2.*multiples of 4"),
        ("v4:1x2x2", "no slice 'v4:1x2x2'"),
        ("v4:4x4x6", "no slice 'v4:4x4x6'"),
        ("v4:0x4x4", "no slice 'v4:0x4x4'"),
        ("v4:16x16x20", "at most 4,096 chips"),
        ("v5p:16x16x28", "at most 6,144 chips"),
        ("h100:0", "'h100:0' has no size; give a number, as in h100:8"),
        ("h100:2x4", "give a number, as in h100:8"),
        ("h100:12", "no 'h100:12'; up to 8 GPUs are one host's.*multiples of 8 up to 256"),
        ("h100:264", "no 'h100:264'"),
        ("cpu:", "'cpu:' has no size; give a number, as in cpu:8"),
        ("cpu:-1", "'cpu:-1' has no size"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(asked, name, said):
    """Before libtpu sees it, which ends the process for some of these."""
    with pytest.raises(ValueError, match=said):
        find_topology(name)
    assert not asked


@pytest.mark.parametrize("name", ["v5e:1x1", "v6e:16x16", "v4:2x2x1", "v4:8x8x12", "v5p:16x16x24"])
def test_tpu_slices_are_asked_for_by_name(asked, name):
    topology = find_topology(name)
    assert (topology.name, topology.chip.name) == (name, name.partition(":")[0])
    (call,) = asked
    assert (call["platform"], call["topology_name"]) == ("tpu", name)


def test_a_v4_chip_is_one_device(asked):
    """Its cores would be two, with half the memory each."""
    find_topology("v4:2x2x1")
    find_topology("v5e:2x2")
    assert [call.get("chip_config_name") for call in asked] == ["megacore", None]


def test_one_chip_is_no_part_of_a_host_of_four(asked):
    """Some versions of libtpu refuse the slice otherwise."""
    find_topology("v5e:1x1")
    find_topology("v5e:2x2")
    assert [call.get("chips_per_host_bounds") for call in asked] == [[1, 1, 1], None]


@pytest.mark.parametrize(
    ("name", "grid"), [("h100:1", "1x1x1"), ("h100:8", "1x1x8"), ("h100:256", "1x32x8")]
)
def test_gpus_are_grouped_by_host(asked, name, grid):
    find_topology(name)
    (call,) = asked
    assert (call["platform"], call["topology"]) == ("cuda", grid)
    assert "H100" in call["target_config"]


def test_the_environment_is_set_for_libtpu_alone_and_taken_back(asked, monkeypatch):
    """Red where a variable stays set, or one that the user has set is changed."""
    for name in topologies._LIBTPU:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "mine")
    before = dict(os.environ)
    find_topology("h100:1")
    find_topology("v5e:2x2")
    assert dict(os.environ) == before
    gpu, tpu = (call["env"] for call in asked)
    assert gpu["TPU_SKIP_MDS_QUERY"] is None
    assert tpu["TPU_SKIP_MDS_QUERY"] == "1"
    assert tpu["ALLOW_MULTIPLE_LIBTPU_LOAD"] == "1"
    assert tpu["TPU_WORKER_HOSTNAMES"] == "mine"


@pytest.mark.parametrize(
    ("name", "raised", "said"),
    [
        (
            "v5e:2x4",
            RuntimeError("JAX TPU support not installed; cannot generate TPU topology."),
            r"v5e:2x4: .*libtpu.*pip install -c constraints\.txt -e '\.\[tpu-aot\]'",
        ),
        (
            "h100:8",
            NotImplementedError("topology not implemented for cuda"),
            r"h100:8: .*CUDA plugin.*pip install -c constraints\.txt -e '\.\[gpu-aot\]'",
        ),
    ],
)
def test_a_missing_compiler_is_named_with_what_installs_it(monkeypatch, name, raised, said):
    def describe(**asked_for):
        raise raised

    monkeypatch.setattr(topologies.jax_topologies, "get_topology_desc", describe)
    before = dict(os.environ)
    with pytest.raises(MissingCompilerError, match=said):
        find_topology(name)
    assert dict(os.environ) == before


def test_a_missing_compiler_leaves_the_others(monkeypatch):
    def describe(*, platform, **_):
        if platform == "tpu":
            raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology.")
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr(topologies.jax_topologies, "get_topology_desc", describe)
    found, missing = find_topologies(("v5e:1x1", "cpu:2", "h100:1"))
    assert [topology.name for topology in found] == ["cpu:2"]
    assert list(missing) == ["v5e:1x1", "h100:1"]
    assert ".[gpu-aot]" in str(missing["h100:1"])
    with pytest.raises(MissingCompilerError, match="gpu-aot"):
        find_topologies(("v5e:1x1", "h100:1"))
    with pytest.raises(ValueError, match="unknown chip 'v9'"):
        find_topologies(("v5e:1x1", "cpu:2", "v9:1"))


def test_other_errors_of_a_compiler_are_not_hidden(monkeypatch):
    def describe(**asked_for):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(topologies.jax_topologies, "get_topology_desc", describe)
    with pytest.raises(RuntimeError, match="out of luck"):
        find_topology("v5e:2x4")


def test_cpu_devices_are_those_that_jax_has():
    topology = find_topology("cpu:4")
    assert topology.devices == tuple(jax.devices()[:4])
    assert topology.chip.memory_bytes == find_topology("cpu:1").chip.memory_bytes // 4 > 2**26


def test_more_cpu_devices_than_jax_started_with_are_refused():
    with pytest.raises(ValueError, match=r"cpu:9 needs 9.*started with 8.*JAX_NUM_CPU_DEVICES=9"):
        find_topology("cpu:9")


def test_a_smaller_topology_takes_no_cpu_devices_away(monkeypatch):
    monkeypatch.setattr(jax.config, "update", lambda *_: pytest.fail("asked for fewer"))
    assert len(find_topology("cpu:2").devices) == 2


@pytest.mark.slow
def test_cpu_devices_are_made_where_jax_has_not_started():
    """Red where the first of several topologies decides; in a process of its own."""
    lines = [
        "import jax",
        "from bnjax.compilers.topologies import find_topologies",
        "jax.config.update('jax_platforms', 'cpu')",
        "found, _ = find_topologies(('cpu:1', 'cpu:3'))",
        "assert [len(topology.devices) for topology in found] == [1, 3]",
        "assert jax.device_count() == 3",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_chips_state_what_an_estimate_needs():
    for chip in CHIPS:
        rates = (
            chip.memory_bytes,
            chip.matmul_flops_per_second,
            chip.memory_bytes_per_second,
            chip.link_bytes_per_second,
        )
        assert all(rate is None for rate in rates) if chip.name == "cpu" else all(rates)
