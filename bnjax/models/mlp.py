"""The fully connected network of the MNIST experiment (Ioffe & Szegedy 2015, section 4.1)."""

import math

import flax.linen as nn
import jax

from bnjax.models.layers import Initializer, NormActivation
from bnjax.models.norms import Activation, Norm, WithNorm


class MLP(WithNorm):
    """784-100-100-100-10 with sigmoids by default; any input is flattened.

    99,710 parameters for 28x28 images without normalization, 100,010 with it.

    Attributes:
        hidden: units of each hidden layer.
        classes: outputs.
        norm: normalization of each hidden layer, see `norm_by_name`; None for none.
        activation: nonlinearity of each hidden layer.
        kernel_init: initializer of all weights; the paper says "small random Gaussian values".

    Example:
        >>> model = MLP((16,), norm="batch")
        >>> images = jnp.zeros((2, 8, 8, 1))
        >>> variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
        >>> sorted(variables["params"])
        ['dense1', 'hidden1', 'logits']
    """

    hidden: tuple[int, ...] = (100, 100, 100)
    classes: int = 10
    norm: Norm | str | None = None
    activation: Activation = nn.sigmoid
    kernel_init: Initializer = nn.initializers.normal(0.1)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits `[n, classes]` of images `[n, ...]`."""
        x = images.reshape(images.shape[0], math.prod(images.shape[1:]))
        for i, units in enumerate(self.hidden, start=1):
            x = nn.Dense(
                units,
                use_bias=self.norm is None,
                kernel_init=self.kernel_init,
                name=f"dense{i}",
            )(x)
            x = NormActivation(self.norm, self.activation, name=f"hidden{i}")(x, train=train)
        return nn.Dense(self.classes, kernel_init=self.kernel_init, name="logits")(x)
