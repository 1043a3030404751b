"""What one call of a layer does, in any framework: which moments normalize, and what is updated."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax import lax
from jax.typing import DTypeLike

from bnjax.normalization.arguments import (
    Averaging,
    Impl,
    Params,
    RunningVar,
    Stats,
    broadcast_mask,
    check_count,
    check_dtype,
    check_stats,
    check_update,
    split_axes,
)
from bnjax.normalization.batch_norm import batch_transform, normalize_population, update_stats
from bnjax.normalization.fused import Activation
from bnjax.normalization.groups import BatchChoice
from bnjax.normalization.moments import Moments


class Outcome(NamedTuple):
    """Of one call.

    Attributes:
        y: of the shape of `x`.
        stats: the new statistics; None where they stay.
        moments: of the batch; None where they were not needed.
    """

    y: jax.Array
    stats: Stats | None
    moments: Moments | None


def normalize(
    x: jax.Array,
    params: Params,
    stats: Stats,
    *,
    use_running_average: bool,
    update_statistics: bool,
    axis: int | Sequence[int],
    decay: float | jax.Array,
    epsilon: float,
    averaging: Averaging,
    running_var: RunningVar,
    activation: Activation | None,
    batch: BatchChoice,
    mask: jax.Array | None,
    axis_name: str | Sequence[str] | None,
    axis_index_groups: Sequence[Sequence[int]] | None,
    impl: Impl,
    dtype: DTypeLike,
) -> Outcome:
    """Normalizes by the statistics as they came in, or by the batch; then updates them, or not.

    Args:
        x: as for `normalize_batch`, and so is what is not listed here.
        params: `scale` and `bias`.
        stats: only read where they normalize or are updated.
        use_running_average: the statistics normalize; otherwise the batch's moments do.
        update_statistics: the batch's moments move the statistics, whichever normalized.
        axis: the feature axes.
        decay: fraction of the old statistics kept.
        epsilon: added to the variance.
        averaging: of the statistics.
        running_var: what the statistics hold.
        activation: applied last.
        batch: what is normalized together.
        mask: what counts in the batch's moments; broadcasts to `x` by NumPy's rules.
        axis_name: mapped axes whose devices share the batch.
        axis_index_groups: groups of devices.
        impl: of the batch's transform.
        dtype: of `y`; floating.

    Raises:
        ValueError: as `normalize_batch`; or for a `dtype` that is not floating.
    """
    check_update(decay, averaging, running_var)
    check_dtype(dtype)
    mask = broadcast_mask(mask, x)
    if update_statistics:
        check_stats(stats, split_axes(x, axis)[1])
        check_count(stats, averaging)

    def of_batch(x: jax.Array, params: Params) -> tuple[jax.Array, Moments]:
        return batch_transform(
            x,
            params,
            axis=axis,
            epsilon=epsilon,
            activation=activation,
            batch=batch,
            mask=mask,
            axis_name=axis_name,
            axis_index_groups=axis_index_groups,
            impl=impl,
            dtype=dtype,
        )

    moments = None
    if not use_running_average:
        y, moments = of_batch(x, params)
    else:
        y = normalize_population(
            x, params, stats, axis=axis, epsilon=epsilon, activation=activation, dtype=dtype
        )
        if update_statistics:
            _, moments = of_batch(lax.stop_gradient(x), {})
    if moments is None or not update_statistics:
        return Outcome(y, None, moments)
    new = update_stats(stats, moments, decay=decay, averaging=averaging, running_var=running_var)
    return Outcome(y, new, moments)
