"""Curves for TensorBoard, written by the optional package tensorboardX."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from bnjax.extras import extra
from bnjax.training.objectives import Metrics


def require_tensorboard() -> ModuleType:
    """Returns the package that writes; call it before any compute.

    Raises:
        MissingExtraError: if it is not installed.
    """
    with extra("tensorboard"):
        import tensorboardX
    return tensorboardX


class TensorBoard:
    """The TensorBoard log of one run, in a folder of its own."""

    def __init__(self, directory: Path, *, first_step: int) -> None:
        """Opens the log; entries after `first_step` from before are not shown any more."""
        module = require_tensorboard()
        self._writer: Any = module.SummaryWriter(str(directory), purge_step=first_step + 1)

    def log(self, step: int, metrics: Mapping[str, Metrics]) -> None:
        """Logs mean loss and accuracy of each kind of metrics that counts any example."""
        for name, sums in metrics.items():
            if sums.examples > 0:
                self._writer.add_scalar(f"loss/{name}", float(sums.loss / sums.examples), step)
                accuracy = float(sums.correct / sums.examples)
                self._writer.add_scalar(f"accuracy/{name}", accuracy, step)
        self._writer.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()
