"""A snapshot of a process and its machine; the rules judge it without looking again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Device(NamedTuple):
    """One of JAX's devices.

    Attributes:
        kind: such as "TPU v5 lite".
        used: bytes of its memory in use; None where that is not told (CPU).
        limit: bytes that may be used.
        capability: compute capability of an NVIDIA GPU, such as "8.0" of an A100.
    """

    kind: str
    used: int | None = None
    limit: int | None = None
    capability: str | None = None


class Requirement(NamedTuple):
    """A package's requirement of another.

    Attributes:
        owner: the package that requires it.
        name: the package that is required.
        versions: such as ">=0.10,<0.13"; empty for any.
        needed: whether it must be there at all.
    """

    owner: str
    name: str
    versions: str
    needed: bool


@dataclass(frozen=True)
class Snapshot:
    """A process and its machine. The defaults are a CPU on which nothing is amiss.

    Attributes:
        python: version of Python.
        system: operating system and processor's architecture.
        environ: environment variables.
        versions: versions of all installed packages, by normalized name.
        running_jax: the version that this process imported; None if that is not told.
        requirements: bnjax's, and those of JAX that concern jaxlib, plugins and libtpu.
        pinned: versions in the constraints.txt of the clone that bnjax runs from, if it does; on
            Colab in its constraints-colab.txt.
        plugged: accelerators that the system shows, "NVIDIA GPU" or "TPU", with or without JAX.
        cores: number of cores that the process may use; None if unknown.
        quota: cores that the control group allows; None without a limit.
        glibc: whether the C library is GNU's.
        backend: JAX's backend; None if it was not started.
        failure: why it was not started.
        devices: JAX's devices of all hosts.
        settings: JAX's settings, by name.
        cache_writable: whether the folder of compiled programs is; None without a local one.
        tensorflow_sees: accelerators that an imported TensorFlow may take, as it names them.
        distributed: whether `jax.distributed` is initialized.
        notebook: whether the process is a notebook's kernel.
        unread: facts that could not be read, and why.
    """

    python: str = "3.12.0"
    system: str = "Linux x86_64"
    environ: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    running_jax: str | None = None
    requirements: tuple[Requirement, ...] = ()
    pinned: Mapping[str, str] = field(default_factory=dict)
    plugged: tuple[str, ...] = ()
    cores: int | None = 2
    quota: float | None = None
    glibc: bool = False
    backend: str | None = "cpu"
    failure: str = ""
    devices: tuple[Device, ...] = (Device("cpu"),)
    settings: Mapping[str, Any] = field(
        default_factory=lambda: {"jax_compilation_cache_dir": "programs"}
    )
    cache_writable: bool | None = True
    tensorflow_sees: tuple[str, ...] = ()
    distributed: bool = False
    notebook: bool = False
    unread: tuple[str, ...] = ()

    @property
    def colab(self) -> bool:
        """Whether this is a runtime of Google Colab, whose JAX goes with its device."""
        return "COLAB_RELEASE_TAG" in self.environ


def host_count(environ: Mapping[str, str]) -> int:
    """Returns how many processes work together, by Slurm, Open MPI or Cloud TPU."""
    # The count of Slurm's step: a batch script and a shell in a job have the job's variables, too.
    counts = [1, _integer(environ.get("SLURM_STEP_NUM_TASKS"))]
    counts.append(_integer(environ.get("OMPI_COMM_WORLD_SIZE")))
    slices = max(1, _integer(environ.get("MEGASCALE_NUM_SLICES")))
    workers = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES") or ""
    counts.append(slices * max(1, len(list(filter(None, workers.split(","))))))
    return max(counts)


def hosts_wait(environ: Mapping[str, str], distributed: bool) -> bool:
    """Whether several hosts have yet to find each other, before any of them starts a backend."""
    return host_count(environ) > 1 and not distributed


def _integer(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 1
