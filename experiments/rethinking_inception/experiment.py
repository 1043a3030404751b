"""Table 3 of Szegedy et al. 2016 in small, and the comparisons of its sections 3 to 8."""

from experiments.harness.images.experiment import image_experiment
from experiments.rethinking_inception.arms import ARMS
from experiments.rethinking_inception.config import PRESETS, Config
from experiments.rethinking_inception.page import PAGE

EXPERIMENT = image_experiment(
    name="rethinking_inception",
    config=Config,
    presets=PRESETS,
    presets_help="quick: the packaged digits, two to three minutes on 2 cores, most of them "
    "compilation. cifar: an epoch of CIFAR-10, some three hours on 2 cores. tiny: Tiny "
    "ImageNet at 64 pixels, half of the widths, on an accelerator that holds the data. paper: "
    "ImageNet, 100 epochs.",
    arms=ARMS,
    page=PAGE,
)
