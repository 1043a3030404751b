"""How runs are computed; their numbers depend on none of it, but for rounding."""

from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Compute:
    """One process and its devices; experiments that offer more add flags as fields."""

    @property
    def tensorboard(self) -> bool:
        """Whether logs for TensorBoard are written."""
        return False

    def start(self) -> None:
        """Prepares the process, before JAX starts."""

    def check(self) -> None:
        """Raises ValueError for what cannot be, before any compute."""

    def shared(self) -> dict[str, Any]:
        """Returns what all hosts of a run must agree on, JSON values."""
        return {}

    def described(self, task: Any) -> dict[str, Any]:
        """Returns what the record of a task's run says of it, JSON values."""
        return {}

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> Self:
        """Returns how a recorded run was computed, as far as it can be so here."""
        return cls()
