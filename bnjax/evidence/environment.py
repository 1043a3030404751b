"""The environment that a run's numbers depend on: versions, commit, device, settings."""

import contextlib
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from bnjax.version import __version__

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
_FOR_IMAGES = ("simplejpeg", "cykooz-resizer")  # in Pillow's stead, where they are installed

Json = Any


def environment() -> dict[str, Json]:
    """Returns versions, commit, backend and numerical settings; starts JAX's backend."""
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "versions": {
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
            **_installed(_FOR_IMAGES),
            "bnjax": __version__,  # of the code that runs; another may be installed
        },
        "git": _git(),
        "backend": jax.default_backend(),
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
        "processor": _processor(),
        "matmul_precision": jax.config.values["jax_default_matmul_precision"],
        "xla_flags": re.sub(r"=/\S*", "=(path)", os.environ.get("XLA_FLAGS", "")),
    }


def _installed(names: Iterable[str]) -> dict[str, str]:
    """Returns the versions of those packages that are installed."""
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def require_commit(out: Path, results: Path) -> None:
    """Raises ValueError if `out` lies in the committed results and the checkout is dirty."""
    if not out.resolve().is_relative_to(results):
        return
    git = environment()["git"]
    if git is None or git["dirty"]:
        raise ValueError(
            f"{out} holds results to be cited, which must come from a commit: "
            "commit your changes first, or choose another --out."
        )


def _git() -> dict[str, Json] | None:
    """Returns the commit, and whether code differs from it; None outside a repository."""

    def run(*args: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {
            "commit": run("rev-parse", "HEAD"),
            "dirty": bool(
                run("status", "--porcelain", "--untracked-files=no")
                or run("ls-files", "--others", "--exclude-standard", ":/*.py")  # not committed yet
            ),
        }
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    """Returns name, family and model: virtual machines hide the name, bits depend on the rest."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return platform.machine()
    lines = (line.partition(":") for line in first.splitlines())
    facts = {key.strip(): value.strip() for key, _, value in lines}
    named = [facts.get("model name", platform.machine())]
    named += [f"{key} {facts[key]}" for key in ("cpu family", "model") if key in facts]
    return ", ".join(named)
