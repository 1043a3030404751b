"""The Inception modules of Szegedy et al. 2016 (figures 5, 6, 7 and 10), as public code has them.

Each maps `[n, h, w, c]` to its branches' concatenation. `train` comes by position, for `nn.remat`.
Figures 2 and 9, with which the paper compares them, are options of theirs.
The paper's text has no widths; these are the ones that all public implementations share.
"""

from abc import ABC, abstractmethod
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from bnjax.models.inception import Conv
from bnjax.models.layers import Padding
from bnjax.models.norms import linear
from bnjax.models.pooling import average_pool, max_pool

ReductionOrder = Literal["parallel", "pool_first", "pool_last"]
Step = tuple[int, Padding]
"""Strides and padding of a convolution."""


class Branches(nn.Module):
    """The base of the modules: their convolutions, and the pooled branch.

    Attributes:
        conv: makes the convolutions.
        count_include_pad: the border rule of average pools, see `average_pool`.
        linear_factors: whether the first of two convolutions that factorize a larger one has no
            nonlinearity, only its normalization (Figure 2). Without that, the two are then one
            convolution by the product of their kernels, but for the border.
    """

    conv: Conv
    count_include_pad: bool
    linear_factors: bool = False

    @nn.nowrap
    def _factor(self, *args: Any, **kwargs: Any) -> nn.Module:
        """The first of two convolutions that factorize a larger one."""
        conv = partial(self.conv, activation=linear) if self.linear_factors else self.conv
        return conv(*args, **kwargs)

    @nn.nowrap
    def _project(self, x: jax.Array, features: int, train: bool) -> jax.Array:
        y = average_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=self.count_include_pad)
        return self.conv(features, (1, 1), name="pool_project")(y, train=train)


class Traditional(Branches):
    """Figure 5, for the 35x35 grid; public code has a 5x5 kernel where the figure has a 3x3.

    Attributes:
        project: width of the pooled branch.
        large: size of that kernel, 5 or 3.
    """

    project: int = 64
    large: int = 5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[n, h, w, c]` to `[n, h, w, 224 + project]`."""
        one = self.conv(64, (1, 1), name="conv1x1")(x, train=train)

        large = f"conv{self.large}x{self.large}"
        single = self.conv(48, (1, 1), name=f"{large}_reduce")(x, train=train)
        single = self.conv(64, (self.large, self.large), name=large)(single, train=train)

        double = self.conv(64, (1, 1), name="double3x3_reduce")(x, train=train)
        double = self._factor(96, (3, 3), name="double3x3_a")(double, train=train)
        double = self.conv(96, (3, 3), name="double3x3_b")(double, train=train)

        pooled = self._project(x, self.project, train)
        return jnp.concatenate([one, single, double, pooled], axis=-1)


class GridReduction(Branches, ABC):
    """Half the grid and more channels: Figure 10, or one of the two alternatives of Figure 9.

    Figure 9 gives its modules no widths. Here they are the convolutions of Figure 10 with stride 1,
    beside their input, so that all three have the same parameters and the same output shape.

    Attributes:
        order: where the stride is. `"parallel"`, Figure 10: in the convolutions, beside a max pool.
            `"pool_first"`, Figure 9, left: in a max pool before them, a bottleneck, for all that
            they see has passed through its few channels. `"pool_last"`, Figure 9, right: in a max
            pool after them, so that they compute on the whole grid, four times the positions.
    """

    order: ReductionOrder = "parallel"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[n, h, w, c]` to `[n, h', w', features + c]`, where h' = (h - 1) // 2."""
        if self.order == "pool_first":
            x = _halve(x)
        parallel = self.order == "parallel"
        branches = self._convolve(x, (2, "VALID") if parallel else (1, "SAME"), train)
        y = jnp.concatenate([*branches, _halve(x) if parallel else x], axis=-1)
        return _halve(y) if self.order == "pool_last" else y

    @abstractmethod
    @nn.nowrap
    def _convolve(self, x: jax.Array, step: Step, train: bool) -> list[jax.Array]:
        """The branches; the last convolution of each has the step."""


