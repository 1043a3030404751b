"""Every number of the experiment, with its unit and, where the paper leaves it open, the reason."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

from bnjax.data.views.augmentation import MOST_SIDE, Crop, Photometric
from bnjax.models.inception_v3 import StemPadding
from experiments.harness.affects import network, nothing, numbers, training, views
from experiments.harness.arm import arms_shown, by_name, expand_arms
from experiments.harness.bounds import (
    check_falls,
    check_fraction,
    check_l2,
    check_positive,
    check_together,
)
from experiments.harness.images.config import ImageConfig, ParameterAveraging, StemStride
from experiments.rethinking_inception.arms import ARMS, GROUPS, InceptionV3Arm


@dataclass(frozen=True)
class Config(ImageConfig):
    """From GoogLeNet to Inception-v3, row by row (Szegedy et al. 2016).

    "Stated" fields are the paper's; "open" ones it leaves open. Each row of its Table 3 changes one
    thing of the row above.
    """

    image_size: int = network(24)
    """Height and width of the input of Inception-v2 and v3, pixels. Stated: 299."""
    googlenet_size: int = network(24)
    """The same of GoogLeNet and BN-Inception. Stated: 224."""
    half_size: int = network(12)
    """The same of half_resolution. Stated: 151."""
    quarter_size: int = network(6)
    """The same of quarter_resolution. Stated: 79."""
    crop: Crop = views("none")
    """Training views: a part of the image, resized (GoogLeNet's sampling); a crop of the padded
    image; or the whole image. Open: GoogLeNet's."""
    photometric: Photometric = views("none")
    """Strength of the distortions of colours in training views. Open."""
    centre: float = views(1.0)
    """Part of the shorter side that evaluation sees. Open: 0.875 for ImageNet."""
    arms: Annotated[tuple[str, ...], arms_shown(ARMS, GROUPS)] = nothing(
        ("googlenet", "inception_v3")
    )
    """Networks to train, or words that stand for several. table3: its eight rows, each with what
    the rows above have. table2: Inception-v3 at three resolutions and nearly one cost. figure2:
    ReLU or nothing between factors. section3: 5x5 against two 3x3, n of the 1xn and nx1 kernels,
    three ways to halve the grid. side_heads: none, plain, normalized. section7_8: without label
    smoothing, with momentum in the place of RMSProp."""
    steps: int = nothing(400)
    """Training steps. Stated: 100 epochs."""
    batch_size: int = training(32)
    """Examples per step, over all devices. Stated: 32 on each of 50 replicas."""
    normalize_together: int = network(32)
    """Examples that batch normalization takes together, whatever `batch_size` is. Stated: the
    mini-batch of a replica, 32."""
    learning_rate: float = numbers(0.045)
    """First step size, on the mean loss. Stated: 0.045 for RMSProp. Open: for momentum; the same,
    which is BN-x30's (Ioffe & Szegedy 2015)."""
    unnormalized_factor: float = numbers(1 / 30)
    """On the learning rate of GoogLeNet, the row without normalization. Open: Inception's 0.0015
    over BN-x30's 0.045 (Ioffe & Szegedy 2015)."""
    momentum: float = training(0.9)
    """Fraction of the momentum kept, with RMSProp too. Stated: 0.9 for momentum; open beside
    RMSProp: that of the released code."""
    rmsprop_decay: float = training(0.9)
    """Fraction of the mean square kept. Stated: 0.9."""
    rmsprop_epsilon: float = training(1.0)
    """Added to the mean square, inside the root. Stated: 1.0."""
    clip_norm: float = training(2.0)
    """Largest norm of the gradient with RMSProp. Stated: 2.0; open: of which norm, and which rows
    have it."""
    decay_factor: float = training(0.94)
    """What the learning rate is multiplied by each time it falls. Stated: 0.94."""
    decay_every: float = training(8.0)
    """Steps between its falls. Stated: two of 100 epochs; here a fiftieth of the steps too."""
    l2: float = training(4e-5)
    """Weight of half the squared norm of the kernels. Open: that of the released code."""
    label_smoothing: float = training(0.1)
    """Weight of the uniform distribution in the labels, from the sixth row on. Stated: 0.1."""
    width: float = network(0.125)
    """Factor on the widths of all layers. Stated: 1."""
    stem_stride: StemStride = network(2)
    """Total stride before the first Inception module; half and a quarter of it for the lower
    resolutions. Stated: 8."""
    stem_padding: StemPadding = network("SAME")
    """Of the stem of Inception-v2 and v3. Stated: VALID; with SAME, images of 64, 32 and 16 pixels
    have grids of one size at strides of 4, 2 and 1."""
    decay: float = network(0.9)
    """Fraction of the running statistics kept per step. Open: 0.9997, as in the released code, for
    ImageNet; shorter runs forget sooner."""
    parameter_averaging: ParameterAveraging = training("ema_tensorflow")
    """Average of the parameters that is evaluated in their place. Stated: a running average; open:
    which, that of the released code."""
    parameter_decay: float = training(0.99)
    """Fraction of the parameters' average kept per step. Open: 0.9999, as in the released code, for
    ImageNet; shorter runs forget sooner."""

    def __post_init__(self) -> None:
        expand_arms(self, ARMS, GROUPS)
        super().__post_init__()

    def check(self) -> None:
        """Raises ValueError for what cannot be."""
        super().check()
        for name in ("unnormalized_factor", "rmsprop_epsilon", "clip_norm"):
            check_positive(name, getattr(self, name))
        check_fraction("rmsprop_decay", self.rmsprop_decay)
        check_l2(self.l2)
        check_falls(self.decay_factor, self.decay_every)
        for name in ("googlenet_size", "half_size", "quarter_size"):
            if getattr(self, name) > MOST_SIDE:
                raise ValueError(f"{name} must be at most {MOST_SIDE}, got {getattr(self, name)}.")
        check_together(self.normalize_together, self.batch_size // self.micro_batches)
        for name in self.arms:
            arm = by_name(ARMS, name)
            if isinstance(arm, InceptionV3Arm) and self.stem_stride < arm.shrink:
                raise ValueError(
                    f"stem_stride={self.stem_stride} must be {arm.shrink} or more for {name}, "
                    f"whose stem has a stride {arm.shrink} times smaller."
                )
            arm.check_size(self)


_EPOCH = 1_281_167 / 1_600
"""Of ImageNet, in steps of 50 replicas."""
_narrow = partial(
    Config,
    unnormalized_factor=1 / 6,  # 0.0075: of three, imagenet_inception's best at this width
)
PRESETS = {
    "quick": _narrow(eval_every=100, dense_until=400),
    "cifar": _narrow(
        data="cifar10_jpeg",
        mirror=True,
        arms=("table3",),
        seeds=3,
        steps=1_600,
        decay_every=32.0,
        population_batches=50,
        eval_every=400,
        dense_until=1_600,
        eval_batch=500,
        checkpoint_every=400,
    ),
    "tiny": Config(
        data="tiny_imagenet",
        image_size=64,
        googlenet_size=64,
        half_size=32,
        quarter_size=16,
        crop="inception",
        photometric="reduced",
        mirror=True,
        centre=0.875,
        pipeline="resident",
        arms=("table3",),
        seeds=3,
        steps=5_860,  # 15 epochs
        batch_size=256,  # in the groups of 32 that the paper's replicas normalize
        learning_rate=8 * 0.045,  # the linear rule: 8 times the paper's for 8 times 32 examples
        decay_every=117.2,
        width=0.5,
        stem_stride=4,
        compute="bfloat16",
        decay=0.99,
        parameter_decay=0.998,
        population_batches=50,
        eval_every=293,
        dense_until=5_860,
        sparse_eval_every=293,
        eval_batch=1_000,
        checkpoint_every=1_465,
    ),
    "paper": Config(
        data="imagenet2012",
        image_size=299,
        googlenet_size=224,
        half_size=151,
        quarter_size=79,
        crop="inception",
        photometric="reduced",
        mirror=True,
        centre=0.875,
        arms=("table3",),
        steps=round(100 * _EPOCH),
        batch_size=1_600,
        decay_every=2 * _EPOCH,
        width=1.0,
        stem_stride=8,
        stem_padding="VALID",
        decay=0.9997,
        parameter_decay=0.9999,
        population_batches=100,
        eval_every=2_000,
        dense_until=100_000,
        sparse_eval_every=2_000,
        eval_batch=512,
        checkpoint_every=1_000,
    ),
}
