"""The form of a benchmark, and what all share: settings, provenance."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from bnjax.evidence.environment import environment
from experiments.benchmarks import memory

SCHEMA = 1

Result = dict[str, Any]
"""JSON values, raw: `provenance`, and what was measured."""


@dataclass(frozen=True, kw_only=True)
class TimedConfig:
    """Settings of benchmarks that keep the process's memory and time turn by turn."""

    repeats: int = 30
    """Turns of each contestant in each comparison."""
    turn_seconds: float = 0.5
    """Length of a turn: calls or steps are made until it is over, at least one."""
    keep_memory: bool = True
    """Start again with glibc told to keep freed memory; otherwise the environment is left alone."""


class Benchmark(Protocol):
    """A comparison with named peers in one run. Modules of this folder have this form.

    Attributes:
        Config: settings, a frozen dataclass; the docstring says in a line what is measured.
    """

    Config: type[Any]

    def start(self, config: Any, /) -> None:
        """Prepares the process, before JAX starts."""

    def measure(self, config: Any, /) -> Result:
        """Measures all contestants that are installed, and names the others with the reason."""

    def table(self, result: Result, /) -> str:
        """Returns the result in Markdown; a pure function."""


def start_keeping_memory(config: TimedConfig) -> None:
    """Starts the process again with its memory kept, if that is wanted: a benchmark's `start`."""
    if config.keep_memory:
        memory.restart_keeping_memory()


def provenance(
    name: str, config: Any, *, peers: Mapping[str, str], missing: Mapping[str, str]
) -> Result:
    """Returns what every result begins with.

    Args:
        name: the benchmark's.
        config: its settings; folders are recorded as "given".
        peers: versions of the libraries that bnjax is compared with.
        missing: contestants that are not installed, and why.
    """
    values = asdict(config).items()
    return {
        "schema": SCHEMA,
        "benchmark": name,
        "config": {k: "given" if isinstance(v, Path) else v for k, v in values},
        "environment": environment(),
        "allocation": memory.settings(),
        "peers": dict(peers),
        "missing": dict(missing),
    }


def not_installed(error: ImportError) -> str:
    """Returns the reason why a contestant is missing, with the remedy."""
    return f"{error}; the extra bnjax[parity] has it on Python 3.11"
