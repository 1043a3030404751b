"""Batch renormalization (Ioffe 2017, arXiv:1702.03275): training sees what inference will see.

With mean mu_B and deviation sigma_B of the batch, mu and sigma of the statistics,

    y = ((x - mu_B) / sigma_B * r + d) * scale + bias
    r = sigma_B / sigma,  d = (mu_B - mu) / sigma

is inference's (x - mu) / sigma * scale + bias, whatever else is in the batch. The gradient takes r
and d for constants, and so flows through mu_B and sigma_B, as in batch normalization; and both are
clipped, until the statistics can be trusted. It is meant for small batches, and for examples that
are not independent.

r * scale and d * scale + bias are but another scale and bias: the rest is batch normalization.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bnjax.normalization import batch_norm
from bnjax.normalization.arguments import Params, Stats, check_count, check_input
from bnjax.normalization.moments import Moments
from bnjax.normalization.settings import Settings, known_number


class Limits(NamedTuple):
    """How far r may be from one, and d from zero; numbers, or scalars that may be traced.

    Attributes:
        r_max: r is clipped to [1 / r_max, r_max]; >= 1.
        d_max: d is clipped to [-d_max, d_max]; >= 0.
    """

    r_max: float | jax.Array
    d_max: float | jax.Array


def limits_of(
    layer: Any, r_max: float | jax.Array | None, d_max: float | jax.Array | None
) -> Limits:
    """Returns the limits of a call, which are the layer's own where the call gives none."""
    return Limits(layer.r_max if r_max is None else r_max, layer.d_max if d_max is None else d_max)


def renormalize_batch(
    x: jax.Array,
    params: Params,
    stats: Stats,
    *,
    r_max: float | jax.Array,
    d_max: float | jax.Array,
    mask: jax.Array | None = None,
    **settings: Any,
) -> tuple[jax.Array, Stats]:
    """Normalizes as `normalize_batch` does, but towards the statistics; and moves these alike.

    `r_max=1, d_max=0` is `normalize_batch`; where no limit is reached, `y` is the one that
    `normalize_population` gives with the statistics as they came in, but has another gradient.
    Inference is `normalize_population`.

    The paper averages standard deviations; here, sigma is sqrt(var + epsilon) of `stats`, which
    average variances, so that training and inference divide by the same number. Statistics without
    an update yet are not used: with a count, of zero, r is one and d zero. Without a count
    (`averaging="ema"`) the initial mean zero and variance one are statistics like any other: hold
    the limits at 1 and 0 until they are forgotten, as the paper does, see `renorm_limits`.

    Args:
        x: as for `normalize_batch`.
        params: `scale` and `bias`.
        stats: from `init_stats`.
        r_max: r is clipped to [1 / r_max, r_max]; >= 1, infinity for no limit; may be traced.
        d_max: d is clipped to [-d_max, d_max]; >= 0, infinity for no limit; may be traced.
        mask: as for `normalize_batch`; NaN and infinity where it is False are taken for mu_B.
        **settings: the other arguments of `normalize_batch`, by its names and with its defaults.
            The paper's are `decay=0.99, running_var="biased"`. Each group of a `batch=k` has its
            own r and d.

    Returns:
        `y`, of the shape of `x`, and the new statistics.

    Raises:
        ValueError: while tracing, as `normalize_batch`; or for a bad limit.

    Example:
        >>> x = jnp.array([[2.0], [4.0]])
        >>> stats = {"mean": jnp.array([0.0]), "var": jnp.array([4.0])}
        >>> params = batch_norm.init_params(1)
        >>> y, _ = renormalize_batch(x, params, stats, r_max=jnp.inf, d_max=jnp.inf)
        >>> print(y[:, 0])  # as inference has it: (x - 0) / 2
        [1. 2.]
        >>> y, _ = renormalize_batch(x, params, stats, r_max=1, d_max=0)
        >>> print(y[:, 0])  # batch normalization
        [-1.  1.]
    """
    chosen, limits = Settings(**settings), Limits(r_max, d_max)
    check_limits(limits)
    axes = check_input(x, params, chosen, stats)
    check_count(stats, chosen.averaging)
    y, moments = transform_batch(x, params, stats, limits, mask, chosen, axes)
    return y, batch_norm.move_stats(stats, moments, chosen)


