"""Rules about settings: their cost in time, memory and digits."""

from collections.abc import Iterator

from bnjax.doctor.finding import Finding
from bnjax.doctor.remedies import first, restart, setting, variables
from bnjax.doctor.snapshot import Device, Snapshot

KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}
"""Environment under which glibc gives no memory back to the system while the process lives.

Without it every large array is a fresh mapping, whose pages the kernel clears at first touch, again
at every step. All three are needed: the second alone moves large arrays into the threads' own
arenas, which are unmapped whole as soon as they are empty, whatever the third says.
"""

_HELD = 0.1  # share of a device's memory that a fresh start does not use


def _memory(seen: Snapshot) -> Iterator[Finding]:
    environ = seen.environ
    if seen.backend == "gpu":
        if environ.get("XLA_PYTHON_CLIENT_ALLOCATOR") == "platform":
            yield Finding(
                "warning",
                "XLA_PYTHON_CLIENT_ALLOCATOR=platform asks the driver for every array: slow.",
                variables(seen, XLA_PYTHON_CLIENT_ALLOCATOR=None),
            )
        elif environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "true").lower() not in ("false", "0"):
            share = environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75")
            yield Finding(
                "note",
                f"JAX takes {share} of the GPU's memory at its start, whatever it needs.",
                "where another program uses this GPU: "
                + variables(seen, XLA_PYTHON_CLIENT_PREALLOCATE="false"),
            )
    full = [d for d in seen.devices if d.used and d.limit and d.used > _HELD * d.limit]
    if full:
        worst = max(full, key=lambda device: device.used or 0)
        yield Finding(
            "warning",
            f"{(worst.used or 0) / 1e9:.1f} of {(worst.limit or 0) / 1e9:.1f} GB on {worst.kind} "
            "are in use already, by arrays of this process.",
            f"del them, or {restart(seen)} before the next run",
        )
    # The C library reads its own when the process starts: in Colab's kernel nobody can set them.
    if seen.backend == "cpu" and seen.glibc and not seen.colab and not _keeps_memory(seen):
        settings = " ".join(f"{name}={value}" for name, value in KEEP_MEMORY.items())
        yield Finding(
            "note",
            "glibc returns the memory of every step to the system, which clears it again: layers "
            "that are bound by memory take longer (experiments/benchmarks).",
            f"export {settings}" + (", then start Jupyter from that shell" * seen.notebook),
        )


def _keeps_memory(seen: Snapshot) -> bool:
    tunables = seen.environ.get("GLIBC_TUNABLES", "")
    by_name = all(name in seen.environ for name in KEEP_MEMORY)
    by_tunable = all(
        f"glibc.malloc.{name}=" in tunables for name in ("arena_max", "mmap_max", "trim_threshold")
    )
    other = any(name in seen.environ.get("LD_PRELOAD", "") for name in ("jemalloc", "tcmalloc"))
    return by_name or by_tunable or other


def _cores(seen: Snapshot) -> Iterator[Finding]:
    if seen.cores is None:
        return
    if seen.quota is not None and seen.quota < seen.cores:
        whole = max(1, int(seen.quota))
        yield Finding(
            "warning",
            f"The control group allows {seen.quota:g} cores, and the process sees {seen.cores}: "
            "XLA starts as many threads, which then wait for each other.",
            first(seen, f"import os; os.sched_setaffinity(0, range({whole}))")
            if seen.notebook
            else f"taskset -c 0-{whole - 1} python ...",
        )
    if seen.backend == "cpu" and len(seen.devices) > seen.cores:
        yield Finding(
            "note",
            f"{len(seen.devices)} CPU devices share {seen.cores} cores: right for tests of "
            "parallel code, slow for training.",
            f"{variables(seen, JAX_NUM_CPU_DEVICES=None)}, and take "
            "--xla_force_host_platform_device_count out of XLA_FLAGS",
        )


def _speed(seen: Snapshot) -> Iterator[Finding]:
    if seen.settings.get("jax_disable_jit"):
        yield Finding(
            "warning",
            "jax_disable_jit is on: nothing is compiled.",
            setting(seen, "jax_disable_jit", "False", "unset JAX_DISABLE_JIT"),
        )
    if seen.settings.get("jax_debug_nans"):
        yield Finding(
            "note",
            "jax_debug_nans is on: every result is checked, and a diverged run raises.",
            setting(seen, "jax_debug_nans", "False", "unset JAX_DEBUG_NANS"),
        )
    cache = seen.settings.get("jax_compilation_cache_dir")
    if not cache:
        yield Finding(
            "note",
            "Compiled programs are not kept: every start compiles anew, for minutes with a large "
            "network.",
            _cache(seen),
        )
    elif seen.cache_writable is False:
        yield Finding(
            "warning",
            "The folder for compiled programs (jax_compilation_cache_dir) cannot be written.",
            f"choose another: {_cache(seen)}",
        )


def _cache(seen: Snapshot) -> str:
    folder = 'os.path.expanduser("~/.cache/jax")'
    line = setting(
        seen, "jax_compilation_cache_dir", folder, "export JAX_COMPILATION_CACHE_DIR=~/.cache/jax"
    )
    return f"import os; {line}" if seen.notebook else line


def _numbers(seen: Snapshot) -> Iterator[Finding]:
    rounded = {"tpu": "bfloat16", "gpu": "TensorFloat-32"}.get(seen.backend or "")
    if seen.devices and all(_before_ampere(device) for device in seen.devices):
        rounded = None
    if rounded and seen.settings.get("jax_default_matmul_precision") in (None, "default"):
        yield Finding(
            "note",
            f"This backend rounds the factors of float32 matrix products and convolutions to "
            f"{rounded}: fast, but a result does not equal that of a CPU.",
            'jax.config.update("jax_default_matmul_precision", "highest"), to compare digits',
        )
    if seen.settings.get("jax_enable_x64"):
        yield Finding(
            "warning" if seen.backend == "tpu" else "note",
            "float64 is on: what has no dtype of its own takes twice the memory, and TPUs emulate "
            "it.",
            'jax.config.update("jax_enable_x64", False), unless you need it',
        )
    flags = seen.environ.get("XLA_FLAGS", "")
    if seen.backend == "gpu" and "xla_gpu_exclude_nondeterministic_ops=true" in flags:
        yield Finding(
            "warning",
            "--xla_gpu_exclude_nondeterministic_ops does not compile the gradient of max pooling.",
            _repeatable(seen),
        )
    elif seen.backend == "gpu" and "xla_gpu_deterministic_ops=true" not in flags:
        yield Finding(
            "note",
            "Two runs on this GPU may differ in their last digits: XLA picks kernels by timing.",
            f"to repeat bit by bit, more slowly: {_repeatable(seen)}",
        )


def _before_ampere(device: Device) -> bool:
    """Whether a GPU is older than Ampere, as a T4: those do not round."""
    return device.capability is not None and float(device.capability) < 8


def _repeatable(seen: Snapshot) -> str:
    flags = seen.environ.get("XLA_FLAGS", "").split()
    kept = [flag for flag in flags if "xla_gpu_exclude_nondeterministic_ops" not in flag]
    return variables(seen, XLA_FLAGS=" ".join([*kept, "--xla_gpu_deterministic_ops=true"]))


RULES = (_memory, _cores, _speed, _numbers)
