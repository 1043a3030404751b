"""Batch normalization as a Flax Linen module: `flax.linen.BatchNorm` by a change of import.

And batch renormalization, by a change of name.
"""

from bnjax.linen.layer_moments import (
    check_linen,
    check_variables,
    model_moments,
    moments_and_frozen,
    naming_dicts,
)
from bnjax.linen.layers import BatchNorm, BatchRenorm

__all__ = [
    "BatchNorm",
    "BatchRenorm",
    "check_linen",
    "check_variables",
    "model_moments",
    "moments_and_frozen",
    "naming_dicts",
]
