"""Every number of the experiment, with its unit and, where the paper leaves it open, the reason."""

from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from bnjax.data.order import Shuffle
from bnjax.data.sets import DATA_SETS, FACTS
from bnjax.data.views.augmentation import Augmentation
from bnjax.training.loop import Schedule
from experiments.bounds import check_fraction, check_positive, check_seeds

ARMS = ("inception", "bn_baseline", "bn_x5", "bn_x30", "bn_x5_sigmoid")
"""The five networks of section 4.2.2."""
ENSEMBLE = tuple(f"ensemble_{number}" for number in range(1, 7))
"""The six of section 4.2.3."""
STEADY = ("inception", "bn_baseline")
"""Arms with the slow schedule; the others are accelerated."""


@dataclass(frozen=True)
class Config:
    """ImageNet with Inception, five ways (Ioffe & Szegedy 2015, section 4.2).

    "Stated" fields are the paper's; "open" ones it leaves open. The first seven are the paper's
    changes (section 4.2.1): left alone, each arm has its own.
    """

    learning_rate_factor: float | None = None
    """Change 1: the first learning rate, as a multiple of `learning_rate`. Stated: 1 for Inception
    and BN-Baseline, 5 or 30 for the accelerated arms."""
    dropout: float | None = None
    """Change 2: fraction of the pooled features dropped. Stated: none in the accelerated arms;
    0.4 in the others (of the original Inception, section 4.2.3)."""
    l2: float | None = None
    """Change 3: weight of half the squared norm of the kernels. Stated: divided by 5. Open: what;
    2e-4, as in the Caffe model of GoogLeNet, a fifth of which the released Inception-v3 has."""
    decay_speed: float | None = None
    """Change 4: how many times faster the learning rate falls. Stated: 6 in the accelerated
    arms."""
    local_response_norm: bool | None = None
    """Change 5: whether the stem has the two layers of it. Stated: not in the accelerated arms.
    Open: where and with which constants; as in the Caffe model of GoogLeNet."""
    shuffle: Shuffle | None = None
    """Change 6: how thorough. Stated: within shards in the accelerated arms. Open: what before;
    "shards", whose examples keep their order."""
    photometric: Literal["none", "reduced", "full"] | None = None
    """Change 7: strength of the distortions of colours. Stated: reduced in the accelerated arms.
    Open: by how much; to half of each range."""

    data: str = "mnist5k"
    """Data set: mnist5k (packaged digits, as images), cifar10, cifar10_jpeg, imagenette,
    imagenet_resized/64x64, imagenet2012, folder:PATH or tfds:PATH."""
    image_size: int = 32
    """Height and width of the network's input, pixels. Stated: 224."""
    crop: Literal["inception", "pad", "none"] = "none"
    """Training views: a part of the image, resized (GoogLeNet's sampling); a crop of the padded
    image; or the whole image. Open: GoogLeNet's."""
    mirror: bool = False
    """Mirror every other training view."""
    centre: float = 1.0
    """Part of the shorter side that evaluation sees. Open: 0.875 for ImageNet, 224 of 256."""
    arms: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar=f"{{{','.join((*ARMS, *ENSEMBLE))}}} ...")
    ] = ARMS
    """Networks to train: inception, bn_baseline, bn_x5, bn_x30, bn_x5_sigmoid (section 4.2.2);
    ensemble_1 to ensemble_6 (section 4.2.3)."""
    seeds: int = 1
    """Runs of each arm, with seeds 0, 1, ...; a seed sets weights, data order, views and dropout.
    Open: one, presumably."""
    steps: int = 300
    """Training steps of Inception and BN-Baseline. Stated: Inception's best comes at 31.0e6."""
    accelerated_steps: int = 150
    """Training steps of the other arms. Stated: BN-x30's best comes at 6e6."""
    batch_size: int = 32
    """Examples per step, over all devices. Stated: 32 on each of an unknown number of replicas."""
    normalize_together: int = 32
    """Examples that batch normalization takes together. Stated: the mini-batch of a replica, 32."""
    learning_rate: float = 0.0015
    """First step size of Inception, on the mean loss. Stated: 0.0015."""
    momentum: float = 0.9
    """Fraction of the momentum kept. Open: GoogLeNet's."""
    decay_factor: float = 0.96
    """What the learning rate is multiplied by each time it falls. Stated: exponential decay; open:
    GoogLeNet's 4 %."""
    decay_every: float = 16.0
    """Steps between its falls, divided by `decay_speed`. Open: GoogLeNet's 8 epochs."""
    label_smoothing: float = 0.0
    """Weight of the uniform distribution in the labels. Stated, by silence: none."""
    width: float = 0.125
    """Factor on the widths of all layers. Stated: 1."""
    stem_stride: Literal[1, 2, 4, 8] = 4
    """Total stride before the first Inception module. Stated: 8, for 224 pixels."""
    stem: Literal["separable", "dense"] = "dense"
    """The first convolution. Stated: separable, depth multiplier 8; dense is faster on CPUs."""
    figure_5: Literal["widths", "sizes"] = "widths"
    """What holds in modules 4c and 4d, where the paper's table contradicts itself."""
    decay: float = 0.99
    """Fraction of the running statistics kept per step. Open: 0.9997 for ImageNet, as in the
    released Inception-v3, shorter runs forget sooner. At the end Algorithm 2 is evaluated too."""
    averaging: Literal["ema", "ema_debiased", "cumulative"] = "ema_debiased"
    """How running statistics average. Open: debiased, so that early accuracy is not an artefact."""
    running_var: Literal["unbiased", "biased"] = "unbiased"
    """Estimator of the running variance. Stated: unbiased (Algorithm 2)."""
    epsilon: float = 1e-3
    """Added to the variance. Stated: a constant; open: that of the released Inception-v3."""
    population_batches: int = 25
    """Training batches that Algorithm 2 averages over. Stated: multiple."""
    parameter_averaging: Literal["none", "ema_tensorflow", "ema_debiased", "cumulative"] = "none"
    """Average of the parameters that is evaluated in their place. Open: GoogLeNet averaged."""
    parameter_decay: float = 0.9999
    """Fraction of the parameters' average kept per step."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """Type of the activations. Parameters, statistics and loss are float32 in any case."""
    micro_batches: int = 1
    """Parts of a batch that are computed one after another, to save memory; normalization sees
    one part at a time."""
    remat: bool = False
    """Compute each Inception module again in the backward pass, to save memory."""
    steps_per_dispatch: int = 1
    """Steps in one call of the compiled program."""
    eval_every: int = 25
    """Steps between evaluations on the whole validation set, up to `dense_until`."""
    dense_until: int = 150
    """Steps up to which evaluations are dense."""
    sparse_eval_every: int = 50
    """Steps between evaluations after that."""
    eval_batch: int = 256
    """Validation images per batch of an evaluation, over all devices."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        _check(self)

    def schedule(self, arm: str) -> Schedule:
        """When an arm evaluates and saves."""
        return Schedule(
            steps=self.steps if arm in STEADY else self.accelerated_steps,
            steps_per_dispatch=self.steps_per_dispatch,
            eval_every=self.eval_every,
            dense_until=self.dense_until,
            sparse_eval_every=self.sparse_eval_every,
            checkpoint_every=self.checkpoint_every,
        )

    def identity(self) -> dict[str, Any]:
        """What a run's numbers depend on, besides its arm, seed, settings and length."""
        apart = {"data", "arms", "seeds", "steps", "accelerated_steps", *CHANGES}
        return {key: value for key, value in asdict(self).items() if key not in apart}


