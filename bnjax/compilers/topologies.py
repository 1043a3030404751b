"""Accelerators that are not here, by name: devices that XLA compiles for and nothing runs on.

`v5e:2x4` are eight chips of a TPU v5e, `h100:8` eight GPUs of one host, `cpu:8` eight devices of
this machine's CPU. TPUs need the extra `tpu-aot`, GPUs `gpu-aot`; neither needs a chip or a
driver. Where one is installed, set `JAX_PLATFORMS=cpu` for a process that computes as well.
"""

import importlib.metadata
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

import jax
from jax.experimental import topologies as jax_topologies

from bnjax.extras import install

Platform = Literal["tpu", "cuda", "cpu"]

_SLICES_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SLICES_3D = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
CUBE = 4
"""Edge of the cubes that larger slices of a torus in three dimensions consist of."""
GPUS_PER_HOST = 8

_COMPILERS = ("libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin")

_LIBTPU = {  # what libtpu reads once, as it is loaded; it would ask a cloud host otherwise
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",  # of a host that is not there; changes no program
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # compiling holds no chip: others may, too
}


class MissingCompilerError(ImportError):
    """The package that compiles for a platform is not installed."""


@dataclass(frozen=True)
class Chip:
    """One chip, as its maker states.

    Attributes:
        name: as in a topology's name.
        platform: the one whose compiler it needs.
        memory_bytes: its own; for a CPU device, its share of this machine's.
        matmul_flops_per_second: dense bfloat16 products; None for a CPU.
        memory_bytes_per_second: between chip and memory; None for a CPU.
        link_bytes_per_second: to other chips, each way, all links; None for a CPU.
        most: chips in the largest topology.
    """

    name: str
    platform: Platform
    memory_bytes: int | None = None
    matmul_flops_per_second: float | None = None
    memory_bytes_per_second: float | None = None
    link_bytes_per_second: float | None = None
    most: int = 256


_GIB = 2**30
CHIPS = (
    Chip("v4", "tpu", 32 * _GIB, 275e12, 1_228e9, 300e9, most=4_096),
    Chip("v5e", "tpu", 16 * _GIB, 197e12, 819e9, 200e9),
    Chip("v5p", "tpu", 95 * _GIB, 459e12, 2_765e9, 600e9, most=6_144),
    Chip("v6e", "tpu", 32 * _GIB, 918e12, 1_638e9, 400e9),
    Chip("h100", "cuda", 84_978_434_048, 989e12, 3_352e9, 450e9),
    Chip("cpu", "cpu"),
)
"""From makers' data sheets: Cloud TPU's system architecture pages, NVIDIA's H100 SXM."""

# XLA's GpuTargetConfigProto, as a driver would report it.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 registers_per_core_limit: 65536
  registers_per_block_limit: 65536 core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_memory_size: 84978434048
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclass(frozen=True)
class Topology:
    """Chips that a program can be compiled for.

    Attributes:
        name: such as `v5e:2x4`.
        chip: the kind of each.
        devices: JAX's, one a chip, to make a mesh of. They hold no arrays.
    """

    name: str
    chip: Chip
    devices: tuple[jax.Device, ...]


