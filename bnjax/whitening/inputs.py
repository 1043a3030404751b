"""Whitening of a data set's inputs, once and before training: fit on a split, apply to all.

whitening = fit_whitening(train.images, epsilon=0.01)
inputs = apply_whitening(test.images, whitening)        # float32, of the images' shape

Unlike a whitening layer this is a fixed map of the input alone: nothing is differentiated, and no
batch matters. LeCun et al. (1998, "Efficient BackProp", section 4.3) say what it is good for.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from bnjax.normalization.settings import check_choice
from bnjax.whitening.matrix import Method

_CHUNK_BYTES = 64 << 20
"""Of float64 copies at a time: CIFAR-10 as a whole would take 1.2 GB."""


class Whitening(NamedTuple):
    """A fitted map: (x - mean) @ matrix, for x flattened and, if uint8, divided by 255.

    Attributes:
        mean: float32, the shape of one example.
        matrix: float32 `[features, components]`, features being the product of that shape.
        keeps_shape: whether outputs have the examples' shape (ZCA) or are `[n, components]`.
        of_uint8: whether it was fitted on uint8, counted as intensities in [0, 1].
    """

    mean: np.ndarray
    matrix: np.ndarray
    keeps_shape: bool
    of_uint8: bool


def fit_whitening(
    examples: np.ndarray,
    *,
    epsilon: float,
    method: Method = "zca",
    components: int | None = None,
) -> Whitening:
    """Fits whitening by the covariance of all features of `examples`, in float64.

    For n examples of C features that takes 2nC^2 operations, 9C^3 more for the eigenvectors, and
    40C^2 bytes: for CIFAR-10 (C = 3072), 1.2e12 operations and 380 MB, with an optimized BLAS.

    Args:
        examples: uint8, counted as intensities in [0, 1], or floating; `[n, ...]`, n of 2 or more.
            Those of the training split, or the test split's covariance leaks into training.
        epsilon: added to each eigenvalue, hence a variance in the units of the examples (squared);
            > 0. Directions of less variance stay small, rather than turn into amplified noise: the
            rounding of uint8 alone has a variance of 1.3e-6.
        method: `"zca"` stays in the space of the examples, so that whitened images look like
            images; `"pca"` gives principal components, the largest first, each axis pointing so
            that its largest entry is positive.
        components: how many to keep, for `"pca"`; all by default.

    Returns:
        The fitted map.

    Raises:
        ValueError: for a bad argument, fewer than two examples, or NaN or infinity in them.
    """
    _check(examples)
    if len(examples) < 2:
        raise ValueError(f"examples must be 2 or more, got {len(examples)}: one has no covariance.")
    if not epsilon > 0:
        raise ValueError(f"epsilon must be > 0, got {epsilon}: constant pixels divide by it.")
    check_choice("method", method, Method)
    features = int(np.prod(examples.shape[1:]))
    if components is not None and method == "zca":
        raise ValueError(
            f"components={components} is for method='pca': ZCA keeps the shape of the examples."
        )
    if components is not None and not 1 <= components <= features:
        raise ValueError(f"components must be in 1 .. {features} (features), got {components}.")

    mean = sum(rows.sum(0) for rows in _float64_rows(examples)) / len(examples)
    if not np.isfinite(mean).all():
        raise ValueError("examples must be finite: there are NaN or infinite values in them.")
    cov = np.zeros((features, features))
    for rows in _float64_rows(examples):
        rows -= mean
        cov += rows.T @ rows
    values, vectors = np.linalg.eigh(cov / len(examples))
    scales = 1 / np.sqrt(np.maximum(values, 0) + epsilon)
    if method == "zca":
        matrix = (vectors * scales) @ vectors.T
    else:
        largest = np.take_along_axis(vectors, np.abs(vectors).argmax(0)[None], axis=0)
        matrix = (vectors * scales * np.sign(largest))[:, ::-1][:, :components]
    return Whitening(
        mean.reshape(examples.shape[1:]).astype(np.float32),
        np.ascontiguousarray(matrix, np.float32),
        keeps_shape=method == "zca",
        of_uint8=examples.dtype == np.uint8,
    )


def apply_whitening(examples: np.ndarray, whitening: Whitening) -> np.ndarray:
    """Returns whitened examples, each by itself.

    Args:
        examples: of the dtype kind and the shape that the map was fitted on; `[n, ...]`, any n.
        whitening: from `fit_whitening`.

    Returns:
        float32: of the shape of the examples for ZCA, `[n, components]` for PCA.

    Raises:
        ValueError: if examples have another shape or kind than those fitted on, or no float or
            uint8.
    """
    _check(examples)
    if (examples.dtype == np.uint8) != whitening.of_uint8:
        fitted = "uint8" if whitening.of_uint8 else "floats"
        raise ValueError(
            f"examples are {examples.dtype}, but the whitening was fitted on {fitted}: uint8 "
            "counts as intensities in [0, 1]. Give the same kind, or fit another one."
        )
    if examples.shape[1:] != whitening.mean.shape:
        raise ValueError(
            f"examples have shape {examples.shape[1:]}, but the whitening was fitted on "
            f"{whitening.mean.shape}: fit another one."
        )
    flat = examples.reshape(len(examples), whitening.mean.size)
    rows = flat / np.float32(255) if examples.dtype == np.uint8 else flat.astype(np.float32)
    whitened = (rows - whitening.mean.ravel()) @ whitening.matrix
    return whitened.reshape(examples.shape) if whitening.keeps_shape else whitened


def _check(examples: np.ndarray) -> None:
    if examples.dtype != np.uint8 and not np.issubdtype(examples.dtype, np.floating):
        raise ValueError(
            f"examples must be uint8 or floating, got {examples.dtype}: "
            "convert them first, for example examples.astype(np.float32)."
        )
    if examples.ndim < 2 or 0 in examples.shape[1:]:
        raise ValueError(
            f"examples must be [n, ...] with one feature or more, got shape {examples.shape}."
        )


def _float64_rows(examples: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the examples, flattened and converted, some at a time."""
    features = int(np.prod(examples.shape[1:]))
    length = max(1, _CHUNK_BYTES // (8 * features))
    scale = 255.0 if examples.dtype == np.uint8 else 1.0
    for start in range(0, len(examples), length):
        part = examples[start : start + length]
        yield part.reshape(len(part), features).astype(np.float64) / scale
