"""Rules about installed packages: whether they go together."""

from collections.abc import Iterator

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from bnjax.doctor.devices import CUDA_PLUGINS
from bnjax.doctor.finding import Finding
from bnjax.doctor.remedies import LATEST_RUNTIME, NEW_RUNTIME, pip, restart
from bnjax.doctor.snapshot import Requirement, Snapshot

_MAKERS = ("jax", "jaxlib", "libtpu", *CUDA_PLUGINS)  # what a runtime has for its device
_NUMBERS = ("jax", "jaxlib", "flax", "optax", "numpy")  # what the last digits depend on


def _running_jax(seen: Snapshot) -> Iterator[Finding]:
    installed = seen.versions.get("jax")
    if installed and seen.running_jax and installed != seen.running_jax:
        yield Finding(
            "error",
            f"This process runs JAX {seen.running_jax}, and {installed} has been installed since.",
            restart(seen),
        )


def _skew(seen: Snapshot) -> Iterator[Finding]:
    for wanted in seen.requirements:
        found = seen.versions.get(wanted.name)
        if found is None:
            if wanted.needed:
                yield Finding(
                    "warning",
                    f"{wanted.owner} needs {_text(wanted)}, which is not installed.",
                    pip(seen, f"install '{_text(wanted)}'"),
                )
        elif not SpecifierSet(wanted.versions).contains(found, prereleases=True):
            if seen.colab and wanted.name == "libtpu":
                continue  # Colab ships another than JAX asks for; it works, or JAX finds no TPU
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
                NEW_RUNTIME if seen.colab else pip(seen, f"install '{name}[with-cuda]=={jaxlib}'"),
            )
    if all(name in seen.versions for name in CUDA_PLUGINS):
        yield Finding(
            "warning",
            "JAX's plugins for CUDA 12 and CUDA 13 are both installed: only one can be used.",
            NEW_RUNTIME if seen.colab else pip(seen, "uninstall one of them, with its -pjrt"),
        )


def _text(wanted: Requirement) -> str:
    return f"{wanted.name}{wanted.versions}"


def _align(wanted: Requirement, seen: Snapshot) -> str:
    """Returns the remedy; on Colab JAX stays, because another one may not find the device."""
    versions = SpecifierSet(wanted.versions)
    if seen.colab and wanted.name in _MAKERS:
        shipped = seen.pinned.get(wanted.name)
        bounds = [Version(each.version.removesuffix(".*")) for each in versions]
        newer = bounds and Version(seen.versions[wanted.name]) >= max(bounds)
        if wanted.owner == "bnjax" and (newer or (shipped and shipped not in versions)):
            return "take the newest bnjax: run the set-up cell of its notebooks, with REF = main"
        return f"{LATEST_RUNTIME}; where something was installed over its JAX, {NEW_RUNTIME}"
    extra = ""
    if wanted.name == "jax":  # with the parts that it has for its device
        parts = ("libtpu", "tpu"), *((name, name.split("-")[1]) for name in CUDA_PLUGINS)
        extra = next((f"[{part}]" for name, part in parts if name in seen.versions), "")
    return pip(seen, f"install '{wanted.name}{extra}{wanted.versions}'")


def _pins(seen: Snapshot) -> Iterator[Finding]:
    direct = {wanted.name for wanted in seen.requirements} | {"jaxlib"}
    compared = _NUMBERS if seen.colab else direct
    other = [
        f"{name} {seen.versions[name]} ({pin})"
        for name, pin in sorted(seen.pinned.items())
        if name in compared and seen.versions.get(name, pin) != pin
    ]
    if not other:
        return
    if seen.colab:
        yield Finding(
            "note",
            f"Not as bnjax was tried on Colab (constraints-colab.txt): {', '.join(other)}.",
            f"none is needed, unless you installed them: then {NEW_RUNTIME}",
        )
        return
    yield Finding(
        "note",
        f"Not as in constraints.txt: {', '.join(other)}. Results may differ in their last digits.",
        pip(seen, "install -c constraints.txt -e ."),
    )


RULES = (_running_jax, _skew, _pins)
