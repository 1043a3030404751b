"""LeNet-5 (LeCun et al. 1998, section II.B) in its modern form."""

from typing import Literal

import flax.linen as nn
import jax

from bnjax.models.convolutions import patch_convolution
from bnjax.models.layers import Initializer, NormActivation, Subsample
from bnjax.models.norms import Activation, Norm, WithNorm
from bnjax.models.pooling import average_pool
from bnjax.normalization.settings import check_choice

Pool = Literal["average", "max", "subsample"]
Convolution = Literal["patches", "xla"]


class LeNet5(WithNorm):
    """C1 5x5x6, pool, C3 5x5x16, pool, C5 120, F6 84, output: 61,706 parameters for one channel.

    Unlike the classical network, C3 sees all maps of the layer before, and the output is linear
    with a softmax cross-entropy in place of radial basis functions. `pool="subsample"` and
    `activation=scaled_tanh` bring back its learned subsampling and its squashing function.

    Attributes:
        classes: outputs.
        norm: normalization of C1, C3, C5 and F6, see `norm_by_name`; None for none.
        activation: nonlinearity of those layers, and after a learned subsampling.
        pool: 2x2, stride 2.
        kernel_init: initializer of all weights.
        convolution: `"patches"`, faster on CPUs (see `patch_convolution`), or `"xla"`.

    Example:
        >>> model, images = LeNet5(norm="batch"), jnp.zeros((2, 28, 28, 1))
        >>> logits, _ = jax.eval_shape(
        ...     partial(model.init_with_output, train=False), jax.random.key(0), images
        ... )
        >>> logits.shape
        (2, 10)
    """

    classes: int = 10
    norm: Norm | str | None = None
    activation: Activation = nn.tanh
    pool: Pool = "average"
    kernel_init: Initializer = nn.initializers.lecun_normal()
    convolution: Convolution = "patches"

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits `[n, classes]` of images `[n, 28, 28, c]`, or 32x32 ones.

        Raises:
            ValueError: for images of another size, or an unknown option.
        """
        if images.ndim != 4 or images.shape[1:3] not in ((28, 28), (32, 32)):
            raise ValueError(
                f"images must have shape [n, 28, 28, c] or [n, 32, 32, c], got {images.shape}."
            )
        check_choice("pool", self.pool, Pool)
        check_choice("convolution", self.convolution, Convolution)
        border = (32 - images.shape[1]) // 2  # a 28x28 digit stands in the centre of 32x32
        x = self._convolution(images, 6, border, "C1", train)  # [n, 28, 28, 6]
        x = self._pool(x, "S2")  # [n, 14, 14, 6]
        x = self._convolution(x, 16, 0, "C3", train)  # [n, 10, 10, 16]
        x = self._pool(x, "S4")  # [n, 5, 5, 16]
        x = x.reshape(x.shape[0], -1)  # [n, 400]
        for units, name in ((120, "C5"), (84, "F6")):
            x = nn.Dense(
                units, use_bias=self.norm is None, kernel_init=self.kernel_init, name=name
            )(x)
            x = self._activate(x, name, train)
        return nn.Dense(self.classes, kernel_init=self.kernel_init, name="logits")(x)

    @nn.nowrap
    def _convolution(
        self, x: jax.Array, features: int, border: int, name: str, train: bool
    ) -> jax.Array:
        x = nn.Conv(
            features,
            (5, 5),
            padding=border,
            use_bias=self.norm is None,
            kernel_init=self.kernel_init,
            conv_general_dilated=patch_convolution if self.convolution == "patches" else None,
            name=name,
        )(x)
        return self._activate(x, name, train)

    @nn.nowrap
    def _activate(self, x: jax.Array, name: str, train: bool) -> jax.Array:
        return NormActivation(self.norm, self.activation, name=f"{name}_activation")(x, train=train)

    @nn.nowrap
    def _pool(self, x: jax.Array, name: str) -> jax.Array:
        if self.pool == "average":
            return average_pool(x)
        if self.pool == "max":
            return nn.max_pool(x, (2, 2), (2, 2))
        return self.activation(Subsample(name=name)(x))
