"""Normalization by the batch's moments, with the backward pass in closed form: `impl="fused"`.

Autodiff through the moments keeps several float32 copies of the activations. The closed form
(Ioffe & Szegedy 2015, section 3, chain rule collected) needs only `x` itself and two numbers per
feature, and one sum over devices. An activation joins in: its derivative is recomputed from `x`.

`_gradients` is the formula, in two passes over memory. Around it stand what compilers need
(`_forward`'s sign, `_after_the_sums`, the fusion borders of the CPU) and, at the end of the file,
what `shard_map`'s types need.
"""

from functools import partial
from typing import NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
from jax import lax

from bnjax.normalization.fast.borders import fusion_border
from bnjax.normalization.fast.sums import pair_of_sums
from bnjax.normalization.meshes import divided_like, mapped_names
from bnjax.normalization.moments import Moments, sum_over_devices
from bnjax.normalization.transform import Transform, definition
from bnjax.normalization.versions import as_varying, typed_axes, varying_axes


def normalize_fused(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    mask: jax.Array | None,
    transform: Transform,
) -> tuple[jax.Array, Moments]:
    """Returns the values of `normalize_autodiff`; reverse mode is the closed form."""
    try:
        return _normalize(x, scale, bias, mask, transform)
    except TypeError as error:
        if "custom_vjp" in str(error):  # JAX's, of `jvp`; under `jit` it comes when compiling
            error.add_note("Batch normalization has a forward mode with impl='autodiff'.")
        raise


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _normalize(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    mask: jax.Array | None,
    transform: Transform,
) -> tuple[jax.Array, Moments]:
    return _forward(x, scale, bias, mask, transform)[0]


class _Saved(NamedTuple):
    """The residuals: what the backward pass is given of the forward pass."""

    x: jax.Array
    scale: jax.Array | None
    bias: jax.Array | None
    mask: jax.Array | None
    minus_mean: jax.Array
    rstd: jax.Array
    size: jax.Array

    @property
    def masked_x(self) -> tuple[jax.Array, ...]:
        return (self.x,) if self.mask is None else (self.x, self.mask)


def _forward(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    mask: jax.Array | None,
    transform: Transform,
) -> tuple[tuple[jax.Array, Moments], _Saved]:
    y, moments, rstd = definition(x, scale, bias, mask, transform)
    # The residuals keep their gradient: second derivatives pass through them. The mean's sign is
    # changed so that XLA cannot merge the backward pass's x + (-mean) with the x - mean above:
    # it would then keep what follows from it, float32 or a mask, from one pass to the other.
    saved = _Saved(x, scale, bias, mask, -moments.mean, rstd, moments.size)
    return (y, jax.tree.map(lax.stop_gradient, moments)), saved


def _backward(
    transform: Transform, saved: _Saved, cotangents: tuple[jax.Array, Moments]
) -> tuple[jax.Array, jax.Array | None, jax.Array | None, None]:
    """Returns the gradients of x, scale and bias; the mask has none.

    Statistics carry no gradient: the moments' cotangents are dropped.
    """
    try:
        gradients = lax.platform_dependent(
            saved,
            cotangents[0],
            cpu=partial(_gradients_on_cpu, transform=transform, on_cpu=True),
            default=partial(_gradients, transform=transform),
        )
    except NameError as error:  # JAX runs this rule without the axis where `grad` is outside `vmap`
        error.add_note(
            "Of a batch that vmap's axis_name holds, take the gradient inside of vmap, or give "
            "batch normalization impl='autodiff'."
        )
        raise
    return *gradients, None


_normalize.defvjp(_forward, _backward)


