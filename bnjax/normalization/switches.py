"""One call of a layer, in any framework: which moments normalize, and what is updated."""

from dataclasses import replace
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bnjax.normalization import batch_norm, complex_numbers, renormalization
from bnjax.normalization.arguments import (
    Params,
    Stats,
    broadcast_mask,
    check_count,
    check_input,
)
from bnjax.normalization.axes import sorted_axes
from bnjax.normalization.moments import Moments
from bnjax.normalization.renormalization import Limits, check_limits
from bnjax.normalization.settings import Settings


class Outcome(NamedTuple):
    """The results of one call.

    Attributes:
        y: of the shape of `x`.
        stats: the new statistics; None where they stay.
        moments: the batch's; None where they were not needed.
    """

    y: jax.Array
    stats: Stats | None
    moments: Moments | None


def normalize(
    x: jax.Array,
    params: Params,
    stats: Stats,
    settings: Settings,
    *,
    use_running_average: bool,
    update_statistics: bool | None,
    mask: jax.Array | None,
    normalizing: Stats | None = None,
    limits: Limits | None = None,
) -> Outcome:
    """Normalizes by the statistics as they came in, or by the batch; then updates them, or not.

    Args:
        x: as for `normalize_batch`; also complex, or one example of the batch that `axis_name`
            holds, without an axis of examples.
        params: `scale` and `bias`.
        stats: only read where they normalize or are updated.
        settings: with the `dtype` of `y`, floating or complex.
        use_running_average: the statistics normalize; otherwise the batch's moments do.
        update_statistics: the batch's moments move the statistics, whichever normalized; None is
            exactly where the batch normalizes.
        mask: what counts in the batch's moments; broadcasts to `x` by NumPy's rules.
        normalizing: the statistics that normalize, if not `stats`.
        limits: where the batch normalizes, it is by batch renormalization within these.

    Raises:
        ValueError: as `normalize_batch`; or for a `dtype` that cannot hold `y`.
    """
    update = not use_running_average if update_statistics is None else update_statistics
    if limits is not None:
        check_limits(limits)
    limits = None if use_running_average else limits
    reads = use_running_average or limits is not None
    read = stats | (normalizing or {}) if reads else {}
    kind = _arithmetic(x, params, stats if update else {}, read, settings)
    mask = broadcast_mask(mask, x)
    features = sorted_axes(x.ndim, settings.axis)
    alone = len(features) == x.ndim  # one example of a batch that mapped axes hold
    if alone:
        settings = replace(settings, axis=tuple(a + 1 for a in features))
        x, mask = x[None], None if mask is None else mask[None]
    if kind is complex_numbers:
        x = complex_numbers.as_complex(x)
    checked = [read] * reads + [stats] * update
    real = kind is batch_norm or limits is not None
    axes = check_input(x, params, settings, *checked, real=real)
    if update or limits is not None:
        check_count(stats, settings.averaging)

    moments = None
    if limits is not None:
        y, moments = renormalization.transform_batch(x, params, read, limits, mask, settings, axes)
    elif not use_running_average:
        y, moments = kind.transform_batch(x, params, mask, settings, axes)
    else:
        y = kind.transform_population(x, params, read, settings, axes)
        if update:
            _, moments = kind.transform_batch(lax.stop_gradient(x), {}, mask, settings, axes)
    y = y[0] if alone else y
    if moments is None or not update:
        return Outcome(y, None, moments)
    return Outcome(y, kind.move_stats(stats, moments, settings), moments)


def _arithmetic(
    x: jax.Array, params: Params, updated: Stats, normalizing: Stats, settings: Settings
) -> ModuleType:
    """Returns the module whose functions compute: that of real or of complex numbers."""
    sources = [x, *params.values(), *normalizing.values()]
    dtype = settings.output_dtype(x)
    to_complex = jnp.issubdtype(dtype, jnp.complexfloating)
    if not to_complex and any(map(jnp.iscomplexobj, sources)):
        raise ValueError(
            f"dtype must be complex where x, scale, bias or the mean is, got {jnp.dtype(dtype)}: "
            "convert x, or give a complex dtype."
        )
    mixed = to_complex or any(map(jnp.iscomplexobj, [*sources, *updated.values()]))
    return complex_numbers if mixed else batch_norm
