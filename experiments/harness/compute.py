"""How runs are computed; their numbers depend on none of it, but for rounding."""

import re
import time
from dataclasses import dataclass, field
from typing import Annotated, Any, Self

import tyro

from bnjax.training.tensorboard import require_tensorboard

_SECONDS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Compute:
    """One process and its devices; experiments that offer more add flags as fields."""

    stop_after: str | None = field(default=None, kw_only=True)
    """Time from the start after which to stop, as 90s, 10m or 1.5h: the run under way saves after
    its dispatch, no other begins, what is finished is reported, and the status is 0. The same
    command goes on. Compiling is not cut short, and a step is always taken."""
    tensorboard: bool = field(default=False, kw_only=True)
    """Write curves for TensorBoard too, below --out: loss, accuracy, learning rate, and of each
    normalization mean and spread of its moments; needs the extra `tensorboard`."""
    started: Annotated[float, tyro.conf.Suppress] = field(
        default_factory=time.monotonic, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.stop_after is not None:
            seconds(self.stop_after)

    def out_of_time(self) -> bool:
        """Whether the time is over, which began when this was made."""
        passed = time.monotonic() - self.started
        return self.stop_after is not None and passed >= seconds(self.stop_after)

    def start(self) -> None:
        """Prepares the process, before JAX starts."""

    def check(self) -> None:
        """Refuses what cannot be, before any compute.

        Raises:
            MissingExtraError: for TensorBoard's curves, without what writes them.
        """
        if self.tensorboard:
            require_tensorboard()

    def shared(self) -> dict[str, Any]:
        """Returns what all hosts of a run must agree on, when it goes on too, JSON values."""
        return {}

    def described(self, task: Any) -> dict[str, Any]:
        """Returns what the record of a task's run says of it, JSON values."""
        return {}

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> Self:
        """Returns how a recorded run was computed, as far as it can be so here."""
        return cls()


def seconds(text: str) -> float:
    """Returns the seconds of a time such as 90s, 10m or 1.5h.

    Raises:
        ValueError: unless it is a number above 0 with its unit.
    """
    match = re.fullmatch(r"(\d+|\d*\.\d+)([smh]?)", text)
    number, unit = match.groups() if match else ("0", "")
    if float(number) == 0:
        raise ValueError(f"--stop-after must be a time above 0 as 90s, 10m or 1.5h, got {text!r}.")
    if not unit:
        raise ValueError(
            f"--stop-after needs a unit, got {text!r}: write {text}s, {text}m or {text}h for "
            "seconds, minutes or hours."
        )
    return float(number) * _SECONDS[unit]
