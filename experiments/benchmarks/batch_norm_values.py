"""What goes into a call of a layer, forward and backward, and what comes out, in any library."""

from typing import NamedTuple

import numpy as np


class Inputs(NamedTuple):
    """Every contestant's inputs, float64 `[..., features]`; each rounds them to its dtype.

    Attributes:
        x: the layer's input.
        dy: the cotangent of the output.
        scale: float64 `[features]`.
        bias: float64 `[features]`.
    """

    x: np.ndarray
    dy: np.ndarray
    scale: np.ndarray
    bias: np.ndarray


class Outputs(NamedTuple):
    """Outputs of one call, float64, channels last. `dscale` is None without a scale."""

    y: np.ndarray
    dx: np.ndarray
    dscale: np.ndarray | None
    dbias: np.ndarray


def make_inputs(shape: tuple[int, ...], *, offset: float = 0) -> Inputs:
    """Returns normal values around `offset` with standard deviation 1, the same at every call."""
    random = np.random.default_rng(0)
    features = shape[-1]
    return Inputs(
        offset + random.normal(size=shape),
        random.normal(size=shape),
        random.uniform(0.5, 1.5, features),
        random.normal(size=features),
    )
