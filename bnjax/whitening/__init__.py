"""Full whitening: the alternative that the paper considers first, and gives up for its price.

The layer's functions stand beside those of `bnjax.normalization` by name; `fit_whitening` and
`apply_whitening` are for a data set's inputs, once and before training.
"""

from bnjax.whitening.covariance import Covariance, batch_covariance
from bnjax.whitening.inputs import Whitening, apply_whitening, fit_whitening
from bnjax.whitening.layer import (
    init_whitening_stats,
    whiten_batch,
    whiten_population,
    whitening_transform,
)
from bnjax.whitening.matrix import inverse_sqrt, whitening_matrix

__all__ = [
    "Covariance",
    "Whitening",
    "apply_whitening",
    "batch_covariance",
    "fit_whitening",
    "init_whitening_stats",
    "inverse_sqrt",
    "whiten_batch",
    "whiten_population",
    "whitening_matrix",
    "whitening_transform",
]
