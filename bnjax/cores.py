"""The CPU cores of this process, which a batch system may have given it a part of."""

import os


def usable_cores() -> int:
    """Returns how many cores this process may use, where the system tells; else all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS
