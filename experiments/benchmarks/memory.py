"""The machine's memory: its bandwidth, and whether the C library keeps what a step gives back."""

import os
import platform
import re
import sys
import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from bnjax.doctor import KEEP_MEMORY as KEEP

SHARE_ACCELERATOR = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
"""Environment under which JAX leaves some of an accelerator's memory to PyTorch."""


def restart_keeping_memory() -> None:
    """Starts this program anew, once, under `KEEP` and `SHARE_ACCELERATOR`; does not return then.

    glibc reads its settings when a process starts. What the caller's environment sets stands. On
    other systems than Linux with glibc there is nothing to keep.
    """
    wanted = dict(SHARE_ACCELERATOR)
    if platform.libc_ver()[0] == "glibc":
        wanted |= KEEP
    missing = {name: value for name, value in wanted.items() if name not in os.environ}
    if not missing:
        return
    settings = " ".join(f"{name}={value}" for name, value in missing.items())
    print(f"Starting anew with {settings}", file=sys.stderr, flush=True)
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **missing})


def settings(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What the environment says about allocation, for a result's provenance; without folders."""
    names = {*KEEP, *SHARE_ACCELERATOR, "GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_MMAP_THRESHOLD_"}
    return {
        name: re.sub(r"[^\s:=]*/", "", environ[name]) for name in sorted(names) if name in environ
    }


def bytes_per_second(size: int, tries: int) -> float:
    """The best rate of a + 3 b in float32, which reads two arrays and writes one.

    Args:
        size: bytes of each array, >= 4.
        tries: how often; one more, uncounted, comes first.

    Raises:
        ValueError: if size is below four or tries below one.
    """
    if size < 4 or tries < 1:
        raise ValueError(f"size must be >= 4 and tries >= 1, got {size} and {tries}.")
    a, b = (jnp.full(size // 4, value, jnp.float32) for value in (1, 2))
    triad = jax.jit(lambda a, b: a + 3 * b)
    calls = 1 if jax.default_backend() == "cpu" else 20  # where the launch takes time, too
    seconds = []
    for _ in range(tries + 1):
        begin = time.perf_counter()
        for _ in range(calls):
            result = triad(a, b)
        result.block_until_ready()
        seconds.append((time.perf_counter() - begin) / calls)
    return 3 * a.nbytes / min(seconds[1:])
