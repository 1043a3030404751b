"""Batch normalization as pure functions in JAX, and the experiments that grew from it."""

from bnjax.normalization import (
    Moments,
    batch_moments,
    batch_transform,
    init_params,
    init_stats,
    normalize_batch,
    normalize_population,
    population_stats,
    update_stats,
)

__version__ = "0.1.0"

__all__ = [
    "Moments",
    "batch_moments",
    "batch_transform",
    "init_params",
    "init_stats",
    "normalize_batch",
    "normalize_population",
    "population_stats",
    "update_stats",
]
