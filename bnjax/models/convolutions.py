"""Convolutions as matrix products, for `nn.Conv` where XLA's own are slow: on CPUs."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def pointwise_convolution(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **kwargs: Any,
) -> jax.Array:
    """A 1x1 convolution, on CPUs as the matrix product that it is, for `nn.Conv`.

    There, XLA transposes what it convolves, in the backward pass above all. Elsewhere it is XLA's:
    compiled for an H100, BN-Inception's step moves more bytes with the product.

    Args:
        lhs: images `[n, h, w, c]`.
        rhs: kernel `[1, 1, c, features]`.
        window_strides: all one.
        padding: none, by any name.
        **kwargs: as for `patch_convolution`.

    Raises:
        ValueError: for strides, padding, dilation, groups or a larger kernel.
    """
    _refuse_but_plain("pointwise_convolution", window_strides, kwargs)
    padded = not isinstance(padding, str) and any(map(any, padding))
    if padded or rhs.shape[:2] != (1, 1):
        raise ValueError(
            f"pointwise_convolution cannot do padding={padding} with a kernel of {rhs.shape}: "
            "use XLA's convolution."
        )

    def product(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return jnp.matmul(lhs, rhs[0, 0], precision=kwargs.get("precision"))

    def convolution(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **kwargs)

    return lax.platform_dependent(lhs, rhs, cpu=product, default=convolution)


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
    _refuse_but_plain("patch_convolution", window_strides, kwargs)
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


def _refuse_but_plain(name: str, window_strides: Sequence[int], options: dict[str, Any]) -> None:
    plain = {"feature_group_count": 1, "lhs_dilation": (1, 1), "rhs_dilation": (1, 1)}
    asked = {"window_strides": tuple(window_strides)} | {
        key: tuple(value) if isinstance(value, Sequence) else value
        for key, value in options.items()
        if key in plain
    }
    for key, value in asked.items():
        if value != plain.get(key, (1, 1)):
            raise ValueError(f"{name} cannot do {key}={value}: use XLA's convolution.")
