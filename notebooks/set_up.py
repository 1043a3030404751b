"""What the notebooks' first cell does once it has the repository: installs what is missing.

Nothing that is installed is moved: the JAX of a runtime was built for the device that is there.
"""

import importlib
import os
import platform
import runpy
import subprocess
import sys
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement  # ipykernel brings packaging
from packaging.version import InvalidVersion, Version

SHOWN = ("jax", "jaxlib", "flax", "bnjax")


class SetUpError(RuntimeError):
    """Shown by IPython as one line."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def set_up(clone: Path) -> None:
    """Makes `bnjax` and `experiments` of this clone importable, and says what is here.

    Raises:
        SetUpError: a package is missing and cannot be installed, or is not as bnjax needs it.
    """
    project = tomllib.loads((clone / "pyproject.toml").read_text())
    wanted = runpy.run_path(str(clone / "bnjax" / "version.py"))["__version__"]
    missing = _missing(requirements(project["project"], "experiments"))
    here = _version("bnjax")
    if missing or here != wanted:
        if here not in (None, wanted):
            print(f"bnjax {here} becomes {wanted}")
        _install("--editable", str(clone), *missing)
    sys.path[:0] = [str(clone)] * (str(clone) not in sys.path)
    importlib.invalidate_caches()
    loaded = sys.modules.get("bnjax")
    if loaded and getattr(loaded, "__version__", wanted) != wanted:
        raise SetUpError(
            f"This session has imported bnjax {loaded.__version__}, and {wanted} is installed now: "
            "restart it (Runtime > Restart session), and run the cells again."
        )
    _report()


def requirements(project: dict, extra: str) -> list[Requirement]:
    """What a project and one of its extras need here, the extras that it names followed."""
    found, extras = [], project["optional-dependencies"]
    texts = [*project["dependencies"], *extras[extra]]
    while texts:
        needed = Requirement(texts.pop(0))
        if needed.name == project["name"]:
            texts += [text for name in sorted(needed.extras) for text in extras[name]]
        elif needed.marker is None or needed.marker.evaluate():
            found.append(needed)
    return found


def _missing(needed: list[Requirement]) -> list[str]:
    """Those that are not installed.

    Raises:
        SetUpError: JAX or Flax is not installed, or a package is of another version.
    """
    for package in needed:
        found = _version(package.name)
        if found is None and package.name in ("jax", "jaxlib", "flax"):
            raise SetUpError(
                f"{package.name} is missing: install the JAX that fits your device, and Flax."
            )
        if found and not package.specifier.contains(found, prereleases=True):
            raise SetUpError(
                f"bnjax needs {package}; {package.name} {found} is installed. "
                + (
                    "Choose Runtime > Change runtime type > Runtime version: latest."
                    if "COLAB_RELEASE_TAG" in os.environ
                    else f"pip install '{package}'"
                )
            )
    return [str(package) for package in needed if not _version(package.name)]


def _install(*arguments: str) -> None:
    """By pip, which may add packages and move none but bnjax."""
    kept = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    kept = {name: kept[name] for name in kept if name not in (None, "bnjax")}
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder, "constraints.txt")
        constraints.write_text(
            "".join(f"{name}=={kept[name]}\n" for name in sorted(kept) if _is_standard(kept[name]))
        )
        command = [sys.executable, "-m", "pip", "install", "--quiet"]
        command += ["--disable-pip-version-check", "--constraint", str(constraints), *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = errors[0].removeprefix("ERROR: ") if errors else f"exit status {done.returncode}"
        raise SetUpError(
            f"pip could not install {', '.join(arguments[2:]) or 'bnjax'} beside what is here "
            f"({reason}). Is there a network? Otherwise start a fresh runtime."
        )


def _is_standard(version: str) -> bool:
    """Whether pip can read the version: those of the system's own packages may be another's."""
    try:
        return bool(Version(version))
    except InvalidVersion:
        return False


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _report() -> None:
    import jax

    backend, devices = jax.default_backend(), jax.devices()
    versions = ", ".join(f"{package} {_version(package)}" for package in SHOWN)
    print(f"Python {platform.python_version()}, {versions}")
    print(f"backend {backend}, devices: {len(devices)} x {devices[0].device_kind}")
    if "COLAB_RELEASE_TAG" in os.environ and backend == "cpu":
        print("WARNING: JAX runs on this Colab's CPU. All works, but slowly; for an accelerator")
        print("take Runtime > Change runtime type, choose a TPU or GPU, and run this cell again.")
