"""Results in Markdown: the parts that tables of benchmarks are made of."""

from typing import Any

from bnjax.evidence.tables import bullets, table, verdict  # noqa: F401 - parts of a table, too
from experiments.benchmarks.turns import Spread, spread


def quartiles(taken: Spread, *, unit: float = 1, digits: int = 1) -> str:
    """Returns "median (low to high)", times `unit`."""
    median, low, high = (f"{unit * value:,.{digits}f}" for value in taken)
    return f"{median} ({low} to {high})"


def ratio_by_turn(seconds: dict[str, list[float]], name: str, other: str) -> Spread:
    """Returns one contestant's time to another's: a machine that is slow is slow for both."""
    pairs = zip(seconds[name], seconds[other], strict=True)
    return spread([mine / theirs for mine, theirs in pairs])


def optional(text: str, value: Any) -> str:
    """Returns the formatted value, and nothing for None: `optional("{:.2f}", ratio)`."""
    return "" if value is None else text.format(value)


def turns_note(config: dict[str, Any], call: str) -> str:
    """Returns how `take_turns` was used, with a call of the contestants named."""
    return (
        f"Median of {config['repeats']} turns (quartiles), turn by turn in one process in random "
        f"order; a turn is one untimed {call}, then {call}s for {config['turn_seconds']:g} s."
    )


def surroundings(result: dict[str, Any], *, device: str | None = None) -> str:
    """Returns what a result was measured on, and with which versions and allocation.

    Args:
        result: with `environment`, `peers` and `allocation`.
        device: by default the processor, and the accelerator where there is one.
    """
    environment = result["environment"]
    if device is None:
        device = environment["processor"]
        if environment["backend"] != "cpu":
            device += f", {environment['device_kind']}"
    versions = {"python": environment["python"], **environment["versions"], **result["peers"]}
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    settings = " ".join(f"{name}={value}" for name, value in result["allocation"].items())
    return f"{device}; {named}{'; ' if settings else ''}{settings}."
