"""An arm that is a network of images, and how it trains."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from bnjax.data.order import Shuffle
from bnjax.data.views.augmentation import Augmentation
from bnjax.linen import BatchNorm
from bnjax.training.objectives import Objective, classification_objective
from bnjax.training.optimizers import make_optimizer, momentum_sgd
from experiments.harness.arm import Arm


@dataclass(frozen=True, kw_only=True)
class ImageArm(Arm):
    """A network of images; experiments give the network, and what else differs from this.

    In `model`, `optimizer`, `objective`, `draw` and `image_size`, a configuration has those fields
    alone that programs depend on, so that runs that differ in others share them.
    """

    def model(self, config: Any, *, classes: int, axis_name: str | None = None) -> nn.Module:
        """Returns the network, called with `(images, train=...)`.

        Args:
            config: the configuration.
            classes: number of logits.
            axis_name: mapped axis of the devices that share a batch; None under jit.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no network: define its method `model`, as ImageArm says."
        )

    def optimizer(self, config: Any, rate: float | jax.Array) -> optax.GradientTransformation:
        """Returns what turns gradients into updates; `rate`, the first, lies in its state."""
        return make_optimizer(momentum_sgd(rate, momentum=config.momentum))

    def objective(self, config: Any) -> Objective:
        """Returns what is minimized."""
        return classification_objective(label_smoothing=config.label_smoothing)

    def draw(self, params: Any, key: jax.Array) -> Any:
        """Returns the initial parameters, by default the network's own, `params`."""
        return params

    def first_rate(self, config: Any) -> float:
        """Returns the learning rate of the first update."""
        return config.learning_rate

    def steps(self, config: Any) -> int:
        """Returns the length of a run."""
        return config.steps

    def size_field(self) -> str:
        """Returns the configuration's field that `image_size` reads."""
        return "image_size"

    def image_size(self, config: Any) -> int:
        """Returns height and width of the network's input, pixels."""
        return getattr(config, self.size_field())

    def check_size(self, config: Any) -> None:
        """Raises ValueError unless its network, one of Inception's family, can take such images."""
        network: Any = self.model(config, classes=2)
        size = self.image_size(config)
        try:
            network.check_size(size, size)
        except ValueError as error:
            raise ValueError(f"{self.size_field()}={size} of {self.name}: {error}") from None

    def augmentation(self, config: Any) -> Augmentation:
        """Returns how training views are made."""
        return Augmentation(self.image_size(config), config.crop, mirror=config.mirror)

    def order(self) -> Shuffle:
        """Returns how thoroughly examples are shuffled."""
        return "within_shard"

    def facts(self, config: Any, *, classes: int) -> dict[str, Any]:
        """Returns what a record's `final` says of the network besides, JSON values."""
        return {}


def batch_norm(
    config: Any, axis_name: str | None, together: Literal["all"] | int = "all"
) -> Callable[..., nn.Module]:
    """Returns batch normalization as a configuration has it, for networks that take a `norm`.

    Args:
        config: the configuration.
        axis_name: as `ImageArm.model` takes it.
        together: examples that share moments; all of the batch, or groups of so many.
    """
    return partial(
        BatchNorm,
        momentum=config.decay,
        epsilon=config.epsilon,
        averaging=config.averaging,
        running_var=config.running_var,
        batch=together,
        axis_name=axis_name,
    )


def dtype_of(config: Any) -> Any:
    """Returns the type of activations as networks take it."""
    return jnp.bfloat16 if config.compute == "bfloat16" else None
