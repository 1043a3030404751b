"""The doctor: findings for machines made up here, and for this one."""

import importlib.metadata
import os
import subprocess
import sys
import threading
import types

import jax
import pytest

from bnjax.doctor import (
    KEEP_MEMORY,
    Device,
    Requirement,
    Snapshot,
    check,
    examine,
    report,
    take_snapshot,
)

CACHE = {"jax_compilation_cache_dir": "programs"}
EXACT = CACHE | {"jax_default_matmul_precision": "highest"}
GPU = {
    "backend": "gpu",
    "devices": (Device("NVIDIA H100", 1, 80_000),),
    "settings": EXACT,
    "environ": {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_FLAGS": "--xla_gpu_deterministic_ops=true",
    },
}
TPU = {"backend": "tpu", "devices": (Device("TPU v5 lite", 1, 16_000),), "settings": EXACT}
COLAB = {"COLAB_RELEASE_TAG": "release"}


def machine(base=None, **changes):
    """A machine on which nothing is amiss but what is changed."""
    given = {**(base or {}), **changes}
    if base and "environ" in changes:
        given["environ"] = {**base.get("environ", {}), **changes["environ"]}
    return Snapshot(**given)


@pytest.mark.parametrize("base", [{}, GPU, TPU])
def test_nothing_is_found_where_nothing_is_amiss(base):
    assert examine(machine(base)) == []
    assert report(machine(base)).endswith("Nothing will bite here.")


