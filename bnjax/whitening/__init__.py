"""Full whitening: the alternative that the paper considers first, and gives up for its price.

The layer's functions stand beside those of `bnjax.normalization` by name.
"""

from bnjax.whitening.covariance import Covariance, batch_covariance
from bnjax.whitening.layer import (
    init_whitening_stats,
    whiten_batch,
    whiten_population,
    whitening_transform,
)
from bnjax.whitening.matrix import inverse_sqrt, whitening_matrix

__all__ = [
    "Covariance",
    "batch_covariance",
    "init_whitening_stats",
    "inverse_sqrt",
    "whiten_batch",
    "whiten_population",
    "whitening_matrix",
    "whitening_transform",
]
