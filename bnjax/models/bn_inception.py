"""BN-Inception, the ImageNet network of Ioffe & Szegedy 2015 (section 4.2 and Figure 5)."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bnjax.models.inception import (
    REDUCTIONS,
    Conv,
    InceptionNetwork,
    googlenet_stem,
)
from bnjax.models.norms import Norm, accepts, find_norm, linear
from bnjax.models.pooling import average_pool, max_pool
from bnjax.normalization.settings import check_choice


class Row(NamedTuple):
    """A row of Figure 5: the widths of one Inception module."""

    name: str
    stride: int
    conv1x1: int  # 0: no such branch
    conv3x3_reduce: int
    conv3x3: int
    double3x3_reduce: int
    double3x3: int
    pool: Literal["avg", "max"]
    project: int  # 0: what was pooled passes through


FIGURE_5 = (  # output size as it is; the figure prints 3c and 4e at the size of their input
    #    #1x1 3x3r  3x3 dblr  dbl   pool + proj
    Row("3a", 1, 64, 64, 64, 64, 96, "avg", 32),  # 28x28x256
    Row("3b", 1, 64, 64, 96, 64, 96, "avg", 64),  # 28x28x320
    Row("3c", 2, 0, 128, 160, 64, 96, "max", 0),  # 14x14x576
    Row("4a", 1, 224, 64, 96, 96, 128, "avg", 128),  # 14x14x576
    Row("4b", 1, 192, 96, 128, 96, 128, "avg", 128),  # 14x14x576
    Row("4c", 1, 160, 128, 160, 128, 160, "avg", 128),  # 14x14x608, printed 576
    Row("4d", 1, 96, 128, 192, 160, 192, "avg", 128),  # 14x14x608, printed 576
    Row("4e", 2, 0, 128, 192, 192, 256, "max", 0),  # 7x7x1056, printed 1024
    Row("5a", 1, 352, 192, 320, 160, 224, "avg", 128),  # 7x7x1024
    Row("5b", 1, 352, 192, 320, 192, 224, "max", 128),  # 7x7x1024
)


class InceptionModule(nn.Module):
    """A row of Figure 5; with stride 2, no 1x1 branch and nothing projected.

    Attributes:
        row: its widths.
        conv: makes its convolutions.
        count_include_pad: the border rule of its average pool, see `average_pool`.
        factorize_5x5, linear_factors: see `BNInception`.
    """

    row: Row
    conv: Conv
    count_include_pad: bool
    factorize_5x5: bool = True
    linear_factors: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[n, h, w, c]` to the branches' concatenation; `train` by position, for remat."""
        row = self.row

        def conv(
            x: jax.Array, features: int, size: int, name: str, strides: int = 1, **options: Any
        ) -> jax.Array:
            return self.conv(features, (size, size), strides, name=name, **options)(x, train=train)

        branches = [conv(x, row.conv1x1, 1, "conv1x1")] if row.conv1x1 else []

        y = conv(x, row.conv3x3_reduce, 1, "conv3x3_reduce")
        branches.append(conv(y, row.conv3x3, 3, "conv3x3", row.stride))

        if self.factorize_5x5:
            first: dict[str, Any] = {"activation": linear} if self.linear_factors else {}
            y = conv(x, row.double3x3_reduce, 1, "double3x3_reduce")
            y = conv(y, row.double3x3, 3, "double3x3_a", **first)
            branches.append(conv(y, row.double3x3, 3, "double3x3_b", row.stride))
        else:
            y = conv(x, row.double3x3_reduce, 1, "conv5x5_reduce")
            branches.append(conv(y, row.double3x3, 5, "conv5x5", row.stride))

        strides = (row.stride, row.stride)
        if row.pool == "max":
            y = max_pool(x, (3, 3), strides, "SAME")
        else:
            y = average_pool(x, (3, 3), strides, "SAME", count_include_pad=self.count_include_pad)
        branches.append(conv(y, row.project, 1, "pool_project") if row.project else y)
        return jnp.concatenate(branches, axis=-1)


