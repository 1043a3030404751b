"""What the models share: normalization and activation as arguments, pooling, convolution."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Norm = Callable[..., nn.Module]
"""Makes a normalization layer, `norm(use_running_average=..., name=...)`, for example
`functools.partial(bnjax.linen.BatchNorm, momentum=0.99)`."""

Activation = Callable[[jax.Array], jax.Array]
Initializer = Callable[..., jax.Array]


class NormActivation(nn.Module):
    """Normalization, then the nonlinearity: z = g(BN(W u)) (Ioffe & Szegedy 2015, section 3.2).

    The layer before it has a bias only without normalization, whose own bias takes its place. The
    nonlinearity's input is kept as `preactivation` in the collection `intermediates`, if mutable.

    Attributes:
        norm: makes the normalization; None for none.
        activation: g.
    """

    norm: Norm | None
    activation: Activation

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `x` to an array of its shape; `train` says whose moments normalize."""
        if self.norm is not None:
            x = self.norm(use_running_average=not train, name="norm")(x)
        self.sow("intermediates", "preactivation", x)
        return self.activation(x)


def scaled_tanh(x: jax.Array) -> jax.Array:
    """1.7159 tanh(2x/3), the squashing function of LeCun et al. 1998."""
    return 1.7159 * jnp.tanh(2 / 3 * x)


def average_pool(x: jax.Array) -> jax.Array:
    """The mean of each 2x2 window of `[n, h, w, c]`.

    Flax's divides by an integer array, which strict dtype promotion refuses.
    """
    return nn.pooling.pool(x, 0.0, lax.add, (2, 2), (2, 2), "VALID") / 4


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


def patch_convolution(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **kwargs: Any,
) -> jax.Array:
    """A stride-one 2-D convolution as one matrix product over patches, for `nn.Conv`.

    XLA's CPU backend runs the gradient of LeNet's convolutions several times slower than this.
    The price is memory: every input value is copied once for each position of the kernel.

    Args:
        lhs: images `[n, h, w, c]`.
        rhs: kernel `[h, w, c, features]`.
        window_strides: all one.
        padding: as for `jax.lax.conv_general_dilated`.
        **kwargs: what else `nn.Conv` passes: its defaults, and any `precision`.

    Raises:
        ValueError: for strides, dilation or groups.
    """
    plain = {"feature_group_count": 1, "lhs_dilation": (1, 1), "rhs_dilation": (1, 1)}
    asked = {"window_strides": tuple(window_strides)} | {
        key: tuple(value) if isinstance(value, Sequence) else value
        for key, value in kwargs.items()
        if key in plain
    }
    for key, value in asked.items():
        if value != plain.get(key, (1, 1)):
            raise ValueError(f"patch_convolution cannot do {key}={value}: use XLA's convolution.")
    height, width, _, features = rhs.shape
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], (height, width), (1, 1), padding)
    lhs = jnp.pad(lhs, ((0, 0), *padding, (0, 0)))
    out_height, out_width = lhs.shape[1] - height + 1, lhs.shape[2] - width + 1
    patches = jnp.concatenate(
        [
            lhs[:, i : i + out_height, j : j + out_width]
            for i in range(height)
            for j in range(width)
        ],
        axis=-1,
    )
    return jnp.matmul(patches, rhs.reshape(-1, features), precision=kwargs.get("precision"))