def find_topology(name: str) -> Topology:
    """Returns a topology and its devices.

    TPUs and GPUs start no backend. `cpu:n` starts JAX, with n CPU devices if it has not started.
    A process that also computes on a TPU of its own must have started it before.

    Args:
        name: `CHIP:SIZE`; the size is a TPU slice's shape, or a number of GPUs or CPU devices.

    Raises:
        ValueError: for a name or size that does not exist, with those that do.
        MissingCompilerError: if the platform's compiler is not installed, with what installs it.
    """
    chip, size = _parse(name)
    if chip.platform == "tpu":
        devices = _tpu(chip, size)
    elif chip.platform == "cuda":
        devices = _cuda(chip, int(size))
    else:
        devices = _cpu(int(size))
        chip = replace(chip, memory_bytes=_host_memory() // len(devices))
    return Topology(name, chip, tuple(devices))


def find_topologies(names: Sequence[str]) -> tuple[list[Topology], dict[str, MissingCompilerError]]:
    """Returns the topologies that can be compiled for, and why the others cannot, by name.

    Raises:
        ValueError: for a topology that does not exist.
        MissingCompilerError: if there is none to compile for.
    """
    _start_with_enough_cpu_devices(names)
    found: list[Topology] = []
    missing: dict[str, MissingCompilerError] = {}
    for name in names:
        try:
            found.append(find_topology(name))
        except MissingCompilerError as error:
            missing[name] = error
    if missing and not found:
        raise next(reversed(missing.values()))
    return found, missing


def _start_with_enough_cpu_devices(names: Sequence[str]) -> None:
    """JAX starts once, with as many as the first topology asks for."""
    counts = [int(size) for size in re.findall(r"\bcpu:([1-9]\d*)\b", " ".join(names))]
    if counts:
        find_topology(f"cpu:{max(counts)}")


def compiler_versions() -> dict[str, str]:
    """Returns the versions of the installed packages that compile for TPUs and GPUs."""
    versions = {}
    for name in _COMPILERS:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _parse(name: str) -> tuple[Chip, str]:
    """Returns the chip and the size, which exists."""
    chips = {chip.name: chip for chip in CHIPS}
    kind, _, size = name.partition(":")
    if kind not in chips:
        raise ValueError(
            f"topology: unknown chip {kind!r} in {name!r}; choose from {', '.join(chips)}, "
            "with a size: v5e:2x4, v4:2x2x2, h100:8, cpu:8."
        )
    chip = chips[kind]
    if chip.platform == "tpu":
        _check_slice(name, chip, size)
    elif not re.fullmatch("[1-9][0-9]*", size):
        raise ValueError(f"topology: {name!r} has no size; give a number, as in {kind}:8.")
    elif chip.platform == "cuda":
        _check_gpus(name, chip, int(size))
    return chip, size


def _check_slice(name: str, chip: Chip, size: str) -> None:
    """Refuses shapes that no slice has: for some of them libtpu ends the process."""
    if chip.name in ("v5e", "v6e"):
        if size not in _SLICES_2D:
            raise ValueError(
                f"topology: there is no slice {name!r}; choose from {', '.join(_SLICES_2D)}."
            )
        return
    edges = [int(edge) for edge in re.findall("[0-9]+", size)]
    cubes = re.fullmatch("[1-9][0-9]*(x[1-9][0-9]*){2}", size) and not any(
        edge % CUBE for edge in edges
    )
    if size not in _SLICES_3D and not (cubes and prod(edges) <= chip.most):
        raise ValueError(
            f"topology: there is no slice {name!r}; choose from {', '.join(_SLICES_3D)}, or "
            f"three multiples of {CUBE} with at most {chip.most:,} chips."
        )


def _check_gpus(name: str, chip: Chip, count: int) -> None:
    if count > chip.most or (count > GPUS_PER_HOST and count % GPUS_PER_HOST):
        raise ValueError(
            f"topology: there is no {name!r}; up to {GPUS_PER_HOST} GPUs are one host's, more "
            f"are whole hosts': multiples of {GPUS_PER_HOST} up to {chip.most}."
        )


def _tpu(chip: Chip, size: str) -> list[jax.Device]:
    # A v4 has two cores; as Cloud TPUs run it, they are one device.
    options: dict[str, Any] = {"chip_config_name": "megacore"} if chip.name == "v4" else {}
    if size == "1x1":  # a host's share is four chips elsewhere; libtpu before 0.0.50 insists on it
        options["chips_per_host_bounds"] = [1, 1, 1]
    with _environment(_LIBTPU):
        try:
            topology = jax_topologies.get_topology_desc(
                platform="tpu", topology_name=f"{chip.name}:{size}", **options
            )
        except RuntimeError as error:
            if "not installed" not in str(error):
                raise
            raise MissingCompilerError(
                f"{chip.name}:{size}: compiling for a TPU needs libtpu, which is not installed: "
                f"{install('tpu-aot')}."
            ) from error
    return topology.devices


def _cuda(chip: Chip, count: int) -> list[jax.Device]:
    hosts = max(1, count // GPUS_PER_HOST)
    try:
        topology = jax_topologies.get_topology_desc(
            platform="cuda",
            topology_name=chip.name,
            target_config=_H100,
            topology=f"1x{hosts}x{count // hosts}",
        )
    except NotImplementedError as error:  # which JAX raises without its plugin
        raise MissingCompilerError(
            f"{chip.name}:{count}: compiling for an NVIDIA GPU needs JAX's CUDA plugin, which is "
            f"not installed: {install('gpu-aot')} (about 4 GB; no driver)."
        ) from error
    return topology.devices


def _cpu(count: int) -> list[jax.Device]:
    if jax.config.values["jax_num_cpu_devices"] < count:
        with suppress(RuntimeError):  # JAX has started: with as many as there are
            jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ValueError(
            f"topology: cpu:{count} needs {count} CPU devices and JAX has started with "
            f"{len(devices)}: ask for it first, or set JAX_NUM_CPU_DEVICES={count}."
        )
    return devices[:count]


def _host_memory() -> int:
    """Returns the bytes of this machine's memory, which its CPU devices share."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Sets variables that are not set, and takes them back."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