class Task(NamedTuple):
    """All that the numbers of a run depend on, but the data."""

    config: Config
    arm: str
    seed: int
    schedule: Schedule


CHANGES = tuple(item.name for item in fields(Config))[:7]
"""The seven changes of section 4.2.1, in the paper's order."""
_MOST_BYTES = 1 << 36
"""Of the views of a batch."""
_MOST_WIDTH = 64
"""Of which Inception has 5e10 parameters."""
_FRACTIONS = ("dropout", "momentum", "label_smoothing", "decay", "parameter_decay")
_POSITIVE = ("learning_rate_factor", "decay_speed", "learning_rate", "decay_every", "epsilon")


def _check(config: Config) -> None:
    known = [*FACTS, "mnist5k"]
    if config.data not in known and not config.data.startswith(("folder:", "tfds:")):
        raise ValueError(f"data: unknown {config.data!r}; choose from {', '.join(DATA_SETS)}.")
    for arm in config.arms:
        if arm not in (*ARMS, *ENSEMBLE):
            raise ValueError(f"arms: unknown {arm!r}; choose from {', '.join((*ARMS, *ENSEMBLE))}.")
    if not config.arms or len(set(config.arms)) < len(config.arms):
        raise ValueError(f"arms must name one or more arms, each once, got {config.arms}.")
    for item in fields(config):
        value = getattr(config, item.name)
        least = 0 if item.name in ("checkpoint_every", "dense_until") else 1
        if item.type is int and value < least:
            raise ValueError(f"{item.name} must be >= {least}, got {value}.")
    for name in _POSITIVE:
        value = getattr(config, name)
        if value is not None:
            check_positive(name, value)
    for name in _FRACTIONS:
        value = getattr(config, name)
        if value is not None:
            check_fraction(name, value)
    if config.l2 is not None and not 0 <= config.l2 < 1e30:
        raise ValueError(f"l2 must be >= 0 and finite, got {config.l2}.")
    check_positive("decay_factor", config.decay_factor)
    if config.decay_factor > 1:
        raise ValueError(f"decay_factor must be in (0, 1], got {config.decay_factor}.")
    if not 0 < config.width <= _MOST_WIDTH:
        raise ValueError(f"width must be in (0, {_MOST_WIDTH}], got {config.width}.")
    check_seeds("seeds", config.seeds)
    if not 0 < config.centre <= 1:
        raise ValueError(f"centre must be in (0, 1], got {config.centre}.")
    _check_batches(config)
    least_size = 4 * config.stem_stride + 1
    if config.image_size < least_size:
        raise ValueError(
            f"image_size={config.image_size} is too small for stem_stride={config.stem_stride}: "
            f"the first Inception module needs 5x5 positions. Use {least_size} pixels or more, or "
            "a smaller stem_stride."
        )
    Augmentation(config.image_size, config.crop)
    for arm in config.arms:
        config.schedule(arm).check()
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


