"""Remedies in the words of the place: a shell, a notebook, Google Colab."""

import shlex

from bnjax.doctor.snapshot import Snapshot

NEW_RUNTIME = "Runtime > Disconnect and delete runtime, then install nothing over its packages"
"""Restores the versions that Colab ships."""
LATEST_RUNTIME = "Runtime > Change runtime type > Runtime version: Latest"
"""Chooses the newest of Colab's runtimes."""


def restart(seen: Snapshot) -> str:
    """Returns how to restart the process."""
    if seen.colab:
        return "Runtime > Restart session"
    return "restart the kernel" if seen.notebook else "restart the process"


def first(seen: Snapshot, line: str) -> str:
    """Returns how to run a line of a notebook before JAX starts, which reads its setting then."""
    return f"{restart(seen)}, and in the first cell: {line}"


def command(seen: Snapshot, line: str) -> str:
    """Returns a command of the shell."""
    return f"!{line}" if seen.notebook else line


def pip(seen: Snapshot, arguments: str) -> str:
    """Returns a command of pip, for the Python that runs."""
    return f"%pip {arguments}" if seen.notebook else f"pip {arguments}"


def variables(seen: Snapshot, **values: str | None) -> str:
    """Returns how to set environment variables that JAX reads at its start; None unsets one."""
    given = {name: value for name, value in values.items() if value is not None}
    gone = [name for name, value in values.items() if value is None]
    if seen.notebook:
        lines = [f'os.environ["{name}"] = "{value}"' for name, value in given.items()]
        lines += [f'os.environ.pop("{name}", None)' for name in gone]
        return first(seen, "; ".join(["import os", *lines]))
    lines = [f"export {name}={shlex.quote(value)}" for name, value in given.items()]
    return "; ".join([*lines, *(f"unset {name}" for name in gone)])


def setting(seen: Snapshot, name: str, value: str, shell: str) -> str:
    """Returns how to change a setting of JAX: while it runs, or by its variable in a shell."""
    return f'jax.config.update("{name}", {value})' if seen.notebook else shell
