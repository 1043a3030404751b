"""The form of a benchmark, and what all share: checks of their settings, provenance."""

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
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


def check(
    config: Any,
    *,
    choices: Mapping[str, Collection[str]] | None = None,
    least: Mapping[str, int] | None = None,
) -> None:
    """Refuses values that no run can have. None, where a field allows it, is not checked.

    Args:
        config: settings of a benchmark.
        choices: names that a field may hold, one or several.
        least: the lowest value of an integer field; 1 where it is not given.

    Raises:
        ValueError: a name that is unknown or given twice; a number that is too low or infinite.
    """
    for field in fields(config):
        name, value = field.name, getattr(config, field.name)
        values = value if isinstance(value, tuple) else () if value is None else (value,)
        known = (choices or {}).get(name, values)
        for each in values:
            if each not in known:
                raise ValueError(f"{name}: unknown {each!r}; choose from {', '.join(known)}.")
        if isinstance(value, tuple) and (not value or len(set(value)) < len(value)):
            raise ValueError(f"{name} must be given, each once; got {value}.")
        lowest = (least or {}).get(name, 1)
        if isinstance(value, int) and value < lowest and not isinstance(value, bool):
            raise ValueError(f"{name} must be >= {lowest}, got {value}.")
        if isinstance(value, float) and not 0 < value < math.inf:
            raise ValueError(f"{name} must be > 0, got {value}.")


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