def _check_batches(config: Config) -> None:
    if config.batch_size % config.micro_batches:
        raise ValueError(
            f"micro_batches={config.micro_batches} must divide batch_size={config.batch_size}."
        )
    part = config.batch_size // config.micro_batches
    together = config.normalize_together
    if together < 2 or part % together:
        raise ValueError(
            f"normalize_together={together} must be 2 or more and divide the {part} examples that "
            f"are computed at once (batch_size / micro_batches)."
        )


PRESETS = {
    "quick": Config(),
    "cifar": Config(
        data="cifar10_jpeg",
        crop="pad",
        mirror=True,
        seeds=3,
        steps=4_000,
        accelerated_steps=1_600,
        decay_every=171.0,  # the accelerated arms end at a tenth of their first learning rate
        population_batches=100,
        eval_every=150,
        dense_until=1_600,
        sparse_eval_every=400,
        eval_batch=500,
        checkpoint_every=400,
    ),
    "paper": Config(
        data="imagenet2012",
        image_size=224,
        crop="inception",
        mirror=True,
        centre=0.875,
        steps=31_000_000,
        accelerated_steps=6_000_000,
        decay_every=8 * 1_281_167 / 32,
        width=1.0,
        stem_stride=8,
        stem="separable",
        decay=0.9997,
        population_batches=1_000,
        steps_per_dispatch=100,
        eval_every=50_000,
        dense_until=6_000_000,
        sparse_eval_every=250_000,
        eval_batch=512,
        checkpoint_every=10_000,
    ),
}
