"""Batch normalization as pure functions. Imports JAX alone: lift the folder out and use it."""

from bnjax.normalization.arguments import Params, Stats
from bnjax.normalization.batch_norm import (
    batch_transform,
    init_params,
    init_stats,
    normalize_batch,
    normalize_population,
    update_stats,
)
from bnjax.normalization.converters import (
    Converted,
    from_flax,
    from_haiku,
    from_keras,
    from_torch,
    to_torch,
)
from bnjax.normalization.folding import as_affine, fold
from bnjax.normalization.moments import Moments, batch_moments
from bnjax.normalization.population import population_stats
from bnjax.normalization.renormalization import renorm_limits, renormalize_batch

__all__ = [
    "Converted",
    "Moments",
    "Params",
    "Stats",
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
    "renorm_limits",
    "renormalize_batch",
    "to_torch",
    "update_stats",
]
