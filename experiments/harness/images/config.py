"""What every experiment on images can be told, with units."""

from dataclasses import dataclass, fields
from typing import Literal

from bnjax.data.sets import DATA_SETS, FACTS
from bnjax.data.views.augmentation import Augmentation, Crop
from bnjax.normalization.settings import RunningVar, StatsAveraging
from bnjax.training.loop import Schedule
from experiments.harness.affects import network, nothing, numbers, training, views
from experiments.harness.bounds import (
    check_fraction,
    check_literals,
    check_positive,
    check_rates,
    check_seeds,
)

_MOST_BYTES = 1 << 36
"""Views of a batch may take so many."""
_MOST_WIDTH = 64
"""With it, Inception has 5e10 parameters."""
_MAY_BE_ZERO = ("checkpoint_every", "dense_until")

StemStride = Literal[1, 2, 4, 8]
ParameterAveraging = Literal["none", "ema_tensorflow", "ema_debiased", "cumulative"]


@dataclass(frozen=True)
class ImageConfig:
    """Training on images; experiments add fields, and other defaults."""

    data: str = nothing("mnist5k")
    """Data set: mnist5k (packaged digits, as images), mnist, fashion_mnist, cifar10, cifar10_jpeg,
    imagenette, tiny_imagenet, imagenet_resized/64x64, imagenet2012, folder:PATH or tfds:PATH."""
    image_size: int = network(32)
    """Height and width of the network's input, pixels."""
    crop: Crop = views("none")
    """Training views: a part of the image, resized (GoogLeNet's sampling); a crop of the padded
    image; or the whole image."""
    mirror: bool = views(False)
    """Mirror every other training view."""
    centre: float = views(1.0)
    """Part of the shorter side that evaluation sees."""
    pipeline: Literal["streamed", "resident"] = views("streamed")
    """Where views are made. "streamed": on the host, image by image. "resident": on the devices,
    each of which holds the decoded data; images must have one size. The views of a seed differ. On
    accelerators all steps up to an evaluation or checkpoint are then one call, on CPUs
    `steps_per_dispatch`."""
    arms: tuple[str, ...] = nothing(())
    """Arms to train."""
    seeds: int = nothing(1)
    """Runs of each arm, with seeds 0, 1, ...; a seed sets weights, data order, views, dropout."""
    steps: int = nothing(300)
    """Training steps."""
    batch_size: int = training(32)
    """Examples per step, over all devices."""
    learning_rate: float = numbers(0.01)
    """First step size, on the mean loss."""
    rates: tuple[float, ...] = nothing(())
    """A sweep in place of the comparison: values of `learning_rate` to train each arm and seed at,
    in folders sweep/ARM-lrRATE-sSEED. It ends with the best accuracy at each, and which is best."""
    momentum: float = training(0.9)
    """Fraction of the momentum kept."""
    label_smoothing: float = training(0.0)
    """Weight of the uniform distribution in the labels."""
    width: float = network(0.125)
    """Factor on the widths of all layers."""
    decay: float = network(0.99)
    """Fraction of the running statistics kept per step. At the end Algorithm 2 is evaluated too."""
    averaging: StatsAveraging = network("ema_debiased")
    """How running statistics average."""
    running_var: RunningVar = network("unbiased")
    """Estimator of the running variance."""
    epsilon: float = network(1e-3)
    """Added to the variance."""
    population_batches: int = numbers(25)
    """Training batches that Algorithm 2 averages over."""
    parameter_averaging: ParameterAveraging = training("none")
    """Average of the parameters that is evaluated in their place."""
    parameter_decay: float = training(0.9999)
    """Fraction of the parameters' average kept per step."""
    compute: Literal["float32", "bfloat16"] = network("float32")
    """Type of the activations. Parameters, statistics and loss are float32 in any case."""
    micro_batches: int = training(1)
    """Parts of a batch that are computed one after another, to save memory; normalization sees
    one part at a time."""
    remat: bool = network(False)
    """Compute each module again in the backward pass, to save memory."""
    steps_per_dispatch: int = training(1)
    """Steps in one call of the compiled program."""
    eval_every: int = numbers(25)
    """Steps between evaluations on the whole validation set, up to `dense_until`."""
    dense_until: int = numbers(150)
    """Steps up to which evaluations are dense."""
    sparse_eval_every: int = numbers(50)
    """Steps between evaluations after that."""
    eval_batch: int = numbers(256)
    """Validation images per batch of an evaluation, over all devices."""
    checkpoint_every: int = numbers(500)
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        self.check()

    def schedule(self, steps: int) -> Schedule:
        """Returns when a run of so many steps evaluates and saves."""
        return Schedule(
            steps=steps,
            steps_per_dispatch=self.steps_per_dispatch,
            eval_every=self.eval_every,
            dense_until=self.dense_until,
            sparse_eval_every=self.sparse_eval_every,
            checkpoint_every=self.checkpoint_every,
        )

    def check(self) -> None:
        """Raises ValueError for what cannot be; experiments add their own."""
        _check_data(self.data)
        for item in fields(self):
            value = getattr(self, item.name)
            least = 0 if item.name in _MAY_BE_ZERO else 1
            if item.type is int and value < least:
                raise ValueError(f"{item.name} must be >= {least}, got {value}.")
        for name in ("learning_rate", "epsilon"):
            check_positive(name, getattr(self, name))
        for name in ("momentum", "label_smoothing", "decay", "parameter_decay"):
            check_fraction(name, getattr(self, name))
        if not 0 < self.width <= _MOST_WIDTH:
            raise ValueError(f"width must be in (0, {_MOST_WIDTH}], got {self.width}.")
        check_seeds("seeds", self.seeds)
        check_rates("rates", self.rates)
        if not 0 < self.centre <= 1:
            raise ValueError(f"centre must be in (0, 1], got {self.centre}.")
        Augmentation(self.image_size, self.crop)
        self.schedule(self.steps).check()
        check_literals(self)
        _check_batches(self)
        _check_bytes(self)


def _check_data(name: str) -> None:
    if name not in FACTS and not name.startswith(("folder:", "tfds:")):
        raise ValueError(f"data: unknown {name!r}; choose from {', '.join(DATA_SETS)}.")


def _check_batches(config: ImageConfig) -> None:
    if config.batch_size % config.micro_batches:
        raise ValueError(
            f"micro_batches={config.micro_batches} must divide batch_size={config.batch_size}."
        )


def _check_bytes(config: ImageConfig) -> None:
    for name, images in (
        ("batch_size", config.batch_size * config.steps_per_dispatch),
        ("eval_batch", config.eval_batch),
    ):
        size = 3 * images * config.image_size**2
        if size > _MOST_BYTES:
            raise ValueError(
                f"{name}={getattr(config, name)}: {images:,} images of {config.image_size} pixels "
                f"that are computed in one call take {size:.0e} bytes; use fewer."
            )