class ReductionTo17(GridReduction):
    """From 35x35x288 to 17x17x768: `features` 480."""

    @nn.nowrap
    def _convolve(self, x: jax.Array, step: Step, train: bool) -> list[jax.Array]:
        single = self.conv(384, (3, 3), *step, name="conv3x3")(x, train=train)

        double = self.conv(64, (1, 1), name="double3x3_reduce")(x, train=train)
        double = self._factor(96, (3, 3), name="double3x3_a")(double, train=train)
        double = self.conv(96, (3, 3), *step, name="double3x3_b")(double, train=train)

        return [single, double]


class Factorized(Branches):
    """Figure 6, for the 17x17 grid.

    Attributes:
        inner: width inside the factorized branches.
        n: length of the 1xn and nx1 kernels, odd.
    """

    inner: int = 192
    n: int = 7

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[n, h, w, c]` to `[n, h, w, 768]`."""
        inner, n = self.inner, self.n
        one = self.conv(192, (1, 1), name="conv1x1")(x, train=train)

        single = self.conv(inner, (1, 1), name=f"conv{n}x{n}_reduce")(x, train=train)
        single = self._factor(inner, (1, n), name=f"conv{n}x{n}_1x{n}")(single, train=train)
        single = self.conv(192, (n, 1), name=f"conv{n}x{n}_{n}x1")(single, train=train)

        double = self.conv(inner, (1, 1), name=f"double{n}x{n}_reduce")(x, train=train)
        double = self._factor(inner, (n, 1), name=f"double{n}x{n}_a_{n}x1")(double, train=train)
        double = self.conv(inner, (1, n), name=f"double{n}x{n}_a_1x{n}")(double, train=train)
        double = self._factor(inner, (n, 1), name=f"double{n}x{n}_b_{n}x1")(double, train=train)
        double = self.conv(192, (1, n), name=f"double{n}x{n}_b_1x{n}")(double, train=train)

        pooled = self._project(x, 192, train)
        return jnp.concatenate([one, single, double, pooled], axis=-1)


class ReductionTo8(GridReduction):
    """From 17x17x768 to 8x8x1280, `features` 512, with a factorized 7x7 in the longer branch."""

    @nn.nowrap
    def _convolve(self, x: jax.Array, step: Step, train: bool) -> list[jax.Array]:
        single = self.conv(192, (1, 1), name="conv3x3_reduce")(x, train=train)
        single = self.conv(320, (3, 3), *step, name="conv3x3")(single, train=train)

        seven = self.conv(192, (1, 1), name="conv7x7_reduce")(x, train=train)
        seven = self._factor(192, (1, 7), name="conv7x7_1x7")(seven, train=train)
        seven = self.conv(192, (7, 1), name="conv7x7_7x1")(seven, train=train)
        seven = self.conv(192, (3, 3), *step, name="conv7x7_3x3")(seven, train=train)

        return [single, seven]


class Expanded(Branches):
    """Figure 7, for the 8x8 grid: the last kernels stand side by side."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[n, h, w, c]` to `[n, h, w, 2048]`."""
        one = self.conv(320, (1, 1), name="conv1x1")(x, train=train)

        single = self.conv(384, (1, 1), name="conv3x3_reduce")(x, train=train)
        single_1x3 = self.conv(384, (1, 3), name="conv3x3_1x3")(single, train=train)
        single_3x1 = self.conv(384, (3, 1), name="conv3x3_3x1")(single, train=train)

        double = self.conv(448, (1, 1), name="double3x3_reduce")(x, train=train)
        double = self.conv(384, (3, 3), name="double3x3_a")(double, train=train)
        double_1x3 = self.conv(384, (1, 3), name="double3x3_b_1x3")(double, train=train)
        double_3x1 = self.conv(384, (3, 1), name="double3x3_b_3x1")(double, train=train)

        pooled = self._project(x, 192, train)
        return jnp.concatenate(
            [one, single_1x3, single_3x1, double_1x3, double_3x1, pooled], axis=-1
        )


def _halve(x: jax.Array) -> jax.Array:
    return max_pool(x, (3, 3), (2, 2), "VALID")