class BNInception(InceptionNetwork):
    """The table of Figure 5: "Inception" without `norm`, "BN-Inception" with one.

    11,285,224 parameters and 2.03e9 multiply-adds for 224x224 images, with `norm`.

    The paper's Inception and BN-Baseline have `dropout=0.4` and `local_response_norm=True`; the
    accelerated networks have neither (section 4.2.1), those of its ensemble 0.05 or 0.1.

    Attributes besides those of `InceptionNetwork`:
        stem: the first convolution; `"separable"`, as the paper says, or `"dense"`, as most public
            weights have it.
        figure_5: what holds in 4c and 4d, where the table contradicts itself: its `"widths"`, or
            its output `"sizes"` (projection 96 for 128).
        local_response_norm: whether the stem has the two layers of GoogLeNet.
        per_activation: modules, such as `("5a", "5b")`, that normalize each activation by itself,
            by `norm(axis=(1, 2, 3), ...)`: section 4.2.3, "the last hidden layers".
        padding: of convolutions with a stride.
        factorize_5x5: whether two 3x3 convolutions stand for each 5x5 one (Szegedy et al. 2016,
            section 3.1). Without, their branch has one 5x5 of the same width, which makes
            12,238,440 parameters and 2.06e9 multiply-adds.
        linear_factors: whether the first of the two has no nonlinearity, only its `norm` (Figure 2
            there).

    Example:
        >>> model = BNInception(classes=10, norm="batch", width=0.125, stem_stride=1)
        >>> images = jnp.zeros((2, 32, 32, 3))
        >>> logits, _ = jax.eval_shape(
        ...     partial(model.init_with_output, train=False), jax.random.key(0), images
        ... )
        >>> logits.shape
        (2, 10)
    """

    stem: Literal["dense", "separable"] = "dense"
    figure_5: Literal["widths", "sizes"] = "widths"
    local_response_norm: bool = False
    per_activation: tuple[str, ...] = ()
    padding: Literal["SAME", "SYMMETRIC"] = "SYMMETRIC"
    factorize_5x5: bool = True
    linear_factors: bool = False

    def __post_init__(self) -> None:
        check_choice("stem", self.stem, ("dense", "separable"))
        check_choice("figure_5", self.figure_5, ("widths", "sizes"))
        check_choice("padding", self.padding, ("SAME", "SYMMETRIC"))
        for name in self.per_activation:
            check_choice("per_activation", name, [row.name for row in FIGURE_5])
        if self.linear_factors and not self.factorize_5x5:
            raise ValueError(
                "linear_factors=True needs factors, got factorize_5x5=False: leave out one of both."
            )
        norm = find_norm(self.norm)
        if self.per_activation and (norm is None or not accepts(norm, "axis")):
            raise ValueError(
                f"per_activation={self.per_activation} needs a norm with an argument `axis`, such "
                f"as BatchNorm, got norm={norm!r}."
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits `[n, classes]` of images `[n, h, w, channels]`.

        Raises:
            ValueError: for images too small or of other channels.
        """
        self._check(images)
        conv = partial(self._convolutions(), padding=self.padding)
        x = googlenet_stem(
            images,
            conv,
            REDUCTIONS[self.stem_stride],
            local_response_norm=self.local_response_norm,
            separable=self.stem == "separable",
            train=train,
        )
        for row in FIGURE_5:
            if self.figure_5 == "sizes" and row.name in ("4c", "4d"):
                row = row._replace(project=96)
            x = self._block(InceptionModule)(
                row,
                partial(conv, norm=self._norm_of(row.name)),
                self.count_include_pad,
                self.factorize_5x5,
                self.linear_factors,
                name=f"inception_{row.name}",
            )(x, train)
        return self._classify(x, train)

    @nn.nowrap
    def _grid(self) -> tuple[Callable[[int], int], int]:
        return self._stem_rows, 5

    @nn.nowrap
    def _norm_of(self, name: str) -> Norm | None:
        norm = find_norm(self.norm)
        if norm is None or name not in self.per_activation:
            return norm
        return partial(norm, axis=(1, 2, 3))
