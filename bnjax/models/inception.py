"""The common parts of the Inception family: settings, checks, stem, classifier."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from bnjax.models.layers import (
    ConvNorm,
    Dropout,
    Initializer,
    check_rate,
    check_width,
    local_response_normalization,
)
from bnjax.models.norms import Activation, Norm, WithNorm
from bnjax.models.pooling import max_pool
from bnjax.normalization.settings import check_choice

PoolRule = Literal["SAME", "CEIL"]
"""Where the windows of a max pool of stride 2 lie if the number of rows is odd: as in TensorFlow,
or as in Caffe and in torch's `ceil_mode`, see `halve`."""

Conv = Callable[..., nn.Module]
"""Makes a `ConvNorm`, `conv(features, kernel, strides, name=...)`, with a network's settings."""


class Logits(NamedTuple):
    """The output of a network with side heads.

    Attributes:
        main: the classifier's logits, `[n, classes]`.
        auxiliary: the side heads' logits, from the input to the output; empty outside of
            training, where the heads are left out.

    Example:
        >>> Logits(main=jnp.zeros((2, 10))).auxiliary  # of a network without side heads
        ()
    """

    main: jax.Array
    auxiliary: tuple[jax.Array, ...] = ()


class Reduction(NamedTuple):
    """How a stem comes to its total stride."""

    kernel: int  # of the first convolution, where the paper has 7
    stride: int  # of the first convolution
    first_pool: bool  # stride 2, before the second convolution
    second_pool: bool  # after it


REDUCTIONS = {  # strides go in the order of Szegedy et al. 2016, Table 2: the first layer's first
    8: Reduction(7, 2, True, True),  # images of 224 or 299 pixels
    4: Reduction(7, 1, True, True),  # 112 or 151
    2: Reduction(3, 1, False, True),  # 64 or 79
    1: Reduction(3, 1, False, False),  # 32
}


class InceptionNetwork(WithNorm, ABC):
    """The settings of every network of the family; bad ones raise ValueError where it is made.

    Attributes:
        classes: outputs.
        norm: normalization of every convolution, see `norm_by_name`; None for none, and biases in
            its place.
        activation: nonlinearity of every convolution.
        width: factor on all widths.
        stem_stride: total stride before the first Inception module: 8 (the papers), 4, 2 or 1.
        dropout: fraction of the pooled features that is dropped in training.
        axis_name: mapped axis of the devices that share a batch, for dropout; `norm` has its own.
        count_include_pad: the border rule of average pools, see `average_pool`.
        kernel_init: initializer of the convolutions' kernels.
        channels: number of the images' channels.
        remat: whether the backward pass computes each Inception module again, to save memory.
        dtype: of the computation, logits included; by default what images and parameters promote
            to.
        param_dtype: of the parameters; `norm` has its own.
    """

    classes: int = 1000
    norm: Norm | str | None = None
    activation: Activation = nn.relu
    width: float = 1.0
    stem_stride: int = 8
    dropout: float = 0.0
    axis_name: str | None = None
    count_include_pad: bool = False
    kernel_init: Initializer = nn.initializers.he_normal()
    channels: int = 3
    remat: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    def __post_init__(self) -> None:
        check_choice("stem_stride", self.stem_stride, REDUCTIONS)
        if self.classes < 2:
            raise ValueError(f"classes must be 2 or more, got {self.classes}.")
        check_width(self.width)
        check_rate("dropout", self.dropout)
        super().__post_init__()

    @nn.nowrap
    def _check(self, images: jax.Array) -> None:
        if images.ndim != 4 or images.shape[-1] != self.channels:
            raise ValueError(
                f"images must have shape [n, h, w, {self.channels}], channels last, got "
                f"{images.shape}; the model's `channels` sets another number."
            )
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"images must be floating, got {images.dtype}: convert, then scale.")
        kernel = self.variables.get("params", {}).get("logits", {}).get("kernel")
        if kernel is not None and kernel.shape[-1] != self.classes:
            raise ValueError(
                f"the parameters are for {kernel.shape[-1]} classes, the model has "
                f"classes={self.classes}: set `classes`, or initialize `logits` anew."
            )
        self.check_size(*images.shape[1:3])

    @nn.nowrap
    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError for images that leave too few positions to the first module."""
        rows, least = self._grid()
        if rows(min(height, width)) < least:
            side = next(n for n in count(1) if rows(n) >= least)
            raise ValueError(
                f"images of {height}x{width} are too small for stem_stride={self.stem_stride}: "
                f"the first Inception module gets a grid of {rows(height)}x{rows(width)} and "
                f"needs {least}x{least}. Use larger images, of {side}x{side} at least, or a "
                "smaller stem_stride."
            )

    @nn.nowrap
    @abstractmethod
    def _grid(self) -> tuple[Callable[[int], int], int]:
        """How many rows the first Inception module gets, by those of the images; those it needs."""

    @nn.nowrap
    def _stem_rows(self, n: int) -> int:
        """Rows that `googlenet_stem` makes of `n`."""
        return -(-n // self.stem_stride)

    @nn.nowrap
    def _convolutions(self) -> Conv:
        return partial(
            ConvNorm,
            norm=self.norm,
            activation=self.activation,
            width=self.width,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )

    @nn.nowrap
    def _block(self, module: type[nn.Module]) -> type[nn.Module]:
        return nn.remat(module, static_argnums=(2,)) if self.remat else module  # 2: train

    @nn.nowrap
    def _classify(self, x: jax.Array, train: bool) -> jax.Array:
        """Logits of the last Inception module's output."""
        x = x.mean((1, 2))
        x = Dropout(self.dropout, self.axis_name, name="dropout")(x, train=train)
        return nn.Dense(
            self.classes, dtype=self.dtype, param_dtype=self.param_dtype, name="logits"
        )(x)


