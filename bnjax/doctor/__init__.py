"""Describes the machine, and finds what will go wrong on it: `python -m bnjax.doctor`.

`check()` prints the same in a notebook. `examine(take_snapshot())` returns the findings as values.
Nothing here changes a setting, uses the network or initializes several hosts; nothing here fails.
"""

from bnjax.doctor.finding import Finding, Severity
from bnjax.doctor.reading import take_snapshot
from bnjax.doctor.report import check, examine, report
from bnjax.doctor.settings import KEEP_MEMORY
from bnjax.doctor.snapshot import Device, Requirement, Snapshot

__all__ = [
    "KEEP_MEMORY",
    "Device",
    "Finding",
    "Requirement",
    "Severity",
    "Snapshot",
    "check",
    "examine",
    "report",
    "take_snapshot",
]
