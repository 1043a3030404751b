"""Normalization by the batch's moments, with the backward pass in closed form.

Autodiff through the moments keeps several float32 copies of the activations. The closed form
(Ioffe & Szegedy 2015, section 3, chain rule collected) needs only `x` itself and two numbers per
feature, and one sum over devices. An activation joins in: its derivative is recomputed from `x`.
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from bnjax.normalization.apart import apart
from bnjax.normalization.meshes import divided_like
from bnjax.normalization.moments import Moments, batch_moments, precision
from bnjax.normalization.sums import pair_of_sums
from bnjax.normalization.versions import as_varying, varying_axes

Activation = Literal["relu", "sigmoid"]


class Transform(NamedTuple):
    """What is computed; static, hence hashable.

    Attributes:
        axes: the axes that moments average over.
        axis_name: mapped axes that share the batch.
        axis_index_groups: groups of devices that share a batch each.
        shards: parts of the batch that devices hold, where `jit` divides it.
        epsilon: added to the variance.
        activation: applied last.
        dtype: of the output.
    """

    axes: tuple[int, ...]
    axis_name: str | tuple[str, ...] | None
    axis_index_groups: tuple[tuple[int, ...], ...] | None
    shards: int
    epsilon: float
    activation: Activation | None
    dtype: DTypeLike

    @property
    def names(self) -> tuple[str, ...]:
        """The mapped axes, none, one or several."""
        if self.axis_name is None:
            return ()
        return (self.axis_name,) if isinstance(self.axis_name, str) else self.axis_name

    def moments(self, x: jax.Array, mask: jax.Array | None) -> Moments:
        """Moments of `x` over this batch."""
        return batch_moments(
            x,
            self.axes,
            mask=mask,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
            shards=self.shards,
        )

    def output(
        self,
        x: jax.Array,
        mean: jax.Array,
        rstd: jax.Array,
        scale: jax.Array | None,
        bias: jax.Array | None,
    ) -> jax.Array:
        """The activation of the affine map, rounded once."""
        z = affine(x, mean, rstd, scale, bias, self.axes)
        return activate(z, self.activation).astype(self.dtype)


def affine(
    x: jax.Array,
    mean: jax.Array,
    rstd: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    axes: tuple[int, ...],
) -> jax.Array:
    """(x - mean) * rstd * scale + bias, at the precision of `mean`.

    The mean is subtracted before anything is multiplied: x * a - mean * a would cancel.
    """
    factor = rstd if scale is None else rstd * scale.astype(rstd.dtype)
    y = (x.astype(mean.dtype) - jnp.expand_dims(mean, axes)) * jnp.expand_dims(factor, axes)
    return y if bias is None else y + jnp.expand_dims(bias.astype(y.dtype), axes)


def activate(z: jax.Array, activation: Activation | None) -> jax.Array:
    """`z` itself, or its activation."""
    if activation is None:
        return z
    return jax.nn.relu(z) if activation == "relu" else jax.nn.sigmoid(z)


def finite_where_masked(
    x: jax.Array, mask: jax.Array | None, mean: jax.Array, axes: tuple[int, ...]
) -> jax.Array:
    """Replaces NaN and infinity in masked places by the mean, so that they reach no gradient.

    At the precision of the mean: rounded to that of `x`, it would not be the mean.
    """
    if mask is None:
        return x
    return jnp.where(mask | jnp.isfinite(x), x.astype(mean.dtype), jnp.expand_dims(mean, axes))


def normalize_autodiff(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    mask: jax.Array | None,
    transform: Transform,
) -> tuple[jax.Array, Moments]:
    """The definition, differentiated by JAX: any order, forward or reverse."""
    # Converted once: autodiff then adds the gradients of all its uses before it rounds.
    x = x.astype(precision(x.dtype))
    y, moments, _ = _definition(x, scale, bias, mask, transform)
    return y, jax.tree.map(lax.stop_gradient, moments)


def _definition(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    mask: jax.Array | None,
    transform: Transform,
) -> tuple[jax.Array, Moments, jax.Array]:
    """`y`, the moments and 1/sqrt(var + epsilon), all of them differentiable."""
    moments = transform.moments(x, mask)
    x = finite_where_masked(x, mask, moments.mean, transform.axes)
    rstd = lax.rsqrt(moments.var + transform.epsilon)
    return transform.output(x, moments.mean, rstd, scale, bias), moments, rstd


def normalize_fused(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    mask: jax.Array | None,
    transform: Transform,
) -> tuple[jax.Array, Moments]:
    """The same values; reverse mode by the closed form."""
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


class _Residuals(NamedTuple):
    x: jax.Array
    scale: jax.Array | None
    bias: jax.Array | None
    mask: jax.Array | None
    minus_mean: jax.Array
    rstd: jax.Array
    size: jax.Array


def _forward(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    mask: jax.Array | None,
    transform: Transform,
) -> tuple[tuple[jax.Array, Moments], _Residuals]:
    y, moments, rstd = _definition(x, scale, bias, mask, transform)
    # The residuals keep their gradient: second derivatives pass through them. The mean's sign is
    # changed so that XLA cannot merge the backward pass's x + (-mean) with the x - mean above:
    # it would then keep what follows from it, float32 or a mask, from one pass to the other.
    residuals = _Residuals(x, scale, bias, mask, -moments.mean, rstd, moments.size)
    return (y, jax.tree.map(lax.stop_gradient, moments)), residuals


def _backward(
    transform: Transform, residuals: _Residuals, cotangents: tuple[jax.Array, Moments]
) -> tuple[jax.Array, jax.Array | None, jax.Array | None, None]:
    """The gradients of x, scale and bias; the mask has none.

    Statistics carry no gradient: the moments' cotangents are dropped.
    """
    gradients = lax.platform_dependent(
        residuals,
        cotangents[0],
        cpu=partial(_gradients_on_cpu, transform=transform, on_cpu=True),
        default=partial(_gradients, transform=transform),
    )
    return *gradients, None


class _Features(NamedTuple):
    """What `_before_activation` knows of each feature."""

    minus_mean: jax.Array
    factor: jax.Array
    shift: jax.Array


def _gradients(
    residuals: _Residuals, dy: jax.Array, *, transform: Transform, on_cpu: bool = False
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """Dx = scale rstd (dz - (sum dz + xhat sum dz xhat) / m), the sums being dbias and dscale.

    Here z is the activation's input. A CPU is faster at reading dz again; a GPU's memory is saved
    a pass by computing it again, behind a barrier, so that it is not written out for both.
    """
    x, scale, bias, mask, minus_mean, rstd, size = residuals
    axes = transform.axes
    dtype = rstd.dtype
    factor = rstd if scale is None else rstd * scale.astype(dtype)
    shift = jnp.zeros_like(factor) if bias is None else bias.astype(dtype)
    features = _Features(minus_mean, factor, shift)
    masked_x = (x,) if mask is None else (x, mask)
    before_activation = partial(
        _before_activation_on_cpu if on_cpu else _before_activation, transform=transform
    )

    def terms(dz: jax.Array, *masked_x: jax.Array) -> tuple[jax.Array, jax.Array]:
        dz = dz.astype(dtype)
        return dz, dz * _centre(minus_mean, *masked_x, axes=axes)

    dz = before_activation(dy, features, *masked_x) if transform.activation else dy
    dbias, dscale = pair_of_sums(terms, (dz, *masked_x), axes)
    if transform.activation and not on_cpu:
        values = _varying_alike((*features, dbias, dscale))  # as the barrier types them
        *anew, dbias, dscale = lax.optimization_barrier(values)
        features = _Features(*anew)
        dz = before_activation(dy, features, *masked_x)
    dz = dz.astype(dtype)
    centred = _centre(features.minus_mean, *masked_x, axes=axes)
    sums = [dbias, dscale * rstd]
    if mask is not None:
        dz = jnp.where(mask | jnp.isfinite(x), dz, 0)  # elsewhere z is `bias`, whatever x
        sums.append(dz.sum(axes))
    local = jnp.stack(sums)
    shared = _across(local, transform)

    count = jnp.maximum(size, 1)
    slope = jnp.expand_dims(shared[1] * rstd / count, axes)
    correction = jnp.expand_dims(shared[0 if mask is None else 2] / count, axes) + centred * slope
    if mask is not None:
        correction = jnp.where(mask, correction, 0)
    dx = (dz - correction) * jnp.expand_dims(features.factor, axes)

    def gradient(row: int, parameter: jax.Array | None) -> jax.Array | None:
        if parameter is None:
            return None
        missing = _missing_axes(parameter, local)
        if transform.axis_index_groups is None and missing.issuperset(transform.names):
            total = _sum_over(missing.difference(transform.names), shared[row])
        else:
            total = _sum_over(missing, local[row])
        return divided_like(total.astype(parameter.dtype), parameter)

    dx = _sum_over(_missing_axes(x, dx), dx)
    return divided_like(dx.astype(x.dtype), x), gradient(1, scale), gradient(0, bias)


_gradients_on_cpu = apart(_gradients, static_argnames=("transform", "on_cpu"))


def _before_activation(
    dy: jax.Array, features: _Features, *masked_x: jax.Array, transform: Transform
) -> jax.Array:
    """The gradient with respect to the activation's input."""

    def over(feature: jax.Array) -> jax.Array:
        return jnp.expand_dims(feature, transform.axes)

    minus_mean, factor, shift = features
    z = _centre(minus_mean, *masked_x, axes=transform.axes) * over(factor)
    if transform.activation == "relu":
        return jnp.where(z > over(-shift), dy, 0)
    y = jax.nn.sigmoid(z + over(shift))
    return dy.astype(y.dtype) * (y * (1 - y))


