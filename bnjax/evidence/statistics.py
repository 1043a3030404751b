"""Statistics of logged accuracies, as tables show them."""

from collections.abc import Iterable
from typing import Any

import numpy as np


def accuracy(metrics: dict[str, Any]) -> float:
    """Returns the share of examples that were right, from metrics as a log has them.

    Example:
        >>> accuracy({"correct": 9, "examples": 10})
        0.9
    """
    return metrics["correct"] / metrics["examples"]


def steps_to(target: float, steps: np.ndarray, accuracy: np.ndarray) -> int | None:
    """Returns the first evaluated step at which a run reaches an accuracy; None if never.

    Example:
        >>> steps_to(0.9, np.array([100, 200, 300]), np.array([0.5, 0.91, 0.95]))
        200
    """
    reached = accuracy >= target
    return int(steps[reached.argmax()]) if reached.any() else None


def spread(values: Any) -> dict[str, float | None]:
    """Returns mean and standard deviation over runs, to six digits; None for too few runs.

    Example:
        >>> spread([0.97, 0.98, 0.99])
        {'mean': 0.98, 'sd': 0.01}
    """
    values = np.asarray(values, float)
    if values.size == 0:
        return {"mean": None, "sd": None}
    sd = round(float(values.std(ddof=1)), 6) if values.size > 1 else None
    return {"mean": round(float(values.mean()), 6), "sd": sd}


def times(values: Iterable[int | None]) -> dict[str, float | None]:
    """Returns the `spread` of the steps of the runs that reached something, and how many did.

    Example:
        >>> times([100, None, 300])
        {'reached': 2, 'mean': 200.0, 'sd': 141.421356}
    """
    known = [value for value in values if value is not None]
    return {"reached": len(known)} | spread(known)
