"""Whether the installed packages go together."""

from collections.abc import Iterator

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from bnjax.doctor.devices import CUDA_PLUGINS
from bnjax.doctor.finding import Finding
from bnjax.doctor.snapshot import Requirement, Snapshot

_MAKERS = ("jax", "jaxlib", "libtpu", *CUDA_PLUGINS)  # what a runtime has for its device


def _running_jax(seen: Snapshot) -> Iterator[Finding]:
    installed = seen.versions.get("jax")
    if installed and seen.running_jax and installed != seen.running_jax:
        yield Finding(
            "error",
            f"This process runs JAX {seen.running_jax}, and {installed} has been installed since.",
            "restart it (in a notebook: Runtime > Restart session)",
        )


def _skew(seen: Snapshot) -> Iterator[Finding]:
    for wanted in seen.requirements:
        found = seen.versions.get(wanted.name)
        if found is None:
            if wanted.needed:
                yield Finding(
                    "warning",
                    f"{wanted.owner} needs {_text(wanted)}, which is not installed.",
                    f"pip install '{_text(wanted)}'",
                )
        elif not SpecifierSet(wanted.versions).contains(found, prereleases=True):
            yield Finding(
                "error" if wanted.owner != "bnjax" else "warning",
                f"{wanted.owner} needs {_text(wanted)}; {wanted.name} {found} is installed.",
                _align(wanted, seen),
            )
    jaxlib = seen.versions.get("jaxlib")
    for name in CUDA_PLUGINS:  # as JAX itself compares them; it ignores a plugin that differs
        found = seen.versions.get(name)
        if found and jaxlib and Version(found).release != Version(jaxlib).release:
            yield Finding(
                "error",
                f"{name} {found} does not go with jaxlib {jaxlib}: JAX does not use it.",
                f"pip install '{name}[with-cuda]=={jaxlib}'",
            )
    if all(name in seen.versions for name in CUDA_PLUGINS):
        yield Finding(
            "warning",
            "JAX's plugins for CUDA 12 and CUDA 13 are both installed: only one can be used.",
            "pip uninstall one of them, with its -pjrt",
        )


def _text(wanted: Requirement) -> str:
    return f"{wanted.name}{wanted.versions}"


def _align(wanted: Requirement, seen: Snapshot) -> str:
    if "COLAB_RELEASE_TAG" in seen.environ and wanted.name in _MAKERS:
        return "choose a runtime that has it; a JAX put over Colab's may not find the device"
    return f"pip install '{_text(wanted)}'"


def _pins(seen: Snapshot) -> Iterator[Finding]:
    direct = {wanted.name for wanted in seen.requirements} | {"jaxlib"}
    other = [
        f"{name} {seen.versions[name]} ({pin})"
        for name, pin in sorted(seen.pinned.items())
        if name in direct and seen.versions.get(name, pin) != pin
    ]
    if other:
        yield Finding(
            "note",
            f"Not as in constraints.txt: {', '.join(other)}. Results may differ in their last "
            "digits.",
            "pip install -c constraints.txt -e .",
        )


RULES = (_running_jax, _skew, _pins)