def googlenet_stem(
    x: jax.Array,
    conv: Conv,
    reduction: Reduction,
    *,
    local_response_norm: bool,
    separable: bool = False,
    pool: PoolRule = "SAME",
    train: bool,
) -> jax.Array:
    """The layers before the first Inception module of GoogLeNet and BN-Inception.

    Call it in a network's compact method, where it makes submodules. Sizes are for 224x224.

    Args:
        x: images `[n, h, w, c]`.
        conv: makes the convolutions.
        reduction: its strides.
        local_response_norm: whether the two layers of it stand where the Caffe model has them.
        separable: whether the first convolution is, with 8 maps of each channel.
        pool: of the max pools, at odd sizes.
        train: as for the network.
    """
    x = conv(
        64,
        (reduction.kernel, reduction.kernel),
        reduction.stride,
        depth_multiplier=8 if separable else 0,
        name="conv1",
    )(x, train=train)  # 112x112x64
    if reduction.first_pool:
        x = halve(x, 3, pool)  # 56x56x64
    if local_response_norm:
        x = local_response_normalization(x)
    x = conv(64, (1, 1), name="conv2_reduce")(x, train=train)  # 56x56x64
    x = conv(192, (3, 3), name="conv2")(x, train=train)  # 56x56x192
    if local_response_norm:
        x = local_response_normalization(x)
    return halve(x, 3, pool) if reduction.second_pool else x  # 28x28x192


def halve(x: jax.Array, size: int, rule: PoolRule = "SAME") -> jax.Array:
    """A max pool of stride 2 over `[n, h, w, c]`.

    With an even number of rows both rules make half of them. With an odd one, `"SAME"` pads both
    sides; `"CEIL"` puts the first window at the first row and lets the last one hang over the end
    as long as it starts inside, which makes one row less if `size` is 3.
    """
    if rule == "SAME":
        return max_pool(x, (size, size), (2, 2), "SAME")
    over = [(0, -(n - size) % 2) for n in x.shape[1:3]]
    return max_pool(x, (size, size), (2, 2), over)
