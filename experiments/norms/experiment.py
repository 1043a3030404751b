"""BN-Inception without normalization, and with that of batches, ghost batches, groups, layers."""

from dataclasses import dataclass
from typing import Annotated, Any

import flax.linen as nn
import jax

from bnjax.models import BNInception, norm_by_name
from bnjax.models.initialization import draw_kernels
from experiments.harness.affects import network, nothing, numbers
from experiments.harness.arm import arms_shown
from experiments.harness.comparison import Comparison
from experiments.harness.images.arm import ImageArm, batch_norm, dtype_of
from experiments.harness.images.config import ImageConfig
from experiments.harness.images.experiment import image_experiment
from experiments.harness.page import Page


@dataclass(frozen=True, kw_only=True)
class NormArm(ImageArm):
    """BN-Inception with one normalization; all else is the same.

    Attributes:
        norm: its name, as `bnjax.models.norm_by_name` takes it.
    """

    norm: str = network("none")

    def model(self, config: Any, *, classes: int, axis_name: str | None = None) -> nn.Module:
        """Returns the network."""
        return BNInception(
            classes=classes,
            norm=self._norm(config, axis_name),
            width=config.width,
            stem="dense",
            stem_stride=4,
            dtype=dtype_of(config),
            remat=config.remat,
            axis_name=axis_name,
        )

    def _norm(self, config: Any, axis_name: str | None) -> Any:
        kind, _, number = self.norm.partition(":")
        if kind in ("batch", "ghost"):
            return batch_norm(config, axis_name, int(number) if number else "all")
        return norm_by_name(self.norm, **({} if kind == "none" else {"epsilon": config.epsilon}))

    def draw(self, params: Any, key: jax.Array) -> Any:
        """Returns the initial parameters: He's, for all arms."""
        return draw_kernels(params, key, scale=1.0)


ARMS = (  # the colours are those of Okabe & Ito
    NormArm(name="none", label="no normalization", norm="none", color="#000000", line="--"),
    NormArm(name="batch", label="batch", norm="batch", color="#0072b2"),
    NormArm(name="ghost", label="ghost batches of 8", norm="ghost:8", color="#56b4e9", line="-."),
    NormArm(name="group", label="4 groups", norm="group:4", color="#d55e00"),
    NormArm(name="layer", label="layer", norm="layer", color="#009e73", line=":"),
)


@dataclass(frozen=True)
class Config(ImageConfig):
    """BN-Inception without normalization, and with that of batches, groups and layers."""

    arms: Annotated[tuple[str, ...], arms_shown(ARMS)] = nothing(tuple(arm.name for arm in ARMS))
    """Normalizations to train with."""
    decay: float = network(0.9)
    """Fraction of the running statistics kept per step: they must forget within a short run."""
    learning_rate: float = numbers(0.0075)
    """Step size, on the mean loss; the same for all, at which all of them train."""
    steps: int = nothing(150)
    """Training steps."""


EXPERIMENT = image_experiment(
    name="norms",
    config=Config,
    presets={
        "quick": Config(),
        "cifar": Config(
            data="cifar10_jpeg",
            crop="pad",
            mirror=True,
            seeds=3,
            steps=600,
            eval_every=200,
            dense_until=600,
            eval_batch=500,
            checkpoint_every=200,
        ),
    },
    presets_help="quick: the packaged digits, some minutes on 2 cores. cifar: 600 steps on "
    "CIFAR-10, three seeds, longer.",
    arms=ARMS,
    page=Page(Comparison(ARMS, reference="none")),
)
