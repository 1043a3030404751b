"""Batch normalization as pure functions in JAX, and the experiments that grew from it."""

from bnjax.normalization import (
    Moments,
    as_affine,
    batch_moments,
    batch_transform,
    fold,
    from_flax,
    from_haiku,
    from_keras,
    from_torch,
    init_params,
    init_stats,
    normalize_batch,
    normalize_population,
    population_stats,
    to_torch,
    update_stats,
)
from bnjax.version import __version__ as __version__

__all__ = [
    "Moments",
    "as_affine",
    "batch_moments",
    "batch_transform",
    "fold",
    "from_flax",
    "from_haiku",
    "from_keras",
    "from_torch",
    "init_params",
    "init_stats",
    "normalize_batch",
    "normalize_population",
    "population_stats",
    "to_torch",
    "update_stats",
]
