"""The doctor's words in notebooks and on Google Colab: no remedy that the place does not have."""

import re
from dataclasses import replace

import pytest

from bnjax.doctor import Device, Requirement, Snapshot, examine, report, take_snapshot

VERSIONS = {
    "jax": "0.7.2",
    "jaxlib": "0.7.2",
    "flax": "0.11.2",
    "optax": "0.2.8",
    "numpy": "2.1.3",
    "orbax-checkpoint": "0.12.4",
    "pillow": "11.3.0",
    "tyro": "1.0.17",
}
NEEDS = {"jax": ">=0.7.2,<0.13", "flax": ">=0.11.2,<0.13", "optax": ">=0.2.8,<0.3", "tyro": ">=1.0"}
COLAB = {
    "python": "3.13.15",
    "environ": {"COLAB_RELEASE_TAG": "release-colab_20260819", "COLAB_GPU": "0"},
    "running_jax": "0.7.2",
    "requirements": (
        *(Requirement("bnjax", name, versions, True) for name, versions in NEEDS.items()),
        Requirement("jax", "jaxlib", "<=0.7.2,>=0.7.2", True),
        Requirement("jax", "libtpu", "==0.0.23.*", False),
        Requirement("jax", "jax-cuda12-plugin", "<=0.7.2,>=0.7.2", False),
    ),
    "pinned": {name: version for name, version in VERSIONS.items() if name != "tyro"},
    "glibc": True,
    "settings": {},
    "cache_writable": None,
    "notebook": True,
}
CUDA = {"jax-cuda12-plugin": "0.7.2", "jax-cuda12-pjrt": "0.7.2", "tensorflow": "2.20.0"}


def colab(environ=None, **changes):
    """A runtime as it ships, in a notebook; bnjax was installed into it."""
    given = {**COLAB, "versions": VERSIONS | CUDA, **changes}
    return Snapshot(**given | {"environ": COLAB["environ"] | (environ or {})})


CPU = colab()
T4 = colab(
    {"COLAB_GPU": "1"},
    backend="gpu",
    plugged=("NVIDIA GPU",),
    devices=(Device("Tesla T4", 1, 15_000_000_000, "7.5"),),
)
TPU = colab(
    {"TPU_ACCELERATOR_TYPE": "v5e-1", "TPU_WORKER_HOSTNAMES": "localhost"},
    backend="tpu",
    plugged=("TPU",),
    cores=24,
    devices=(Device("TPU v5 lite", 1, 16_900_000_000),),
    versions=VERSIONS | {"libtpu": "0.0.21.1", "pillow": "12.3.0"},
)

CACHE = """\
[note] Compiled programs are not kept: every start compiles anew, for minutes with a large
       network.
       -> import os; jax.config.update("jax_compilation_cache_dir", \
os.path.expanduser("~/.cache/jax"))
"""
PRINTED = {
    "CPU": (
        CPU,
        """\
Python 3.13.15 on Linux x86_64; jax 0.7.2, jaxlib 0.7.2, flax 0.11.2, optax 0.2.8
backend cpu: 1 x cpu; 2 cores
matrix products default, float64 off, XLA_FLAGS none
[note] This Colab has no accelerator: all works, but slowly.
       -> Runtime > Change runtime type: a TPU (v5e-1) or a GPU
"""
        + CACHE
        + "Nothing worse than notes.",
    ),
    "T4": (
        T4,
        """\
Python 3.13.15 on Linux x86_64; jax 0.7.2, jaxlib 0.7.2, flax 0.11.2, optax 0.2.8
backend gpu: 1 x Tesla T4; 2 cores
matrix products default, float64 off, XLA_FLAGS none
[note] TensorFlow is installed: where it is imported, it takes all memory of the device.
       -> before its first operation: tf.config.set_visible_devices([], 'GPU')
[note] JAX takes 0.75 of the GPU's memory at its start, whatever it needs.
       -> where another program uses this GPU: Runtime > Restart session, and in the first cell: \
import os; os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
"""
        + CACHE
        + """\
[note] Two runs on this GPU may differ in their last digits: XLA picks kernels by timing.
       -> to repeat bit by bit, more slowly: Runtime > Restart session, and in the first cell: \
import os; os.environ["XLA_FLAGS"] = "--xla_gpu_deterministic_ops=true"
Nothing worse than notes.""",
    ),
    "TPU": (
        TPU,
        """\
Python 3.13.15 on Linux x86_64; jax 0.7.2, jaxlib 0.7.2, flax 0.11.2, optax 0.2.8
backend tpu: 1 x TPU v5 lite; 24 cores
matrix products default, float64 off, XLA_FLAGS none
"""
        + CACHE
        + """\
[note] This backend rounds the factors of float32 matrix products and convolutions to bfloat16:
       fast, but a result does not equal that of a CPU.
       -> jax.config.update("jax_default_matmul_precision", "highest"), to compare digits
Nothing worse than notes.""",
    ),
}


