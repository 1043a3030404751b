"""What one call of a layer does, in any framework: which moments normalize, and what is updated."""

from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from bnjax.normalization import batch_norm, complex_numbers
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
    feature_axes,
)
from bnjax.normalization.groups import BatchChoice
from bnjax.normalization.moments import Moments
from bnjax.normalization.transform import Activation


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
    normalizing: Stats | None = None,
) -> Outcome:
    """Normalizes by the statistics as they came in, or by the batch; then updates them, or not.

    Args:
        x: as for `normalize_batch`, and so is what is not listed here; also complex, or one example
            of the batch that `axis_name` holds, without an axis of examples.
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
        dtype: of `y`; floating, or complex.
        normalizing: the statistics that normalize, if not `stats`.

    Raises:
        ValueError: as `normalize_batch`; or for a `dtype` that cannot hold `y`.
    """
    check_update(decay, averaging, running_var)
    normalizing = (normalizing or stats) if use_running_average else {}
    kind = _arithmetic(x, params, stats if update_statistics else {}, normalizing, dtype)
    mask = broadcast_mask(mask, x)
    features = feature_axes(x.ndim, axis)
    alone = len(features) == x.ndim  # one example of a batch that mapped axes hold
    if alone:
        axis = tuple(a + 1 for a in features)
        x, mask = x[None], None if mask is None else mask[None]
    if update_statistics:
        check_stats(stats, tuple(x.shape[a] for a in feature_axes(x.ndim, axis)))
        check_count(stats, averaging)

    def of_batch(x: jax.Array, params: Params) -> tuple[jax.Array, Moments]:
        return kind.batch_transform(
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
        y = kind.normalize_population(
            x, params, normalizing, axis=axis, epsilon=epsilon, activation=activation, dtype=dtype
        )
        if update_statistics:
            _, moments = of_batch(lax.stop_gradient(x), {})
    y = y[0] if alone else y
    if moments is None or not update_statistics:
        return Outcome(y, None, moments)
    new = kind.update_stats(
        stats, moments, decay=decay, averaging=averaging, running_var=running_var
    )
    return Outcome(y, new, moments)


def _arithmetic(
    x: jax.Array, params: Params, updated: Stats, normalizing: Stats, dtype: DTypeLike
) -> ModuleType:
    """Whose functions compute: those of real or of complex numbers."""
    sources = [x, *params.values(), *normalizing.values()]
    to_complex = jnp.issubdtype(dtype, jnp.complexfloating)
    if not to_complex:
        check_dtype(dtype)
    if not to_complex and any(map(jnp.iscomplexobj, sources)):
        raise ValueError(
            f"dtype must be complex where x, scale, bias or the mean is, got {jnp.dtype(dtype)}: "
            "convert x, or give a complex dtype."
        )
    mixed = to_complex or any(map(jnp.iscomplexobj, [*sources, *updated.values()]))
    return complex_numbers if mixed else batch_norm
