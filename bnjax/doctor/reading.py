"""Reads this process and its machine, once, into a snapshot."""

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import jax
from packaging.requirements import Requirement as _Requirement

from bnjax.cores import usable_cores
from bnjax.doctor.snapshot import Device, Requirement, Snapshot, hosts_wait

T = TypeVar("T")

_SETTINGS = (
    "jax_platforms",
    "jax_default_matmul_precision",
    "jax_enable_x64",
    "jax_compilation_cache_dir",
    "jax_disable_jit",
    "jax_debug_nans",
)
_OWNERS = {  # whose requirements are read, of which extras
    "bnjax": ("data", "train", "figures", "experiments"),
    "jax": ("tpu", "cuda12", "cuda13"),
    "jax-cuda12-plugin": (),
    "jax-cuda13-plugin": (),
}
_PATIENCE = 120.0  # seconds for a backend to start; a busy host of TPUs takes half a minute
_TPUS = {  # PCI devices of Google, as JAX looks for them
    *("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"),
}


def take_snapshot(patience: float = _PATIENCE, *, root: Path = Path("/")) -> Snapshot:
    """Reads this process and its machine.

    Starts JAX's backend, unless several hosts have to start theirs together and
    `jax.distributed` is not initialized: then a backend would wait for the others, or make
    initializing impossible.

    Args:
        patience: seconds that the backend may take.
        root: root of the file system, where accelerators and the control group are looked up.
    """
    unread: list[str] = []

    def read(what: str, probe: Callable[[], T], otherwise: T) -> T:
        try:
            return probe()
        except Exception as error:
            unread.append(f"{what} ({_reason(error)})")
            return otherwise

    environ = dict(os.environ)
    distributed = read("jax.distributed", jax.distributed.is_initialized, False)
    if hosts_wait(environ, distributed):
        started = _not_started("several hosts start theirs together")
    else:
        started = _start_backend(environ, patience)
    no_settings: dict[str, Any] = {}
    settings = read("JAX's settings", _settings, no_settings)
    return Snapshot(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        environ=environ,
        versions=read("installed packages", _versions, {}),
        running_jax=jax.__version__,
        requirements=read("requirements", _requirements, ()),
        pinned=read("constraints", lambda: _pinned(environ), {}),
        plugged=read("device files", lambda: _plugged(root), ()),
        cores=read("cores", usable_cores, None),
        quota=read("the control group", lambda: _quota(root / "sys/fs/cgroup"), None),
        glibc=read("the C library", lambda: platform.libc_ver()[0] == "glibc", False),
        **started,
        settings=settings,
        cache_writable=read("the compilation cache", lambda: _writable(settings), None),
        tensorflow_sees=read("TensorFlow's devices", _tensorflow_sees, ()),
        distributed=distributed,
        notebook="ipykernel.zmqshell" in sys.modules,
        unread=tuple(unread),
    )


def _not_started(failure: str) -> dict[str, Any]:
    return {"backend": None, "devices": (), "failure": failure}


def _start_backend(environ: Mapping[str, str], patience: float) -> dict[str, Any]:
    """Returns the snapshot's `backend`, `devices` and `failure`.

    In a thread: a backend that waits for a driver or for other hosts never returns.
    """
    refused = _refused(environ.get("XLA_FLAGS", ""))
    if refused:
        return _not_started(refused)
    started = _not_started(f"it did not start within {patience:g} s")

    def start() -> None:
        nonlocal started
        try:
            devices = tuple(map(_device, jax.devices()))
            started = {"backend": jax.default_backend(), "devices": devices, "failure": ""}
        except Exception as error:
            started = _not_started(_reason(error))

    thread = threading.Thread(target=start, daemon=True)
    thread.start()
    thread.join(patience)
    return started