@pytest.mark.parametrize("runtime", PRINTED)
def test_what_colab_is_told_as_it_ships(runtime):
    snapshot, printed = PRINTED[runtime]
    assert report(snapshot) == printed


AMISS = {
    "JAX fell back from a GPU": colab({"COLAB_GPU": "1"}, plugged=("NVIDIA GPU",)),
    "the same without a plugin": colab({"COLAB_GPU": "1"}, versions=VERSIONS),
    "JAX fell back from a TPU": replace(TPU, backend="cpu", devices=(Device("cpu"),)),
    "an older TPU node": colab({"COLAB_TPU_ADDR": "10.0.0.2:8470"}),
    "a TPU of another process": replace(TPU, backend=None, devices=(), failure="already in use"),
    "a backend that waits": replace(
        TPU, backend=None, devices=(), failure="it did not start within 9 s"
    ),
    "a platform that is not there": colab(
        {"JAX_PLATFORMS": "cuda"}, backend=None, devices=(), failure="no cuda"
    ),
    "a hidden GPU": colab(
        {"COLAB_GPU": "1", "CUDA_VISIBLE_DEVICES": ""}, plugged=("NVIDIA GPU",), versions=VERSIONS
    ),
    "the CPU as it was told": replace(
        TPU, backend="cpu", devices=(Device("cpu"),), settings={"jax_platforms": "cpu"}
    ),
    "an older JAX": colab(versions=VERSIONS | {"jax": "0.5.3", "jaxlib": "0.5.3"}),
    "a JAX put over Colab's": replace(
        TPU, versions=TPU.versions | {"jax": "0.12.0.1", "jaxlib": "0.12.0.1"}
    ),
    "a bnjax that wants more than Colab has": colab(
        requirements=(Requirement("bnjax", "jax", ">=0.10", True),)
    ),
    "a plugin of another jaxlib": colab(versions=VERSIONS | CUDA | {"jaxlib": "0.7.1"}),
    "two plugins": colab(versions=VERSIONS | CUDA | {"jax-cuda13-plugin": "0.7.2"}),
    "TensorFlow's own libtpu": replace(TPU, versions=TPU.versions | {"tensorflow-tpu": "2.19"}),
    "settings": replace(
        T4,
        settings={"jax_disable_jit": True, "jax_debug_nans": True, "jax_enable_x64": True},
        environ=T4.environ
        | {
            "XLA_FLAGS": "--xla_gpu_exclude_nondeterministic_ops=true",
            "XLA_PYTHON_CLIENT_ALLOCATOR": "platform",
        },
        quota=1.5,
        devices=(Device("Tesla T4", 9_000_000_000, 15_000_000_000, "7.5"),),
    ),
    "an unwritable cache": replace(
        CPU, settings={"jax_compilation_cache_dir": "x"}, cache_writable=False
    ),
    "CPU devices": replace(CPU, devices=(Device("cpu"),) * 8),
    "other versions": colab(versions=VERSIONS | {"numpy": "2.4.0"}),
}


