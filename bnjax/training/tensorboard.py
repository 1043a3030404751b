"""Curves for TensorBoard, written by the optional package tensorboardX."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import jax
import numpy as np

from bnjax.extras import extra
from bnjax.training.objectives import Metrics
from bnjax.training.optimizers import rate_in_use
from bnjax.training.state import TrainState


def require_tensorboard() -> ModuleType:
    """Returns the package that writes; call it before any compute.

    Raises:
        MissingExtraError: if it is not installed.
    """
    with extra("tensorboard"):
        import tensorboardX
    return tensorboardX


def watched(state: TrainState) -> dict[str, float]:
    """Returns what curves show of a state: learning rate, and the moments of each normalization.

    Of the running mean and variance of a layer, `[features]` each, the mean and the standard
    deviation over features; where they are complex, of their absolute values.

    Args:
        state: host arrays of one run.
    """
    rate = rate_in_use(state.opt_state)
    shown = {} if rate is None else {"learning_rate": rate}
    for path, leaf in jax.tree_util.tree_flatten_with_path(state.batch_stats)[0]:
        *layer, name = (str(entry.key) for entry in path)
        if name in ("mean", "var"):
            values = np.asarray(np.abs(leaf) if np.iscomplexobj(leaf) else leaf, np.float64)
            shown[f"moments/{'/'.join(layer)}/{name}"] = float(values.mean())
            shown[f"moments/{'/'.join(layer)}/{name}_spread"] = float(values.std())
    return shown


class TensorBoard:
    """The TensorBoard log of one run, in a folder of its own."""

    def __init__(self, directory: Path, *, first_step: int) -> None:
        """Opens the log; entries after `first_step` from before are not shown any more."""
        module = require_tensorboard()
        self._writer: Any = module.SummaryWriter(str(directory), purge_step=first_step + 1)

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Logs numbers by name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

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