CASES = {
    "fallback from a GPU": (
        machine(plugged=("NVIDIA GPU",), versions={"jax": "0.10.2"}),
        "error: JAX runs on the CPU, although there is: NVIDIA GPU",
        "pip install 'jax[cuda13]==0.10.2'",
    ),
    "fallback from a GPU with a plugin": (
        machine(
            plugged=("NVIDIA GPU",), versions={"jax-cuda13-plugin": "0.10.2", "jaxlib": "0.10.2"}
        ),
        "error: JAX runs on the CPU",
        "nvidia-smi shows driver and GPU; JAX_PLATFORMS=cuda python",
    ),
    "a hidden GPU": (
        machine(plugged=("NVIDIA GPU",), environ={"CUDA_VISIBLE_DEVICES": ""}),
        "error: JAX runs on the CPU",
        "unset CUDA_VISIBLE_DEVICES",
    ),
    "fallback from a TPU": (
        machine(plugged=("TPU",), versions={"libtpu": "0.0.42"}),
        "error: JAX runs on the CPU, although there is: TPU",
        "JAX_PLATFORMS=tpu python",
    ),
    "fallback from a TPU that the environment names": (
        machine(environ={"TPU_ACCELERATOR_TYPE": "v5litepod-8"}),
        "error: JAX runs on the CPU, although there is: TPU",
        "pip install 'jax[tpu]'",
    ),
    "Colab's older TPU nodes": (
        machine(environ=COLAB | {"COLAB_TPU_ADDR": "10.0.0.2:8470"}),
        "error: JAX runs on the CPU, although there is: TPU",
        "v5e-1 TPU",
    ),
    "fallback on Colab": (
        machine(environ=COLAB | {"COLAB_GPU": "1"}),
        "error: JAX runs on the CPU, although there is: NVIDIA GPU",
        "install nothing over its JAX",
    ),
    "the CPU as it was told": (
        machine(plugged=("TPU",), settings=CACHE | {"jax_platforms": "cpu"}),
        "note: JAX runs on the CPU as it was told (JAX_PLATFORMS=cpu); there is also: TPU",
        "unset JAX_PLATFORMS",
    ),
    "a Colab without accelerator": (
        machine(environ=COLAB | {"COLAB_GPU": "0"}),
        "note: This Colab has no accelerator",
        "Change runtime type",
    ),
    "a compiler without its chip": (
        machine(versions={"libtpu": "0.0.42"}),
        "note: libtpu is installed, and there is no TPU",
        "export JAX_PLATFORMS=cpu",
    ),
    "no backend": (
        machine(backend=None, devices=(), failure="RuntimeError: no"),
        "error: JAX has no backend: RuntimeError: no.",
        "says more",
    ),
    "a backend that was asked for": (
        machine(backend=None, devices=(), failure="no", environ={"JAX_PLATFORMS": "cuda"}),
        "error: JAX has no backend: no.",
        "unset JAX_PLATFORMS",
    ),
    "a busy TPU": (
        machine(backend=None, devices=(), failure="The TPU is already in use by process 7"),
        "error: JAX has no backend",
        "end the other process",
    ),
    "a backend that waits": (
        machine(backend=None, devices=(), failure="it did not start within 9 s"),
        "error: JAX has no backend",
        "other hosts of the same slice",
    ),
    "Slurm": (
        machine(environ={"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16"}),
        "error: The environment is that of 16 processes",
        "initialize_hosts()",
    ),
    "Open MPI": (
        machine(environ={"OMPI_COMM_WORLD_SIZE": "2"}),
        "error: The environment is that of 2 processes",
        "initialize_hosts()",
    ),
    "a TPU pod": (
        machine(TPU, environ={"TPU_WORKER_HOSTNAMES": "a,b,c,d", "MEGASCALE_NUM_SLICES": "2"}),
        "error: The environment is that of 8 processes",
        "initialize_hosts()",
    ),
    "TensorFlow on the GPU": (
        machine(GPU, tensorflow_sees=("/physical_device:GPU:0",)),
        "warning: TensorFlow is imported and may take /physical_device:GPU:0",
        "tf.config.set_visible_devices([], 'GPU')",
    ),
    "TensorFlow on the TPU": (
        machine(TPU, tensorflow_sees=("/physical_device:TPU:0",)),
        "error: TensorFlow is imported",
        "'TPU'",
    ),
    "TensorFlow beside a GPU": (
        machine(GPU, versions={"tensorflow": "2.21.0"}),
        "note: TensorFlow is installed",
        "tf.config.set_visible_devices([], 'GPU')",
    ),
    "TensorFlow's own libtpu": (
        machine(TPU, plugged=("TPU",), versions={"tensorflow-tpu": "2.19"}),
        "error: tensorflow-tpu is installed",
        "pip uninstall tensorflow-tpu",
    ),
    "JAX renewed under a running process": (
        machine(versions={"jax": "0.12.0"}, running_jax="0.10.2"),
        "error: This process runs JAX 0.10.2, and 0.12.0 has been installed since",
        "Restart session",
    ),
    "a version outside of bnjax's range": (
        machine(
            versions={"flax": "0.11.0"},
            requirements=(Requirement("bnjax", "flax", ">=0.12.8,<0.13", True),),
        ),
        "warning: bnjax needs flax>=0.12.8,<0.13; flax 0.11.0 is installed",
        "pip install 'flax>=0.12.8,<0.13'",
    ),
    "the same of JAX on Colab": (
        machine(
            TPU,
            environ=COLAB,
            versions={"jax": "0.9.0"},
            requirements=(Requirement("bnjax", "jax", ">=0.10", True),),
        ),
        "warning: bnjax needs jax>=0.10; jax 0.9.0 is installed",
        "choose a runtime that has it",
    ),
    "a package that is missing": (
        machine(requirements=(Requirement("bnjax", "tyro", ">=1.0", True),)),
        "warning: bnjax needs tyro>=1.0, which is not installed",
        "pip install 'tyro>=1.0'",
    ),
    "a libtpu of another JAX": (
        machine(
            TPU,
            versions={"libtpu": "0.0.40"},
            requirements=(Requirement("jax", "libtpu", "==0.0.42.*", False),),
        ),
        "error: jax needs libtpu==0.0.42.*; libtpu 0.0.40 is installed",
        "pip install 'libtpu==0.0.42.*'",
    ),
    "a plugin of another jaxlib": (
        machine(GPU, versions={"jax-cuda13-plugin": "0.10.1", "jaxlib": "0.10.2"}),
        "error: jax-cuda13-plugin 0.10.1 does not go with jaxlib 0.10.2",
        "pip install 'jax-cuda13-plugin[with-cuda]==0.10.2'",
    ),
    "two CUDA plugins": (
        machine(GPU, versions={"jax-cuda12-plugin": "1", "jax-cuda13-plugin": "1"}),
        "warning: JAX's plugins for CUDA 12 and CUDA 13 are both installed",
        "pip uninstall one",
    ),
    "other versions than the results'": (
        machine(pinned={"jaxlib": "0.10.2", "six": "1"}, versions={"jaxlib": "0.12.0", "six": "2"}),
        "note: Not as in constraints.txt: jaxlib 0.12.0 (0.10.2).",
        "pip install -c constraints.txt -e .",
    ),
    "a TPU's products": (
        machine(TPU, settings=CACHE),
        "note: This backend rounds the factors of float32 matrix products and convolutions to bfl",
        '"jax_default_matmul_precision", "highest"',
    ),
    "a GPU's products": (
        machine(GPU, settings=CACHE | {"jax_default_matmul_precision": "default"}),
        "note: This backend rounds the factors of float32 matrix products and convolutions to Ten",
        '"jax_default_matmul_precision", "highest"',
    ),
    "float64 on a TPU": (
        machine(TPU, settings=EXACT | {"jax_enable_x64": True}),
        "warning: float64 is on",
        '"jax_enable_x64", False',
    ),
    "float64": (
        machine(settings=CACHE | {"jax_enable_x64": True}),
        "note: float64 is on",
        '"jax_enable_x64", False',
    ),
    "a GPU's kernels": (
        machine(GPU, environ={"XLA_FLAGS": ""}),
        "note: Two runs on this GPU may differ",
        "--xla_gpu_deterministic_ops=true",
    ),
    "a flag that max pooling does not survive": (
        machine(GPU, environ={"XLA_FLAGS": "--xla_gpu_exclude_nondeterministic_ops=true"}),
        "warning: --xla_gpu_exclude_nondeterministic_ops does not compile",
        "--xla_gpu_deterministic_ops=true",
    ),
    "no compilation": (
        machine(settings=CACHE | {"jax_disable_jit": True}),
        "warning: jax_disable_jit is on",
        "unset JAX_DISABLE_JIT",
    ),
    "checks for NaN": (
        machine(settings=CACHE | {"jax_debug_nans": True}),
        "note: jax_debug_nans is on",
        "unset JAX_DEBUG_NANS",
    ),
    "no compilation cache": (
        machine(settings={}),
        "note: Compiled programs are not kept",
        "export JAX_COMPILATION_CACHE_DIR=",
    ),
    "a compilation cache that cannot be written": (
        machine(cache_writable=False),
        "warning: The folder for compiled programs (jax_compilation_cache_dir) cannot be written",
        "export JAX_COMPILATION_CACHE_DIR=",
    ),
    "a control group's quota": (
        machine(cores=64, quota=2.5),
        "warning: The control group allows 2.5 cores, and the process sees 64",
        "taskset -c 0-1 python",
    ),
    "more CPU devices than cores": (
        machine(devices=(Device("cpu"),) * 8),
        "note: 8 CPU devices share 2 cores",
        "unset JAX_NUM_CPU_DEVICES",
    ),
    "a GPU's memory": (
        machine(GPU, environ={"XLA_PYTHON_CLIENT_PREALLOCATE": "true"}),
        "note: JAX takes 0.75 of the GPU's memory",
        "export XLA_PYTHON_CLIENT_PREALLOCATE=false",
    ),
    "a slow allocator": (
        machine(GPU, environ={"XLA_PYTHON_CLIENT_ALLOCATOR": "platform"}),
        "warning: XLA_PYTHON_CLIENT_ALLOCATOR=platform",
        "unset XLA_PYTHON_CLIENT_ALLOCATOR",
    ),
    "memory that an earlier run holds": (
        machine(TPU, devices=(Device("TPU v5 lite", int(9e9), int(16e9)),)),
        "warning: 9.0 of 16.0 GB on TPU v5 lite are in use already",
        "restart the kernel",
    ),
    "glibc": (
        machine(glibc=True, environ={"MALLOC_MMAP_MAX_": "0"}),
        "note: glibc returns the memory of every step",
        "export MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1099511627776",
    ),
    "what could not be read": (
        machine(unread=("cores (OSError: no)",)),
        "note: Could not be read: cores (OSError: no)",
        "report",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_pitfall_is_found_alone_with_its_remedy(case):
    snapshot, said, remedy = CASES[case]
    (finding,) = examine(snapshot)
    assert f"{finding.severity}: {finding.what}".startswith(said)
    assert remedy in finding.remedy


@pytest.mark.parametrize(
    "environ",
    [
        KEEP_MEMORY,
        {
            "GLIBC_TUNABLES": "glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:"
            "glibc.malloc.trim_threshold=1099511627776"
        },
        {"LD_PRELOAD": "libjemalloc.so.2"},
    ],
)
def test_memory_that_is_kept_is_no_finding(environ):
    assert examine(machine(glibc=True, environ=environ)) == []


@pytest.mark.parametrize(
    "snapshot",
    [
        machine(environ={"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16"}, distributed=True),
        machine(environ={"SLURM_NTASKS": "16"}),
        machine(environ={"SLURM_JOB_ID": "7", "SLURM_NTASKS": "many"}),
        machine(TPU, environ={"TPU_WORKER_HOSTNAMES": "localhost"}),
        machine(cores=2, quota=2.0),
        machine(devices=(Device("cpu"), Device("cpu"))),
        machine(versions={"jaxlib": "0.10.2.dev1", "jax-cuda13-plugin": "0.10.2"}, **GPU),
    ],
)
def test_what_only_looks_like_a_pitfall_is_none(snapshot):
    assert examine(snapshot) == []


def test_the_worst_comes_first():
    found = examine(
        machine(settings={"jax_disable_jit": True}, plugged=("TPU",), cores=4, quota=1.0)
    )
    assert [finding.severity for finding in found] == ["error", "warning", "warning", "note"]


def test_the_report_keeps_a_command_in_one_piece():
    text = report(machine(glibc=True, settings={}, versions={"jax": "1", "six": "2"}))
    assert "Python 3.12.0 on Linux x86_64; jax 1\n" in text
    assert "backend cpu: 1 x cpu; 2 cores\n" in text
    command = " ".join(f"{name}={value}" for name, value in KEEP_MEMORY.items())
    assert f"       -> export {command}\n" in text
    assert text.endswith("Nothing worse than notes.")
    assert max(map(len, text.partition("->")[0].splitlines())) <= 100
    assert "Nothing" not in report(machine(cores=4, quota=1.0))


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
    assert "0.10" in wanted["bnjax", "jax"].versions
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
    monkeypatch.setenv("SLURM_NTASKS", "2")
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


def test_the_command_survives_flags_that_xla_does_not_know():
    """XLA ends a process that starts with them."""
    done = run(XLA_FLAGS="--xla_tpu_anything=true")
    assert done.returncode == 0, done.stderr
    assert (
        "[error] JAX has no backend: Unknown flag in XLA_FLAGS: --xla_tpu_anything=" in done.stdout
    )
    assert "-> correct XLA_FLAGS; flags that begin with --xla_tpu belong into" in done.stdout
