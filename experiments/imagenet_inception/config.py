"""Every number of the experiment, with its unit and, where the paper leaves it open, the reason."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from bnjax.data.order import Shuffle
from bnjax.data.views.augmentation import Crop, Photometric
from bnjax.normalization.settings import Activation, RunningVar, StatsAveraging
from experiments.harness import affects
from experiments.harness.affects import arm, network, nothing, numbers, training, views
from experiments.harness.arm import arms_shown, by_name, expand_arms
from experiments.harness.bounds import (
    check_falls,
    check_fraction,
    check_l2,
    check_positive,
    check_together,
)
from experiments.harness.images.config import ImageConfig, ParameterAveraging, StemStride
from experiments.imagenet_inception.arms import ARMS, FIVE, GROUPS


@dataclass(frozen=True)
class Config(ImageConfig):
    """ImageNet with Inception, five ways (Ioffe & Szegedy 2015, section 4.2).

    Two words in front do something else, each with a --help of its own: `evaluate` measures
    finished runs and ensembles over many crops, `dry-run` compiles for chips that are not here.

    "Stated" fields are the paper's; "open" ones it leaves open. "Changes" 1 to 7 are the paper's
    (section 4.2.1): left alone, each arm has its own.
    """

    learning_rate_factor: float | None = arm(None)
    """Change 1: the first learning rate, as a multiple of `learning_rate`. Stated: 1 for Inception
    and BN-Baseline, 5 or 30 for the accelerated arms."""
    dropout: float | None = arm(None)
    """Change 2: fraction of the pooled features dropped. Stated: none in the accelerated arms;
    0.4 in the others (of the original Inception, section 4.2.3)."""
    l2: float | None = arm(None)
    """Change 3: weight of half the squared norm of the kernels. Stated: divided by 5. Open: what;
    2e-4, as in the Caffe model of GoogLeNet, a fifth of which the released Inception-v3 has."""
    decay_speed: float | None = arm(None)
    """Change 4: how many times faster the learning rate falls. Stated: 6 in the accelerated
    arms."""
    local_response_norm: bool | None = arm(None)
    """Change 5: whether the stem has the two layers of it. Stated: not in the accelerated arms.
    Open: where and with which constants; as in the Caffe model of GoogLeNet."""
    shuffle: Shuffle | None = arm(None)
    """Change 6: how thorough. Stated: within shards in the accelerated arms. Open: what before;
    "shards", whose examples keep their order."""
    photometric: Photometric | None = arm(None)
    """Change 7: strength of the distortions of colours. Stated: reduced in the accelerated arms.
    Open: by how much; to half of each range."""
    normalized: bool | None = arm(None)
    """Whether every convolution has batch normalization. Left alone, each arm has its own."""
    activation: Activation | None = arm(None)
    """Nonlinearity of every convolution. Left alone, each arm has its own."""

    image_size: int = network(32)
    """Height and width of the network's input, pixels. Stated: 224."""
    crop: Crop = views("none")
    """Training views: a part of the image, resized (GoogLeNet's sampling); a crop of the padded
    image; or the whole image. Open: GoogLeNet's."""
    centre: float = views(1.0)
    """Part of the shorter side that evaluation sees. Open: 0.875 for ImageNet, 224 of 256."""
    arms: Annotated[tuple[str, ...], arms_shown(ARMS, GROUPS)] = nothing(FIVE)
    """Networks to train, or words that stand for several. five: inception, bn_baseline, bn_x5,
    bn_x30, bn_x5_sigmoid (section 4.2.2). recipes: recipe_x1, recipe_x5, recipe_x30, the seven
    changes without normalization. alone: alone_SETTING, one change on BN-Baseline. left_out:
    left_out_SETTING, BN-x5 without one. ensemble: ensemble_1 to ensemble_6 (section 4.2.3).
    Besides them inception_sigmoid, which stays at chance in the paper, and googlenet and
    bn_googlenet (Szegedy et al. 2014), whose side heads need 9x9 positions."""
    seeds: int = nothing(1)
    """Runs of each arm, with seeds 0, 1, ...; a seed sets weights, data order, views and dropout.
    Open: one, presumably."""
    steps: int = nothing(300)
    """Training steps, of all but the accelerated arms. Stated: Inception's best comes at 31.0e6."""
    accelerated_steps: int = nothing(150)
    """Training steps of the accelerated arms: bn_x5, bn_x30, bn_x5_sigmoid, recipe_*, left_out_*
    and ensemble_*. Stated: BN-x30's best comes at 6e6."""
    batch_size: int = training(32)
    """Examples per step, over all devices. Stated: 32 on each of an unknown number of replicas; 256
    are 8 of them, in step, if `normalize_together` stays at 32."""
    normalize_together: int = network(32)
    """Examples that batch normalization takes together, whatever `batch_size` is. Stated: the
    mini-batch of a replica, 32."""
    learning_rate: float = numbers(0.0015)
    """First step size of Inception, on the mean loss. Stated: 0.0015."""
    momentum: float = training(0.9)
    """Fraction of the momentum kept. Open: GoogLeNet's."""
    decay_factor: float = training(0.96)
    """What the learning rate is multiplied by each time it falls. Stated: exponential decay; open:
    GoogLeNet's 4 %."""
    decay_every: float = training(16.0)
    """Steps between its falls, divided by `decay_speed`. Open: GoogLeNet's 8 epochs."""
    label_smoothing: float = training(0.0)
    """Weight of the uniform distribution in the labels. Stated, by silence: none."""
    width: float = network(0.125)
    """Factor on the widths of all layers. Stated: 1."""
    stem_stride: StemStride = network(4)
    """Total stride before the first Inception module. Stated: 8, for 224 pixels. Networks with side
    heads need 2 for 32 pixels."""
    stem: Literal["separable", "dense"] = network("dense")
    """The first convolution. Stated: separable, depth multiplier 8; dense is faster on CPUs."""
    figure_5: Literal["widths", "sizes"] = network("widths")
    """What holds in modules 4c and 4d, where the paper's table contradicts itself."""
    decay: float = network(0.99)
    """Fraction of the running statistics kept per step. Open: 0.9997 for ImageNet, as in the
    released Inception-v3, shorter runs forget sooner. At the end Algorithm 2 is evaluated too."""
    averaging: StatsAveraging = network("ema_debiased")
    """How running statistics average. Open: debiased, so that early accuracy is not an artefact."""
    running_var: RunningVar = network("unbiased")
    """Estimator of the running variance. Stated: unbiased (Algorithm 2)."""
    epsilon: float = network(1e-3)
    """Added to the variance. Stated: a constant; open: that of the released Inception-v3."""
    population_batches: int = numbers(25)
    """Training batches that Algorithm 2 averages over. Stated: multiple."""
    parameter_averaging: ParameterAveraging = training("none")
    """Average of the parameters that is evaluated in their place. Open: GoogLeNet averaged."""

    def __post_init__(self) -> None:
        expand_arms(self, ARMS, GROUPS)
        super().__post_init__()

    def check(self) -> None:
        """Raises ValueError for what cannot be."""
        super().check()
        given = affects.values(self, "arm")
        if given["dropout"] is not None:
            check_fraction("dropout", given["dropout"])
        for name in ("learning_rate_factor", "decay_speed"):
            if given[name] is not None:
                check_positive(name, given[name])
        if self.l2 is not None:
            check_l2(self.l2)
        check_together(self.normalize_together, self.batch_size // self.micro_batches)
        check_falls(self.decay_factor, self.decay_every)
        for name in self.arms:
            by_name(ARMS, name).check_size(self)
        self.schedule(self.accelerated_steps).check()


_resident = partial(
    Config,
    pipeline="resident",
    mirror=True,
    batch_size=256,  # in the groups of 32 that the paper's replicas normalize
    learning_rate=8 * 0.0015,  # the linear rule: 8 times the paper's for 8 times its 32 examples
    width=0.5,
    compute="bfloat16",
    population_batches=50,
    eval_batch=1_000,
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
    "cifar_resident": _resident(
        data="cifar10_jpeg",
        crop="pad",
        steps=5_850,  # 30 epochs
        accelerated_steps=2_925,  # 15 epochs
        decay_every=311.0,  # the accelerated arms end at a tenth of their first learning rate
        stem_stride=2,
        eval_every=195,
        dense_until=5_850,
        sparse_eval_every=195,
        checkpoint_every=975,
    ),
    "tiny": _resident(
        data="tiny_imagenet",
        image_size=64,
        crop="inception",
        centre=0.875,
        steps=7_800,  # 20 epochs
        accelerated_steps=3_120,  # 8 epochs
        decay_every=332.0,  # as above
        stem_stride=4,
        eval_every=390,
        dense_until=7_800,
        sparse_eval_every=390,
        checkpoint_every=1_560,
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