def renorm_limits(
    step: int | jax.Array,
    *,
    start: int = 5_000,
    r_end: int = 40_000,
    d_end: int = 25_000,
    r_max: float = 3.0,
    d_max: float = 5.0,
) -> Limits:
    """Returns the limits at a step, as in the paper's section 4; scale its steps to your training.

    Until `start`, r_max is 1 and d_max 0, which is batch normalization. From there r_max grows
    linearly up to the one given, at step `r_end`, and d_max at `d_end`. (That it is linearly, the
    paper does not say.)

    Raises:
        ValueError: for a bad or infinite limit, or an end that is not after the start.

    Example:
        >>> r_max, d_max = renorm_limits(40_000)
        >>> float(r_max), float(d_max)
        (3.0, 5.0)
    """
    check_limits(Limits(r_max, d_max))
    if not math.isfinite(r_max + d_max):
        raise ValueError(f"r_max={r_max} and d_max={d_max} must be finite: limits grow up to them.")
    for name, value in (("start", start), ("r_end", r_end), ("d_end", d_end)):
        known_number(name, value)
    if not (start < r_end and start < d_end):
        raise ValueError(f"r_end={r_end} and d_end={d_end} must be after start={start}.")

    def share(end: int) -> jax.Array:
        return jnp.clip((jnp.asarray(step, jnp.float32) - start) / (end - start), 0, 1)

    return Limits(1 + share(r_end) * (r_max - 1), share(d_end) * d_max)


def transform_batch(
    x: jax.Array,
    params: Params,
    stats: Stats,
    limits: Limits,
    mask: jax.Array | None,
    settings: Settings,
    axes: tuple[int, ...],
) -> tuple[jax.Array, Moments]:
    """Returns `y` and the batch's moments, of arguments that have been checked."""
    correct = partial(_corrected, stats=stats, limits=limits, settings=settings)
    return batch_norm.transform_batch(x, params, mask, settings, axes, correct)


def _corrected(
    params: Params, moments: Moments, *, stats: Stats, limits: Limits, settings: Settings
) -> Params:
    """Returns r * scale and d * scale + bias, for a group of these moments."""
    dtype = moments.mean.dtype
    r_max, d_max = (jnp.asarray(limit, dtype) for limit in limits)
    mean, var = (stats[key].astype(dtype) for key in ("mean", "var"))
    rstd = lax.rsqrt(var + settings.epsilon)
    r = jnp.clip(jnp.sqrt(moments.var + settings.epsilon) * rstd, 1 / r_max, r_max)
    d = jnp.clip((moments.mean - mean) * rstd, -d_max, d_max)
    known = moments.size > 0
    if settings.averaging != "ema":
        known &= stats["count"] > 0
    r, d = lax.stop_gradient((jnp.where(known, r, 1), jnp.where(known, d, 0)))
    scale = params["scale"].astype(dtype) if "scale" in params else 1
    bias = params["bias"].astype(dtype) if "bias" in params else 0
    return {"scale": r * scale, "bias": d * scale + bias}


def check_limits(limits: Limits) -> None:
    """Raises ValueError for r_max below 1 or d_max below 0, NaN included, where they are known."""
    for name, value, least in zip(limits._fields, limits, (1, 0), strict=True):
        known = known_number(name, value)
        if known is not None and not known >= least:
            raise ValueError(
                f"{name} must be >= {least}, got {value}: r is clipped to [1 / r_max, r_max] and "
                "d to [-d_max, d_max]; r_max=1 and d_max=0 are batch normalization."
            )
