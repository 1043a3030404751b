"""Batch normalization in NumPy float64, term by term as the paper has it; no code of bnjax.

Slow and plain on purpose. Arrays are converted to float64; `axis` names the feature axes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Axis = int | Sequence[int]
ACTIVATIONS = {
    None: (lambda z: z, np.ones_like),
    "relu": (lambda z: np.maximum(z, 0), lambda z: np.where(z > 0, 1.0, 0.0)),
    "sigmoid": (
        lambda z: 1 / (1 + np.exp(-z)),
        lambda z: 1 / (1 + np.exp(-z)) / (1 + np.exp(z)),
    ),
}
"""Each with its derivative."""


class Batch(NamedTuple):
    """What one batch gives; `mean` to `count` have the features' shape."""

    y: np.ndarray
    mean: np.ndarray
    var: np.ndarray  # biased
    count: np.ndarray


class Gradients(NamedTuple):
    dx: np.ndarray
    dscale: np.ndarray
    dbias: np.ndarray


def forward(x, scale, bias, *, axis: Axis = -1, epsilon=1e-5, mask=None) -> Batch:
    """Algorithm 1. What is masked is normalized but not counted; NaN and infinity there, and
    features of which nothing counts: bias."""
    split = _Split(x, axis)
    keep, usable = split.keep(mask)
    rows = np.where(keep | usable, split.rows, 0)
    count = keep.sum(0)
    m = np.maximum(count, 1)
    mean = np.where(keep, rows, 0).sum(0) / m
    var = (np.where(keep, rows - mean, 0) ** 2).sum(0) / m
    xhat = np.where(usable, (rows - mean) / np.sqrt(var + epsilon), 0)
    y = xhat * _flat(scale, split, 1) + _flat(bias, split, 0)
    shape = split.features
    return Batch(split.join(y), mean.reshape(shape), var.reshape(shape), count.reshape(shape))


def backward(dy, x, scale, *, axis: Axis = -1, epsilon=1e-5, mask=None) -> Gradients:
    """The chain rule of section 3, one line a term, the gradient flowing through mean and var."""
    split = _Split(x, axis)
    keep, usable = split.keep(mask)
    rows = np.where(usable, split.rows, 0)
    dy = _Split(dy, axis).rows
    batch = forward(x, None, None, axis=axis, epsilon=epsilon, mask=mask)
    mean, var, m = batch.mean.ravel(), batch.var.ravel(), np.maximum(batch.count.ravel(), 1)
    centred = np.where(usable, rows - mean, 0)

    dxhat = np.where(usable, dy * _flat(scale, split, 1), 0)
    dvar = (dxhat * centred * -0.5 * (var + epsilon) ** -1.5).sum(0)
    dmean = (dxhat * -1 / np.sqrt(var + epsilon)).sum(0)
    dmean = dmean + dvar * np.where(keep, -2 * centred, 0).sum(0) / m
    through_moments = dvar * 2 * centred / m + dmean / m
    dx = dxhat / np.sqrt(var + epsilon) + np.where(keep, through_moments, 0)
    dscale = (dy * centred / np.sqrt(var + epsilon)).sum(0)
    return Gradients(
        split.join(dx), dscale.reshape(split.features), dy.sum(0).reshape(split.features)
    )


def population(x, scale, bias, mean, var, *, axis: Axis = -1, epsilon=1e-5) -> np.ndarray:
    """Algorithm 2, line 11, as printed: a fixed affine map."""
    split = _Split(x, axis)
    gamma = _flat(scale, split, 1) / np.sqrt(_flat(var, split, 1) + epsilon)
    return split.join(gamma * split.rows + (_flat(bias, split, 0) - gamma * _flat(mean, split, 0)))


def population_backward(dy, x, scale, mean, var, *, axis: Axis = -1, epsilon=1e-5) -> Gradients:
    """Of that map: mean and var are constants."""
    split = _Split(x, axis)
    dy = _Split(dy, axis).rows
    rstd = 1 / np.sqrt(_flat(var, split, 1) + epsilon)
    dx = dy * _flat(scale, split, 1) * rstd
    dscale = (dy * (split.rows - _flat(mean, split, 0)) * rstd).sum(0)
    return Gradients(
        split.join(dx), dscale.reshape(split.features), dy.sum(0).reshape(split.features)
    )


