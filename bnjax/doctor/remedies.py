"""Remedies in the words of the place: a shell, a notebook, Google Colab."""

import shlex

from bnjax.doctor.snapshot import Snapshot

NEW_RUNTIME = "Runtime > Disconnect and delete runtime, then install nothing over its packages"
"""Colab gives its own versions back."""
LATEST_RUNTIME = "Runtime > Change runtime type > Runtime version: Latest"
"""Of Colab's runtimes the newest."""


def restart(seen: Snapshot) -> str:
    """Starts the process anew."""
    if seen.colab:
        return "Runtime > Restart session"
    return "restart the kernel" if seen.notebook else "restart the process"


def first(seen: Snapshot, line: str) -> str:
    """A line of Python in a notebook, for what is read when JAX starts."""
    return f"{restart(seen)}, and in the first cell: {line}"


def command(seen: Snapshot, line: str) -> str:
    """A command of the shell."""
    return f"!{line}" if seen.notebook else line


def pip(seen: Snapshot, arguments: str) -> str:
    """A command of pip, for the Python that runs."""
    return f"%pip {arguments}" if seen.notebook else f"pip {arguments}"


def variables(seen: Snapshot, **values: str | None) -> str:
    """Environment variables that are read when JAX starts; None for one that must go."""
    given = {name: value for name, value in values.items() if value is not None}
    gone = [name for name, value in values.items() if value is None]
    if seen.notebook:
        lines = [f'os.environ["{name}"] = "{value}"' for name, value in given.items()]
        lines += [f'os.environ.pop("{name}", None)' for name in gone]
        return first(seen, "; ".join(["import os", *lines]))
    lines = [f"export {name}={shlex.quote(value)}" for name, value in given.items()]
    return "; ".join([*lines, *(f"unset {name}" for name in gone)])


def setting(seen: Snapshot, name: str, value: str, shell: str) -> str:
    """One of JAX's settings that may change while it runs; in a shell by its variable."""
    return f'jax.config.update("{name}", {value})' if seen.notebook else shell