_before_activation_on_cpu = apart(_before_activation, static_argnames=("transform",))


def _centre(
    minus_mean: jax.Array, x: jax.Array, *mask: jax.Array, axes: tuple[int, ...]
) -> jax.Array:
    centred = x.astype(minus_mean.dtype) + jnp.expand_dims(minus_mean, axes)
    return jnp.where(mask[0] | jnp.isfinite(x), centred, 0) if mask else centred


def _across(values: jax.Array, transform: Transform) -> jax.Array:
    if transform.axis_name is None:
        return values
    return lax.psum(values, transform.axis_name, axis_index_groups=transform.axis_index_groups)


def _missing_axes(primal: jax.Array, cotangent: jax.Array) -> frozenset[str]:
    """Mesh axes over which `shard_map` types the cotangent as varying, but not the primal.

    The types must agree, hence the cotangent is summed over them. Elsewhere (`pmap`, `vmap`) there
    are none: each device returns its own share and the caller sums, as for every parameter.
    """
    return varying_axes(cotangent) - varying_axes(primal)


def _varying_alike(values: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Typed by `shard_map` as varying over the mesh axes over which any of them varies."""
    names = frozenset[str]().union(*map(varying_axes, values))
    return tuple(as_varying(value, names) for value in values)


def _sum_over(names: frozenset[str], value: jax.Array) -> jax.Array:
    return lax.psum(value, tuple(sorted(names))) if names else value


_normalize.defvjp(_forward, _backward)
