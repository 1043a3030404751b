"""The doctor: what it finds on machines that are made up here."""

import pytest

from bnjax.doctor import (
    KEEP_MEMORY,
    Device,
    Requirement,
    Snapshot,
    examine,
    report,
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
        "Runtime > Disconnect and delete runtime, then install nothing over its packages",
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
        machine(environ={"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "16"}),
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
        "restart the process",
    ),
    "a version outside of bnjax's range": (
        machine(
            versions={"flax": "0.11.0"},
            requirements=(Requirement("bnjax", "flax", ">=0.12.8,<0.13", True),),
        ),
        "warning: bnjax needs flax>=0.12.8,<0.13; flax 0.11.0 is installed",
        "pip install 'flax>=0.12.8,<0.13'",
    ),
    "the same of JAX beside a TPU": (
        machine(
            TPU,
            versions={"jax": "0.6.2", "libtpu": "0.0.17"},
            requirements=(Requirement("bnjax", "jax", ">=0.7.2,<0.13", True),),
        ),
        "warning: bnjax needs jax>=0.7.2,<0.13; jax 0.6.2 is installed",
        "pip install 'jax[tpu]>=0.7.2,<0.13'",
    ),
    "an older runtime of Colab": (
        machine(
            TPU,
            environ=COLAB,
            versions={"jax": "0.5.3"},
            requirements=(Requirement("bnjax", "jax", ">=0.7.2,<0.13", True),),
        ),
        "warning: bnjax needs jax>=0.7.2,<0.13; jax 0.5.3 is installed",
        "Runtime > Change runtime type > Runtime version: Latest",
    ),
    "a JAX that no runtime of Colab has": (
        machine(
            TPU,
            environ=COLAB,
            versions={"jax": "0.7.2"},
            pinned={"jax": "0.7.2"},
            requirements=(Requirement("bnjax", "jax", ">=0.10", True),),
        ),
        "warning: bnjax needs jax>=0.10; jax 0.7.2 is installed",
        "take the newest bnjax",
    ),
    "a JAX that is newer than bnjax": (
        machine(
            TPU,
            environ=COLAB,
            versions={"jax": "0.14.0"},
            requirements=(Requirement("bnjax", "jax", ">=0.7.2,<0.13", True),),
        ),
        "warning: bnjax needs jax>=0.7.2,<0.13; jax 0.14.0 is installed",
        "take the newest bnjax",
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
    "a GPU's products, from Ampere on": (
        machine(GPU, settings=CACHE, devices=(Device("NVIDIA A100", 1, 80_000, "8.0"),)),
        "note: This backend rounds the factors of float32 matrix products and convolutions to Ten",
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
        "del them, or restart the process",
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


def test_a_version_that_is_none_hides_no_other_finding():
    versions = {"jax-cuda13-plugin": "local!", "jaxlib": "0.10.2"}
    worst, *_, last = examine(
        machine(GPU, versions=versions, environ={"OMPI_COMM_WORLD_SIZE": "2"})
    )
    assert "2 processes" in worst.what
    assert "InvalidVersion" in last.what


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
        machine(environ={"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "16"}, distributed=True),
        machine(environ={"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16"}),  # a batch script
        machine(environ={"SLURM_STEP_NUM_TASKS": "many"}),
        machine(TPU, environ={"TPU_WORKER_HOSTNAMES": "localhost"}),
        machine(cores=2, quota=2.0),
        machine(devices=(Device("cpu"), Device("cpu"))),
        machine(versions={"jaxlib": "0.10.2.dev1", "jax-cuda13-plugin": "0.10.2"}, **GPU),
        machine(GPU, settings=CACHE, devices=(Device("Tesla T4", 1, 15_000, "7.5"),)),
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
