"""Figures 2 and 3 of Ioffe & Szegedy 2015: Inception, five ways."""

from experiments.harness.images.experiment import image_experiment
from experiments.imagenet_inception.arms import ARMS
from experiments.imagenet_inception.config import PRESETS, Config
from experiments.imagenet_inception.page import PAGE

EXPERIMENT = image_experiment(
    name="imagenet_inception",
    config=Config,
    presets=PRESETS,
    presets_help="quick: the packaged digits, two minutes on 2 cores. cifar: all of CIFAR-10 and "
    "a narrow network, half an hour on 2 cores. cifar_resident, tiny: CIFAR-10, and Tiny ImageNet "
    "at 64 pixels, on an accelerator that holds the data. paper: ImageNet, 31 million steps.",
    arms=ARMS,
    page=PAGE,
)