@pytest.mark.parametrize("case", AMISS)
def test_no_remedy_on_colab_touches_its_jax_or_needs_a_shell(case):
    """Its JAX goes with its device; a cell's `!export` is lost with the cell's own shell."""
    found = examine(AMISS[case])
    assert len(found) > len(examine(CPU)) - 2
    for finding in found:
        remedy = finding.remedy
        assert not re.search(r"pip install.*\b(jax|jaxlib|libtpu|flax|numpy)\b", remedy), finding
        assert not re.search(r"\b(export|unset|taskset)\b|constraints\.txt", remedy), finding
        assert "choose a runtime" not in remedy
        assert not re.search(r"(?<![!%])\b(pip|JAX_\w+=\w+ python|nvidia-smi) ", remedy), finding


def test_a_missing_package_is_added_from_a_cell():
    versions = {name: version for name, version in VERSIONS.items() if name != "tyro"}
    worst = examine(colab(versions=versions))[0]
    assert worst.what == "bnjax needs tyro>=1.0, which is not installed."
    assert worst.remedy == "%pip install 'tyro>=1.0'"


def test_libtpu_as_colab_ships_it_is_no_finding():
    """JAX 0.7.2 asks for 0.0.23 and works with 0.0.21.1; elsewhere the difference is told."""
    assert "libtpu" not in report(TPU)
    assert "libtpu==0.0.23.*" in report(replace(TPU, environ={}))
    failed = replace(TPU, backend=None, devices=(), failure="no TPU")
    (error,) = (finding for finding in examine(failed) if finding.severity == "error")
    assert "Disconnect and delete runtime" in error.remedy


def test_versions_on_colab_are_held_against_colabs(monkeypatch):
    """Red if its packages are compared with constraints.txt, which names a newer JAX."""
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    assert "importlib-resources" not in take_snapshot().pinned
    (note,) = (f for f in examine(AMISS["other versions"]) if "Colab (" in f.what)
    assert note.what == (
        "Not as bnjax was tried on Colab (constraints-colab.txt): numpy 2.4.0 (2.1.3)."
    )
    assert note.remedy.startswith("none is needed, unless you installed them")


@pytest.mark.parametrize(
    ("changes", "shell", "notebook"),
    [
        (
            {"settings": {"jax_disable_jit": True, "jax_compilation_cache_dir": "x"}},
            "unset JAX_DISABLE_JIT",
            'jax.config.update("jax_disable_jit", False)',
        ),
        (
            {"cores": 64, "quota": 2.5},
            "taskset -c 0-1 python ...",
            "restart the kernel, and in the first cell: "
            "import os; os.sched_setaffinity(0, range(2))",
        ),
        (
            {"plugged": ("NVIDIA GPU",), "environ": {"CUDA_VISIBLE_DEVICES": ""}},
            "unset CUDA_VISIBLE_DEVICES (it hides the GPU)",
            "restart the kernel, and in the first cell: "
            'import os; os.environ.pop("CUDA_VISIBLE_DEVICES", None) (it hides the GPU)',
        ),
        (
            {"versions": {"libtpu": "0.0.42"}},
            "export JAX_PLATFORMS=cpu",
            "restart the kernel, and in the first cell: "
            'import os; os.environ["JAX_PLATFORMS"] = "cpu"',
        ),
        (
            {"requirements": (Requirement("bnjax", "tyro", ">=1.0", True),)},
            "pip install 'tyro>=1.0'",
            "%pip install 'tyro>=1.0'",
        ),
        (
            {
                "backend": "gpu",
                "environ": {"XLA_FLAGS": "--a=1", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
                "settings": {
                    "jax_compilation_cache_dir": "x",
                    "jax_default_matmul_precision": "highest",
                },
            },
            "to repeat bit by bit, more slowly: "
            "export XLA_FLAGS='--a=1 --xla_gpu_deterministic_ops=true'",
            "to repeat bit by bit, more slowly: restart the kernel, and in the first cell: "
            'import os; os.environ["XLA_FLAGS"] = "--a=1 --xla_gpu_deterministic_ops=true"',
        ),
    ],
)
def test_a_shell_and_a_notebook_get_their_own_words(changes, shell, notebook):
    (in_shell,) = examine(Snapshot(**changes))
    (in_notebook,) = examine(Snapshot(**changes, notebook=True))
    assert (in_shell.remedy, in_notebook.remedy) == (shell, notebook)
