"""GoogLeNet, or Inception v1 (Szegedy et al. 2014, Table 1 and section 5)."""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jax import lax

from bnjax.models.inception import (
    REDUCTIONS,
    Conv,
    InceptionNetwork,
    Logits,
    PoolRule,
    googlenet_stem,
    halve,
)
from bnjax.models.layers import DenseNorm, Dropout, check_rate
from bnjax.models.pooling import average_pool, max_pool
from bnjax.normalization.settings import check_choice

AUXILIARY_WEIGHT = 0.3
"""Weight of each side head's loss when it is added to the loss of the main classifier."""


class Row(NamedTuple):
    """A row of Table 1: the widths of one Inception module."""

    name: str
    conv1x1: int
    conv3x3_reduce: int
    conv3x3: int
    conv5x5_reduce: int
    conv5x5: int
    pool_project: int


TABLE_1 = (
    #    #1x1 3x3r  3x3  5x5r 5x5  pool proj
    Row("3a", 64, 96, 128, 16, 32, 32),  # 28x28x256
    Row("3b", 128, 128, 192, 32, 96, 64),  # 28x28x480, then max pool
    Row("4a", 192, 96, 208, 16, 48, 64),  # 14x14x512
    Row("4b", 160, 112, 224, 24, 64, 64),  # 14x14x512
    Row("4c", 128, 128, 256, 24, 64, 64),  # 14x14x512
    Row("4d", 112, 144, 288, 32, 64, 64),  # 14x14x528
    Row("4e", 256, 160, 320, 32, 128, 128),  # 14x14x832, then max pool
    Row("5a", 256, 160, 320, 32, 128, 128),  # 7x7x832
    Row("5b", 384, 192, 384, 48, 128, 128),  # 7x7x1024
)
HEADS_AFTER = ("4a", "4d")


