"""The doctor's report: the machine, then the findings, the worst first."""

import textwrap
from typing import get_args

from bnjax.doctor import devices, packages, settings
from bnjax.doctor.finding import Finding, Severity
from bnjax.doctor.reading import take_snapshot
from bnjax.doctor.snapshot import Snapshot

_SHOWN = ("jax", "jaxlib", "flax", "optax", "bnjax")
_WIDTH = 96


def check() -> None:
    """Prints what this machine is, what will go wrong on it, and the remedies.

    Starts JAX's backend, but never where several hosts have to start theirs together.
    """
    print(report(take_snapshot()))


def examine(snapshot: Snapshot) -> list[Finding]:
    """Returns what will go wrong on such a machine, the worst first, from the snapshot alone."""
    found: list[Finding] = []
    unread = list(snapshot.unread)
    for rule in (*devices.RULES, *packages.RULES, *settings.RULES):
        try:
            found += rule(snapshot)
        except Exception as error:  # a version that is none, say: the other rules still hold
            unread.append(f"{rule.__name__.strip('_')} ({type(error).__name__}: {error})")
    found += [
        Finding("note", f"Could not be read: {what}.", "none is needed; please report it")
        for what in unread
    ]
    return sorted(found, key=lambda finding: get_args(Severity).index(finding.severity))


def report(snapshot: Snapshot) -> str:
    """Returns the snapshot's facts and findings as text."""
    findings = examine(snapshot)
    parts = [*_facts(snapshot), *map(_paragraph, findings)]
    if not any(finding.severity != "note" for finding in findings):
        parts.append("Nothing will bite here." if not findings else "Nothing worse than notes.")
    return "\n".join(parts)


def _facts(snapshot: Snapshot) -> list[str]:
    versions = [f"{name} {snapshot.versions[name]}" for name in _SHOWN if name in snapshot.versions]
    kinds = [device.kind for device in snapshot.devices]
    present = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    chosen = snapshot.settings
    return [
        f"Python {snapshot.python} on {snapshot.system}; {', '.join(versions)}",
        f"backend {snapshot.backend or 'not started'}"
        + (f": {present}" if present else "")
        + (f"; {snapshot.cores} cores" if snapshot.cores else ""),
        f"matrix products {chosen.get('jax_default_matmul_precision') or 'default'}, "
        f"float64 {'on' if chosen.get('jax_enable_x64') else 'off'}, "
        f"XLA_FLAGS {snapshot.environ.get('XLA_FLAGS') or 'none'}",
    ]


def _paragraph(finding: Finding) -> str:
    begin = f"[{finding.severity}] "
    indent = " " * len(begin)
    lines = textwrap.wrap(
        finding.what, _WIDTH, initial_indent=begin, subsequent_indent=indent, break_on_hyphens=False
    )
    # A remedy may hold a command: it stays in one piece, to be copied.
    return "\n".join([*lines, f"{indent}-> {finding.remedy}"])