def correction(
    x, mean, var, *, r_max, d_max, axis: Axis = -1, epsilon=1e-5, mask=None
) -> tuple[np.ndarray, np.ndarray]:
    """r and d of batch renormalization (Ioffe 2017, Algorithm 1), of the features' shape."""
    batch = forward(x, None, None, axis=axis, epsilon=epsilon, mask=mask)
    sigma = np.sqrt(np.asarray(var, np.float64) + epsilon)
    r = np.sqrt(batch.var + epsilon) / sigma
    d = (batch.mean - np.asarray(mean, np.float64)) / sigma
    return np.clip(r, 1 / r_max, r_max), np.clip(d, -d_max, d_max)


def renormalize(x, scale, bias, r, d, *, axis: Axis = -1, epsilon=1e-5, mask=None) -> np.ndarray:
    """The rest of that Algorithm 1: gamma (xhat r + d) + beta."""
    xhat = forward(x, None, None, axis=axis, epsilon=epsilon, mask=mask).y
    split = _Split(xhat, axis)
    y = split.rows * _flat(r, split, 1) + _flat(d, split, 0)
    return split.join(y * _flat(scale, split, 1) + _flat(bias, split, 0))


def running_variance(batch: Batch, running_var: str) -> np.ndarray:
    """The variance that statistics take from a batch: biased, or times m/(m-1)."""
    if running_var == "biased":
        return batch.var
    return batch.var * batch.count / np.maximum(batch.count - 1, 1)


def pooled(batches: Sequence[Batch], running_var: str) -> dict[str, np.ndarray]:
    """One mean and variance of batches that are normalized apart: the variance within them.

    Unbiased, M2 is divided by N - G: each of the G batches that hold a value costs one degree.
    """
    count = sum(batch.count for batch in batches)
    mean = sum(batch.count * batch.mean for batch in batches) / count
    m2 = sum(batch.count * batch.var for batch in batches)
    spent = sum(batch.count > 0 for batch in batches) if running_var == "unbiased" else 0
    return {"mean": mean, "var": m2 / (count - spent)}


def ema(values, initial, decay: float) -> np.ndarray:
    """decay^n initial + (1 - decay) sum_t decay^(n-t) value_t, not by recursion."""
    values = np.asarray(values, np.float64)
    n = len(values)
    weights = (1 - decay) * decay ** np.arange(n - 1, -1, -1.0)
    return decay**n * np.asarray(initial, np.float64) + np.tensordot(weights, values, 1)


def ema_debiased(values, decay: float) -> np.ndarray:
    """The average that starts at zero, divided by 1 - decay^n."""
    return ema(values, 0.0, decay) / (1 - decay ** len(values))


def algorithm_2(batches, *, axis: Axis = -1, running_var="unbiased") -> dict[str, np.ndarray]:
    """E[x] = mean of the batches' means; Var[x] = mean of their (m/(m-1)) variances."""
    seen = [forward(batch, None, None, axis=axis) for batch in batches]
    return {
        "mean": np.mean([batch.mean for batch in seen], axis=0),
        "var": np.mean([running_variance(batch, running_var) for batch in seen], axis=0),
    }


class _Split:
    """`x` as a table: rows are what a mean runs over, columns are features."""

    def __init__(self, x, axis: Axis):
        x = np.asarray(x, np.float64)
        features = sorted(a % x.ndim for a in ([axis] if isinstance(axis, int) else axis))
        self.order = [a for a in range(x.ndim) if a not in features] + features
        self.moved = tuple(x.shape[a] for a in self.order)
        self.features = tuple(x.shape[a] for a in features)
        self.rows = self._table(x)
        self.shape = x.shape

    def keep(self, mask) -> tuple[np.ndarray, np.ndarray]:
        """What counts, and what is normalized at all."""
        keep = np.broadcast_to(True if mask is None else np.asarray(mask), self.shape)
        keep = self._table(keep)
        return keep, keep.any(0) & (keep | np.isfinite(self.rows))

    def join(self, rows: np.ndarray) -> np.ndarray:
        return rows.reshape(self.moved).transpose(np.argsort(self.order))

    def _table(self, array: np.ndarray) -> np.ndarray:
        return array.transpose(self.order).reshape(-1, int(np.prod(self.features)))


def _flat(parameter, split: _Split, default: float) -> np.ndarray:
    if parameter is None:
        return np.full(split.rows.shape[1], default, np.float64)
    return np.asarray(parameter, np.float64).reshape(-1)
