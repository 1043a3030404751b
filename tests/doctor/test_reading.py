"""The doctor's snapshot: this process and its machine, as they are and as tests make them."""

import importlib.metadata
import os
import subprocess
import sys
import threading
import types

import jax
import pytest

from bnjax.doctor import Device, check, report, take_snapshot


def test_this_process_is_seen_as_it_is(monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    seen = take_snapshot()
    assert seen.unread == ()
    assert (seen.backend, seen.failure) == ("cpu", "")
    assert seen.devices == (Device("cpu"),) * 8
    assert seen.versions["jax"] == seen.running_jax == jax.__version__
    assert seen.settings["jax_enable_x64"] is False
    assert seen.cores == len(os.sched_getaffinity(0))
    assert seen.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    assert seen.cache_writable is True
    assert not seen.distributed
    wanted = {(w.owner, w.name): w for w in seen.requirements}
    assert wanted["bnjax", "jax"].needed
    assert ">=0.7.2" in wanted["bnjax", "jax"].versions
    assert not wanted["jax", "libtpu"].needed
    assert ("bnjax", "pytest") not in wanted  # of an extra
    assert "importlib-resources" in seen.pinned  # as this runs from a clone


@pytest.mark.parametrize(
    ("files", "plugged", "quota"),
    [
        ({}, (), None),
        ({"dev/nvidia0": ""}, ("NVIDIA GPU",), None),
        ({"dev/dxg": "", "dev/accel0": ""}, ("NVIDIA GPU", "TPU"), None),
        (
            {
                "sys/bus/pci/devices/0000:00:04.0/vendor": "0x1ae0\n",
                "sys/bus/pci/devices/0000:00:04.0/device": "0x0063\n",
            },
            ("TPU",),
            None,
        ),
        (  # Google's network card
            {
                "sys/bus/pci/devices/0000:00:04.0/vendor": "0x1ae0\n",
                "sys/bus/pci/devices/0000:00:04.0/device": "0x0042\n",
            },
            (),
            None,
        ),
        ({"sys/fs/cgroup/cpu.max": "250000 100000\n"}, (), 2.5),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, (), None),
        (
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "50000\n",
            },
            (),
            3.0,
        ),
        (
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "50000\n",
            },
            (),
            None,
        ),
    ],
)
def test_accelerators_and_quota_are_read_from_the_system(files, plugged, quota, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    seen = take_snapshot(root=tmp_path)
    assert (seen.unread, seen.plugged, seen.quota) == ((), plugged, quota)


def test_check_prints_what_examine_finds(capsys):
    check()
    printed = capsys.readouterr().out
    assert f"jax {jax.__version__}" in printed
    assert "8 CPU devices share" in printed


@pytest.fixture
def no_backend(monkeypatch):
    def refuse():
        raise AssertionError("the backend was started")

    monkeypatch.setattr(jax, "devices", refuse)


def test_no_backend_is_started_where_several_hosts_start_together(monkeypatch, no_backend):
    """Otherwise initializing would be impossible afterwards."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    seen = take_snapshot()
    assert seen.failure == "several hosts start theirs together"
    assert "AssertionError" not in report(seen)
    assert "backend not started" in report(seen)


def test_a_backend_that_fails_is_quoted(no_backend):
    assert take_snapshot().failure == "AssertionError: the backend was started"


def test_a_backend_that_never_starts_is_not_waited_for(monkeypatch):
    end = threading.Event()
    monkeypatch.setattr(jax, "devices", end.wait)
    try:
        assert take_snapshot(patience=0.05).failure == "it did not start within 0.05 s"
    finally:
        end.set()


def test_of_two_installations_the_first_on_the_path_counts(monkeypatch):
    """As for `import`."""
    both = [types.SimpleNamespace(metadata={"Name": "Jax"}, version=v) for v in ("0.10.2", "0.9.0")]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: both)
    assert take_snapshot().versions == {"jax": "0.10.2"}


def test_nothing_that_cannot_be_read_makes_it_fail(monkeypatch):
    def refuse(*_):
        raise OSError("no")

    monkeypatch.setattr(importlib.metadata, "distributions", refuse)
    monkeypatch.setattr(os, "sched_getaffinity", refuse)
    monkeypatch.setattr(jax.distributed, "is_initialized", refuse)
    seen = take_snapshot()
    assert seen.unread == (
        "jax.distributed (OSError: no)",
        "installed packages (OSError: no)",
        "cores (OSError: no)",
    )
    assert "Could not be read: cores" in report(seen)


def test_an_imported_tensorflow_is_asked_what_it_may_take(monkeypatch):
    cpu, gpu = (
        types.SimpleNamespace(device_type=kind, name=f"/{kind}:0") for kind in ("CPU", "GPU")
    )
    config = types.SimpleNamespace(get_visible_devices=lambda: [cpu, gpu])
    monkeypatch.setitem(sys.modules, "tensorflow", types.SimpleNamespace(config=config))
    assert take_snapshot().tensorflow_sees == ("/GPU:0",)


def run(**environ):
    return subprocess.run(
        [sys.executable, "-m", "bnjax.doctor"],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environ},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_the_command_survives_flags_that_xla_does_not_know():
    """XLA ends a process that starts with them."""
    done = run(XLA_FLAGS="--xla_tpu_anything=true")
    assert done.returncode == 0, done.stderr
    assert (
        "[error] JAX has no backend: Unknown flag in XLA_FLAGS: --xla_tpu_anything=" in done.stdout
    )
    assert "-> correct XLA_FLAGS; flags that begin with --xla_tpu belong into" in done.stdout
