"""Layers of the networks: with normalization and activation as arguments, and dropout."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jax import lax

from bnjax.models.convolutions import pointwise_convolution
from bnjax.models.norms import Activation, Norm, WithNorm, normalize_and_activate
from bnjax.models.pooling import average_pool
from bnjax.normalization.meshes import divided_like
from bnjax.normalization.settings import known_number

Initializer = Callable[..., jax.Array]
Padding = Literal["SAME", "SYMMETRIC", "VALID"]
"""Padding of a convolution. With a stride, `"SAME"` (TensorFlow) pads more at the bottom and right
where `"SYMMETRIC"` (Caffe, torch) pads all sides alike; without one, they are the same."""


class NormActivation(WithNorm):
    """Normalization, then the nonlinearity: z = g(BN(W u)) (Ioffe & Szegedy 2015, section 3.2).

    The layer before it has a bias only without normalization, whose own bias takes its place. The
    nonlinearity's input is kept as `preactivation` in the collection `intermediates`, if mutable.

    Attributes:
        norm: the normalization, see `norm_by_name`; None for none.
        activation: the nonlinearity g.
    """

    norm: Norm | str | None
    activation: Activation

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `x` to an array of its shape; `train` says whose moments normalize."""
        return normalize_and_activate(self, x, self.norm, self.activation, train=train)


class ConvNorm(WithNorm):
    """Convolution, normalization, nonlinearity; the convolution has a bias only without `norm`.

    The nonlinearity's input is kept as `preactivation` in the collection `intermediates`, if
    mutable.

    Attributes:
        features: channels out, before `width` scales them.
        kernel: height and width.
        strides: in both directions.
        padding: see `Padding`.
        norm: the normalization, see `norm_by_name`; None for none.
        activation: the nonlinearity.
        width: factor on `features`.
        depth_multiplier: if not 0, the convolution is separable: each input channel to so many
            maps by kernels of their own, then those to `features` by a 1x1 convolution.
        kernel_init: initializer of the weights.
        bias_init: initializer of the biases.
        dtype: dtype of the computation and the output; by default that to which input and
            parameters promote.
        param_dtype: dtype of the parameters; `norm` has its own.
    """

    features: int
    kernel: tuple[int, int]
    strides: int = 1
    padding: Padding = "SAME"
    depth_multiplier: int = 0
    norm: Norm | str | None = None
    activation: Activation = nn.relu
    width: float = 1.0
    kernel_init: Initializer = nn.initializers.he_normal()
    bias_init: Initializer = nn.initializers.zeros
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `[n, h, w, c]` to `[n, h', w', features]`; `train` says whose moments normalize."""
        conv = partial(
            nn.Conv,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        kernel, strides = self.kernel, self.strides
        if self.depth_multiplier:
            x = conv(
                self.depth_multiplier * x.shape[-1],
                kernel,
                strides,
                padding=explicit_padding(self.padding, kernel),
                feature_group_count=x.shape[-1],
                use_bias=False,
                name="depthwise",
            )(x)
            kernel, strides = (1, 1), 1
        x = conv(
            scaled(self.features, self.width),
            kernel,
            strides,
            padding=explicit_padding(self.padding, kernel),
            use_bias=self.norm is None,
            conv_general_dilated=pointwise_convolution
            if (kernel, strides) == ((1, 1), 1)
            else None,
            name="conv",
        )(x)
        return normalize_and_activate(
            self, x, self.norm, self.activation, train=train, dtype=self.dtype
        )


class DenseNorm(WithNorm):
    """Dense layer, normalization, nonlinearity: `ConvNorm` for features without positions.

    Attributes:
        features: units, before `width` scales them.
        norm: the normalization, see `norm_by_name`; None for none, and a bias in its place.
        activation: the nonlinearity.
        width: factor on `features`.
        kernel_init: initializer of the weights.
        bias_init: initializer of the biases.
        dtype: dtype of the computation and the output; by default that to which input and
            parameters promote.
        param_dtype: dtype of the parameters; `norm` has its own.
    """

    features: int
    norm: Norm | str | None = None
    activation: Activation = nn.relu
    width: float = 1.0
    kernel_init: Initializer = nn.initializers.he_normal()
    bias_init: Initializer = nn.initializers.zeros
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `[n, c]` to `[n, features]`; `train` says whose moments normalize."""
        x = nn.Dense(
            scaled(self.features, self.width),
            use_bias=self.norm is None,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="dense",
        )(x)
        return normalize_and_activate(
            self, x, self.norm, self.activation, train=train, dtype=self.dtype
        )


