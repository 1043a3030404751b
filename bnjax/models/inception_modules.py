"""The Inception modules of Szegedy et al. 2016 (figures 5, 6, 7 and 10), as public code has them.

Each maps `[n, h, w, c]` to its branches' concatenation. `train` comes by position, for `nn.remat`.
The paper's text has no widths; these are the ones that all public implementations share.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bnjax.models.inception import Conv
from bnjax.models.pooling import average_pool, max_pool


class Branches(nn.Module):
    """The base of the modules: their convolutions, and the pooled branch.

    Attributes:
        conv: makes the convolutions.
        count_include_pad: the border rule of average pools, see `average_pool`.
    """

    conv: Conv
    count_include_pad: bool

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
        double = self.conv(96, (3, 3), name="double3x3_a")(double, train=train)
        double = self.conv(96, (3, 3), name="double3x3_b")(double, train=train)

        pooled = self._project(x, self.project, train)
        return jnp.concatenate([one, single, double, pooled], axis=-1)


class ReductionTo17(Branches):
    """Figure 10, from 35x35x288 to 17x17x768."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[n, h, w, c]` to `[n, h', w', 480 + c]`, where h' = (h - 1) // 2."""
        single = self.conv(384, (3, 3), 2, "VALID", name="conv3x3")(x, train=train)

        double = self.conv(64, (1, 1), name="double3x3_reduce")(x, train=train)
        double = self.conv(96, (3, 3), name="double3x3_a")(double, train=train)
        double = self.conv(96, (3, 3), 2, "VALID", name="double3x3_b")(double, train=train)

        pooled = max_pool(x, (3, 3), (2, 2), "VALID")
        return jnp.concatenate([single, double, pooled], axis=-1)


class Factorized(Branches):
    """Figure 6 with n = 7, for the 17x17 grid.

    Attributes:
        inner: width inside the factorized branches.
    """

    inner: int = 192

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[n, h, w, c]` to `[n, h, w, 768]`."""
        inner = self.inner
        one = self.conv(192, (1, 1), name="conv1x1")(x, train=train)

        single = self.conv(inner, (1, 1), name="conv7x7_reduce")(x, train=train)
        single = self.conv(inner, (1, 7), name="conv7x7_1x7")(single, train=train)
        single = self.conv(192, (7, 1), name="conv7x7_7x1")(single, train=train)

        double = self.conv(inner, (1, 1), name="double7x7_reduce")(x, train=train)
        double = self.conv(inner, (7, 1), name="double7x7_a_7x1")(double, train=train)
        double = self.conv(inner, (1, 7), name="double7x7_a_1x7")(double, train=train)
        double = self.conv(inner, (7, 1), name="double7x7_b_7x1")(double, train=train)
        double = self.conv(192, (1, 7), name="double7x7_b_1x7")(double, train=train)

        pooled = self._project(x, 192, train)
        return jnp.concatenate([one, single, double, pooled], axis=-1)


class ReductionTo8(Branches):
    """Figure 10 with a factorized 7x7 in its longer branch, from 17x17x768 to 8x8x1280."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[n, h, w, c]` to `[n, h', w', 512 + c]`, where h' = (h - 1) // 2."""
        single = self.conv(192, (1, 1), name="conv3x3_reduce")(x, train=train)
        single = self.conv(320, (3, 3), 2, "VALID", name="conv3x3")(single, train=train)

        seven = self.conv(192, (1, 1), name="conv7x7_reduce")(x, train=train)
        seven = self.conv(192, (1, 7), name="conv7x7_1x7")(seven, train=train)
        seven = self.conv(192, (7, 1), name="conv7x7_7x1")(seven, train=train)
        seven = self.conv(192, (3, 3), 2, "VALID", name="conv7x7_3x3")(seven, train=train)

        pooled = max_pool(x, (3, 3), (2, 2), "VALID")
        return jnp.concatenate([single, seven, pooled], axis=-1)


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
