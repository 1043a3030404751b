"""How the process allocates memory, and a new start under which the C library keeps it."""

import os
import platform
import re
import sys
from collections.abc import Mapping

from bnjax.doctor import KEEP_MEMORY as KEEP

SHARE_ACCELERATOR = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
"""Environment under which JAX leaves some of an accelerator's memory to PyTorch."""


def restart_keeping_memory() -> None:
    """Starts this program again, once, under `KEEP` and `SHARE_ACCELERATOR`; then never returns.

    glibc reads its settings when a process starts. Variables that are set already stay as they
    are. `KEEP` is for Linux with glibc alone.
    """
    wanted = dict(SHARE_ACCELERATOR)
    if platform.libc_ver()[0] == "glibc":
        wanted |= KEEP
    missing = {name: value for name, value in wanted.items() if name not in os.environ}
    if not missing:
        return
    settings = " ".join(f"{name}={value}" for name, value in missing.items())
    print(f"Starting again with {settings}", file=sys.stderr, flush=True)
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **missing})


def settings(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns the variables that change allocation, for provenance; paths without their folders."""
    names = {*KEEP, *SHARE_ACCELERATOR, "GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_MMAP_THRESHOLD_"}
    return {
        name: re.sub(r"[^\s:=]*/", "", environ[name]) for name in sorted(names) if name in environ
    }