class InceptionModule(nn.Module):
    """A row of Table 1.

    Attributes:
        row: its widths.
        conv: makes its convolutions.
        large: the size of the kernel that the paper calls 5x5.
    """

    row: Row
    conv: Conv
    large: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[n, h, w, c]` to the branches' concatenation; `train` by position, for remat."""
        row = self.row

        def conv(x: jax.Array, features: int, size: int, name: str) -> jax.Array:
            return self.conv(features, (size, size), name=name)(x, train=train)

        branches = [conv(x, row.conv1x1, 1, "conv1x1")]
        for size, name, reduced, features in (
            (3, "conv3x3", row.conv3x3_reduce, row.conv3x3),
            (self.large, "conv5x5", row.conv5x5_reduce, row.conv5x5),
        ):
            y = conv(x, reduced, 1, f"{name}_reduce")
            branches.append(conv(y, features, size, name))
        y = max_pool(x, (3, 3), (1, 1), "SAME")
        branches.append(conv(y, row.pool_project, 1, "pool_project"))
        return jnp.concatenate(branches, axis=-1)


class SideHead(nn.Module):
    """An auxiliary classifier (section 5): pool to 4x4, 1x1 convolution, dense 1024, logits.

    Attributes:
        classes: outputs.
        conv: makes its convolution.
        dense: makes its dense layer.
        dropout: fraction of the 1024 that is dropped in training.
        axis_name: mapped axis of the devices that share a batch, for dropout.
        pool: `"paper"`: 5x5, stride 3; `"torchvision"`: 4x4 windows that cover the grid.
        dtype: of the logits.
        param_dtype: of the last layer's parameters.
    """

    classes: int
    conv: Conv
    dense: Conv
    dropout: float
    axis_name: str | None
    pool: Literal["paper", "torchvision"]
    dtype: Dtype | None
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Logits `[n, classes]` of `[n, h, w, c]`."""
        paper = self.pool == "paper"
        x = average_pool(x, (5, 5), (3, 3)) if paper else adaptive_average_pool(x, 4)  # 4x4
        x = self.conv(128, (1, 1), name="conv1x1")(x, train=train)  # 4x4x128
        x = x.reshape(x.shape[0], -1)  # 2048
        x = self.dense(1024, name="hidden")(x, train=train)
        x = Dropout(self.dropout, self.axis_name, name="dropout")(x, train=train)
        return nn.Dense(
            self.classes, dtype=self.dtype, param_dtype=self.param_dtype, name="logits"
        )(x)


class GoogLeNet(InceptionNetwork):
    """Table 1, with the two side heads; 22 layers deep.

    6,998,552 parameters and 1.58e9 multiply-adds for 224x224 images without `norm` and heads. The
    local response normalization is the Caffe model's: Table 1 does not list it.

    Attributes besides those of `InceptionNetwork`:
        auxiliary: whether there are side heads. They are a part of the network at initialization
            and in training only.
        auxiliary_dropout: fraction of a side head's hidden units that is dropped in training.
        local_response_norm: whether the stem has it; Ioffe & Szegedy 2015 remove it with `norm`.
        variant: `"torchvision"` has 3x3 kernels in place of 5x5 ones, a 2x2 last max pool, max
            pools that lie otherwise at odd sizes (`halve`), and side heads on another pool and
            without `norm` in their dense layer. Its weights need it, with a `norm` and
            `local_response_norm=False`.
        padding: of the first convolution.

    Example:
        >>> model = GoogLeNet(classes=10, norm="batch", width=0.125, stem_stride=1, auxiliary=False)
        >>> images = jnp.zeros((2, 32, 32, 3))
        >>> logits, _ = jax.eval_shape(
        ...     partial(model.init_with_output, train=False), jax.random.key(0), images
        ... )
        >>> logits.main.shape, logits.auxiliary
        ((2, 10), ())
    """

    dropout: float = 0.4
    auxiliary: bool = True
    auxiliary_dropout: float = 0.7
    local_response_norm: bool = True
    variant: Literal["paper", "torchvision"] = "paper"
    padding: Literal["SAME", "SYMMETRIC"] = "SYMMETRIC"

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, ("paper", "torchvision"))
        check_choice("padding", self.padding, ("SAME", "SYMMETRIC"))
        check_rate("auxiliary_dropout", self.auxiliary_dropout)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> Logits:
        """Logits of images `[n, h, w, channels]`; those of the side heads in training only.

        Raises:
            ValueError: for images too small or of other channels.
        """
        self._check(images)
        paper = self.variant == "paper"
        pool: PoolRule = "SAME" if paper else "CEIL"
        conv = partial(self._convolutions(), padding=self.padding)
        x = googlenet_stem(
            images,
            conv,
            REDUCTIONS[self.stem_stride],
            local_response_norm=self.local_response_norm,
            pool=pool,
            train=train,
        )
        heads = []
        for row in TABLE_1:
            x = self._block(InceptionModule)(
                row, conv, 5 if paper else 3, name=f"inception_{row.name}"
            )(x, train)
            if row.name in HEADS_AFTER and self.auxiliary and (train or self.is_initializing()):
                heads.append(self._side_head(row.name, conv)(x, train=train))
            if row.name in ("3b", "4e"):
                x = halve(x, 3 if paper or row.name == "3b" else 2, pool)
        return Logits(self._classify(x, train), tuple(heads))

    @nn.nowrap
    def _grid(self) -> tuple[Callable[[int], int], int]:
        return self._stem_rows, 9 if self.auxiliary and self.variant == "paper" else 5

    @nn.nowrap
    def _side_head(self, name: str, conv: Conv) -> SideHead:
        dense = partial(
            DenseNorm,
            norm=self.norm if self.variant == "paper" else None,
            activation=self.activation,
            width=self.width,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        return SideHead(
            self.classes,
            conv,
            dense,
            self.auxiliary_dropout,
            self.axis_name,
            self.variant,
            self.dtype,
            self.param_dtype,
            name=f"auxiliary_{name}",
        )


def adaptive_average_pool(x: jax.Array, size: int) -> jax.Array:
    """torch's: `size` windows in each direction that cover the grid, overlapping where they must.

    Window i reaches from floor(i n / size) to ceil((i + 1) n / size).
    """
    for axis in (1, 2):
        n = x.shape[axis]
        means = [
            lax.slice_in_dim(x, i * n // size, -(-(i + 1) * n // size), axis=axis).mean(axis)
            for i in range(size)
        ]
        x = jnp.stack(means, axis)
    return x
