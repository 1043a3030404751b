"""Figures 2 and 3 of Ioffe & Szegedy 2015: Inception, five ways."""

from experiments.harness.experiment import Experiment
from experiments.harness.images import tasks, train
from experiments.harness.images.compute import ImageCompute
from experiments.imagenet_inception.arms import ARMS
from experiments.imagenet_inception.config import PRESETS, Config
from experiments.imagenet_inception.page import PAGE

EXPERIMENT = Experiment(
    name="imagenet_inception",
    config=Config,
    presets=PRESETS,
    presets_help="quick: the packaged digits, two minutes on 2 cores. cifar: all of CIFAR-10 and "
    "a narrow network, hours on 2 cores. paper: ImageNet, 31 million steps.",
    arms=ARMS,
    compute=ImageCompute,
    tasks=tasks.one_by_one(ARMS),
    check=tasks.check,
    train=train.train,
    page=PAGE,
)
