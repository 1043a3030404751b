"""Batch normalization as pure functions. Imports JAX alone: lift the folder out and use it."""

from bnjax.normalization.batch_norm import (
    Params,
    Stats,
    batch_transform,
    init_params,
    init_stats,
    normalize_batch,
    normalize_population,
    update_stats,
)
from bnjax.normalization.moments import Moments, batch_moments
from bnjax.normalization.population import population_stats

__all__ = [
    "Moments",
    "Params",
    "Stats",
    "batch_moments",
    "batch_transform",
    "init_params",
    "init_stats",
    "normalize_batch",
    "normalize_population",
    "population_stats",
    "update_stats",
]
