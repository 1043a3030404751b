"""The step that all contestants make, whatever library makes it, and its batch."""

from typing import NamedTuple

import numpy as np

MOMENTUM = 0.9
"""The optimizer's momentum, and the fraction that the running statistics keep."""

EPSILON = 1e-5
"""The normalization's epsilon."""


class StepSpec(NamedTuple):
    """The step that all contestants make; fields as in `train_step.Config`."""

    width: float
    image_size: int
    stem_stride: int
    batch_size: int
    classes: int
    dtype: str
    learning_rate: float


def make_batch(spec: StepSpec) -> tuple[np.ndarray, np.ndarray]:
    """Returns the same random images, float32 `[n, h, w, 3]`, and labels, int32 `[n]`, always."""
    random = np.random.default_rng(0)
    size = (spec.batch_size, spec.image_size, spec.image_size, 3)
    images = random.normal(size=size).astype(np.float32)
    return images, random.integers(spec.classes, size=spec.batch_size, dtype=np.int32)