def scaled(features: int, width: float) -> int:
    """`features` times `width`, rounded half up, one at least."""
    check_width(width)
    return max(1, math.floor(features * width + 0.5))


def explicit_padding(
    padding: Padding, kernel: tuple[int, int]
) -> Literal["SAME", "VALID"] | list[tuple[int, int]]:
    """`padding` in the terms of `nn.Conv`; the kernel's sizes are odd."""
    if padding == "SYMMETRIC":
        return [(size // 2, size // 2) for size in kernel]
    return padding


def scaled_tanh(x: jax.Array) -> jax.Array:
    """1.7159 tanh(2x/3), the squashing function of LeCun et al. 1998.

    Example:
        >>> print(scaled_tanh(jnp.array([-1.0, 0.0, 1.0])))
        [-1.  0.  1.]
    """
    return 1.7159 * jnp.tanh(2 / 3 * x)


def local_response_normalization(
    x: jax.Array, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> jax.Array:
    """Divides by (k + alpha / size * (sum of x^2 over `size` neighbouring channels)) ^ beta.

    In float32 at least, whatever the dtype of `x`: the sum would vanish beside `k`.

    Args:
        x: channels last.
        size: channels in the sum, odd; those beyond the first and the last count as zero.
        alpha: divided by `size`, as in Caffe and torch; in AlexNet's paper it is not.
        beta: exponent.
        k: keeps the divisor from zero.

    Returns:
        An array of the shape and dtype of `x`.
    """
    wide = x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x
    ones = (1,) * (x.ndim - 1)
    border = [(0, 0)] * (x.ndim - 1) + [(size // 2, size // 2)]
    total = lax.reduce_window(jnp.square(wide), 0.0, lax.add, (*ones, size), (1,) * x.ndim, border)
    return (wide * (k + alpha / size * total) ** -beta).astype(x.dtype)


def check_width(width: float) -> None:
    """Raises ValueError unless `width` is a factor that a number of features may have."""
    known = known_number("width", width)
    if known is None or not 0 < known < math.inf:
        raise ValueError(f"width must be positive, got {width}: it is a finite factor.")


def check_rate(name: str, rate: float) -> None:
    """Raises ValueError unless `rate` is a fraction that may be dropped."""
    known = known_number(name, rate)
    if known is None or not 0 <= known < 1:
        raise ValueError(f"{name} must be in [0, 1), got {rate}.")


class Dropout(nn.Module):
    """Dropout whose masks do not depend on how a batch is divided over devices.

    Attributes:
        rate: fraction of the values that is zeroed in training, in [0, 1); the others are scaled
            by 1 / (1 - rate).
        axis_name: mapped axis of the devices that share a batch: each draws for all of it, and
            takes its own examples' part. None where a program sees all of it.
    """

    rate: float
    axis_name: str | None = None

    def __post_init__(self) -> None:
        check_rate("rate", self.rate)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `[n, ...]` to an array of its shape; training needs the PRNG key `"dropout"`."""
        if not train or self.rate == 0:
            return x
        keep, n = 1 - self.rate, x.shape[0]
        devices = 1 if self.axis_name is None else lax.axis_size(self.axis_name)
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, (n * devices, *x.shape[1:]))
        if self.axis_name is not None:
            first = n * lax.axis_index(self.axis_name)
            kept = lax.dynamic_slice_in_dim(kept, first, n)
        kept = divided_like(kept, x)  # on an explicit mesh, where what is drawn lies whole
        return jnp.where(kept, x / keep, jnp.zeros_like(x))


class Subsample(nn.Module):
    """LeNet's subsampling: the sum of each 2x2 window, times a coefficient, plus a bias.

    Both are learned, one pair for each map (LeCun et al. 1998, section II.B).
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[n, h, w, c]` to `[n, h / 2, w / 2, c]`."""
        maps = x.shape[-1:]
        coefficient = self.param("coefficient", nn.initializers.constant(0.25), maps)
        bias = self.param("bias", nn.initializers.zeros, maps)
        x = 4 * average_pool(x)
        shape = (1, 1, 1, -1)
        return x * coefficient.reshape(shape) + bias.reshape(shape)