def _gradients(
    saved: _Saved, dy: jax.Array, *, transform: Transform, on_cpu: bool = False
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """Returns the gradients of x, scale and bias.

    With xhat = (x - mean) rstd, and dz the gradient of the activation's input z:

        dbias = sum dz
        dscale = sum dz xhat
        dx = scale rstd (dz - (sum dz + xhat sum dz xhat) / m)
    """
    axes = transform.axes
    features = _features(saved)
    dz_of = _dz_on_cpu if on_cpu else _dz

    # First pass over memory: both sums. dscale lacks its rstd, a factor of each feature.
    dz = dz_of(dy, features, *saved.masked_x, transform=transform) if transform.activation else dy
    sums = pair_of_sums(partial(_terms, saved.minus_mean, axes), (dz, *saved.masked_x), axes)

    # Second pass: dx. A CPU is faster at reading dz again, other backends at computing it again.
    if transform.activation and not on_cpu:
        features, sums = _after_the_sums(features, sums)
        dz = dz_of(dy, features, *saved.masked_x, transform=transform)
    dz = dz.astype(saved.rstd.dtype)
    centred = _centre(features.minus_mean, *saved.masked_x, axes=axes)
    dz_of_x = _where_x_matters(dz, saved)
    local = _rows(sums, dz_of_x, saved, axes)
    factor = jnp.expand_dims(features.factor, axes)
    if _may_scale_apart(saved.scale, transform):  # each device scales what reaches the others' x
        shared = None
        scaled = _sum_over_devices(local * saved.scale.astype(local.dtype)[None], transform)
        through = _through_moments(centred, scaled, saved, axes)
        dx = dz_of_x * factor - through * jnp.expand_dims(saved.rstd, axes)
    else:
        shared = _sum_over_devices(local, transform)
        dx = (dz_of_x - _through_moments(centred, shared, saved, axes)) * factor
    return (
        _like_primal(dx, saved.x),
        _like_parameter(1, local, shared, saved.scale, transform),
        _like_parameter(0, local, shared, saved.bias, transform),
    )


_gradients_on_cpu = fusion_border(_gradients, static_argnames=("transform", "on_cpu"))
"""The CPU's: whoever reads dx would otherwise compute it again."""


class _Features(NamedTuple):
    """The numbers of each feature from which z is computed again: (x - mean) factor + shift."""

    minus_mean: jax.Array
    factor: jax.Array
    shift: jax.Array


def _features(saved: _Saved) -> _Features:
    dtype = saved.rstd.dtype
    factor = saved.rstd if saved.scale is None else saved.rstd * saved.scale.astype(dtype)
    shift = jnp.zeros_like(factor) if saved.bias is None else saved.bias.astype(dtype)
    return _Features(saved.minus_mean, factor, shift)


def _dz(
    dy: jax.Array, features: _Features, *masked_x: jax.Array, transform: Transform
) -> jax.Array:
    """Returns the gradient of the activation's input z."""

    def over(feature: jax.Array) -> jax.Array:
        return jnp.expand_dims(feature, transform.axes)

    minus_mean, factor, shift = features
    z = _centre(minus_mean, *masked_x, axes=transform.axes) * over(factor)
    if transform.activation == "relu":
        return jnp.where(z > over(-shift), dy, 0)
    y = jax.nn.sigmoid(z + over(shift))
    return dy.astype(y.dtype) * (y * (1 - y))


_dz_on_cpu = fusion_border(_dz, static_argnames=("transform",))
"""The CPU's: written once for both passes."""


def _terms(
    minus_mean: jax.Array, axes: tuple[int, ...], dz: jax.Array, *masked_x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the summands of dbias and of dscale / rstd."""
    dz = dz.astype(minus_mean.dtype)
    return dz, dz * _centre(minus_mean, *masked_x, axes=axes)


def _centre(
    minus_mean: jax.Array, x: jax.Array, *mask: jax.Array, axes: tuple[int, ...]
) -> jax.Array:
    """Returns x - mean; zero where NaN or infinity is masked."""
    centred = x.astype(minus_mean.dtype) + jnp.expand_dims(minus_mean, axes)
    return jnp.where(mask[0] | jnp.isfinite(x), centred, 0) if mask else centred


def _where_x_matters(dz: jax.Array, saved: _Saved) -> jax.Array:
    """Returns dz, but zero where NaN or infinity is masked: there z is `bias`, whatever x."""
    return dz if saved.mask is None else jnp.where(saved.mask | jnp.isfinite(saved.x), dz, 0)


def _rows(
    sums: tuple[jax.Array, jax.Array], dz_of_x: jax.Array, saved: _Saved, axes: tuple[int, ...]
) -> jax.Array:
    """Returns dbias, dscale and, where a mask makes it differ from dbias, the sum of `dz_of_x`.

    They are one array, for one collective.
    """
    rows = [sums[0], sums[1] * saved.rstd]
    return jnp.stack(rows if saved.mask is None else [*rows, dz_of_x.sum(axes)])


def _through_moments(
    centred: jax.Array, shared: jax.Array, saved: _Saved, axes: tuple[int, ...]
) -> jax.Array:
    """Returns what reaches x by way of mean and variance; zero where x does not count in them."""
    count = jnp.maximum(saved.size, 1)
    slope = jnp.expand_dims(shared[1] * saved.rstd / count, axes)
    offset = jnp.expand_dims(shared[0 if saved.mask is None else 2] / count, axes)
    gradient = offset + centred * slope
    return gradient if saved.mask is None else jnp.where(saved.mask, gradient, 0)


def _after_the_sums(
    features: _Features, sums: tuple[jax.Array, jax.Array]
) -> tuple[_Features, tuple[jax.Array, jax.Array]]:
    """Returns the same numbers behind a barrier: what follows cannot be merged with the sums.

    A GPU would otherwise compute dz once for both passes, and write it out: a whole array more.
    """
    values = (*features, *sums)
    names = frozenset[str]().union(*map(varying_axes, values))
    # `shard_map`'s types: the barrier takes values that vary over the same mesh axes.
    minus_mean, factor, shift, *sums_again = lax.optimization_barrier(
        tuple(as_varying(value, names) for value in values)
    )
    return _Features(minus_mean, factor, shift), (sums_again[0], sums_again[1])


# Devices. `shard_map` types each value by the mesh axes over which it varies, and wants a gradient
# typed as its primal: it is summed over what it varies over besides. Elsewhere (`pmap`, `vmap`)
# there are no such types: each device returns its own share and the caller sums, as for every
# parameter.


def _of_group(transform: Transform) -> set[str]:
    """Returns the mapped axes whose devices share the group."""
    return set(mapped_names(transform.groups.axis_name))


def _may_scale_apart(scale: jax.Array | None, transform: Transform) -> TypeGuard[jax.Array]:
    """Returns whether devices that share the group may each have a scale of their own.

    Types alone say that they have not.
    """
    names = _of_group(transform)
    return scale is not None and not names <= typed_axes(names) - varying_axes(scale)


def _sum_over_devices(values: jax.Array, transform: Transform) -> jax.Array:
    """Returns the sums over the devices that share the group."""
    names, index_groups = transform.groups.axis_name, transform.groups.axis_index_groups
    return values if names is None else sum_over_devices(values, names, index_groups)


def _like_primal(gradient: jax.Array, primal: jax.Array) -> jax.Array:
    """Returns the gradient summed, rounded and divided over devices as the primal's types say."""
    total = _sum_over(varying_axes(gradient) - varying_axes(primal), gradient)
    return divided_like(total.astype(primal.dtype), primal)


def _like_parameter(
    row: int,
    local: jax.Array,
    shared: jax.Array | None,
    parameter: jax.Array | None,
    transform: Transform,
) -> jax.Array | None:
    """Returns a row of the sums as the gradient of a parameter, if there is one.

    Where the sum that the type asks for includes the one over the group's devices, that one is
    taken as it is, if it is at hand: no further collective.
    """
    if parameter is None:
        return None
    missing = varying_axes(local) - varying_axes(parameter)
    of_group = _of_group(transform)
    if shared is not None and transform.groups.axis_index_groups is None and missing >= of_group:
        total = _sum_over(missing - of_group, shared[row])
    else:
        total = _sum_over(missing, local[row])
    return divided_like(total.astype(parameter.dtype), parameter)


def _sum_over(names: frozenset[str], value: jax.Array) -> jax.Array:
    return lax.psum(value, tuple(sorted(names))) if names else value