@cache
def _refused(flags: str) -> str:
    """Returns XLA's complaint about unknown flags, for which it would end this process."""
    if not flags:
        return ""
    try:
        tried = subprocess.run(
            [sys.executable, "-c", "import jax; jax.devices()"],
            env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError):
        return ""  # then XLA itself must say it
    found = re.findall(r"Unknown flags? in XLA_FLAGS: .*", tried.stderr)
    return found[0] if tried.returncode and found else ""


def _device(device: Any) -> Device:
    try:
        memory = device.memory_stats() or {}
    except Exception:  # some platforms, and devices of other hosts, do not tell
        memory = {}
    return Device(
        device.device_kind,
        memory.get("bytes_in_use"),
        memory.get("bytes_limit"),
        getattr(device, "compute_capability", None),
    )


def _settings() -> dict[str, Any]:
    return {name: jax.config.values.get(name) for name in _SETTINGS}


def _versions() -> dict[str, str]:
    versions: dict[str, str] = {}
    for found in importlib.metadata.distributions():
        metadata = found.metadata  # parsed anew each time that it is asked
        if metadata["Name"]:  # the first on the path is the one that is imported
            versions.setdefault(_normal(metadata["Name"]), found.version)
    return versions


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _requirements() -> tuple[Requirement, ...]:
    found = []
    for owner, extras in _OWNERS.items():
        try:
            texts = importlib.metadata.requires(owner) or ()
        except importlib.metadata.PackageNotFoundError:
            continue
        for wanted in map(_Requirement, texts):
            marker = wanted.marker
            always = marker is None or marker.evaluate({"extra": ""})
            if always or any(marker.evaluate({"extra": extra}) for extra in extras if marker):
                found.append(
                    Requirement(owner, _normal(wanted.name), str(wanted.specifier), always)
                )
    return tuple(dict.fromkeys(found))


def _pinned(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the pinned versions of the clone that bnjax runs from; none without a clone."""
    name = "constraints-colab.txt" if "COLAB_RELEASE_TAG" in environ else "constraints.txt"
    file = Path(__file__).parents[2] / name
    if not file.exists():
        return {}
    pinned = {}
    for line in file.read_text().splitlines():
        text = line.partition("#")[0].strip()
        if text:
            wanted = _Requirement(text)
            if wanted.marker is None or wanted.marker.evaluate():
                pinned[_normal(wanted.name)] = next(iter(wanted.specifier)).version
    return pinned


def _plugged(root: Path) -> tuple[str, ...]:
    found = []
    nvidia = ("nvidia0", "nvidiactl", "dxg")  # the last under Windows' Linux
    if any((root / "dev" / name).exists() for name in nvidia):
        found.append("NVIDIA GPU")
    google = [
        (file.parent / "device").read_text().strip()
        for file in (root / "sys/bus/pci/devices").glob("*/vendor")
        if file.read_text().strip() == "0x1ae0"
    ]
    if _TPUS.intersection(google) or any((root / "dev").glob("accel[0-9]*")):
        found.append("TPU")
    return tuple(found)


def _quota(group: Path) -> float | None:
    """Returns the cores that the control group (version 2 or 1) allows."""
    if (group / "cpu.max").exists():
        limit, period = (group / "cpu.max").read_text().split()
    elif (group / "cpu/cpu.cfs_quota_us").exists():
        limit, period = (
            (group / f"cpu/cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")
        )
    else:
        return None
    return None if limit in ("max", "-1") else int(limit) / int(period)


def _writable(settings: Mapping[str, Any]) -> bool | None:
    folder = settings.get("jax_compilation_cache_dir")
    if not folder or "://" in folder:
        return None
    path = Path(folder).absolute()
    there = next(part for part in (path, *path.parents) if part.exists())
    return there.is_dir() and os.access(there, os.W_OK)


def _tensorflow_sees() -> tuple[str, ...]:
    """Asks only a TensorFlow that is imported already: importing it takes seconds."""
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None:
        return ()
    visible = tensorflow.config.get_visible_devices()
    return tuple(device.name for device in visible if device.device_type != "CPU")


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
