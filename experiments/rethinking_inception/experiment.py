"""Table 3 of Szegedy et al. 2016 in small, and the comparisons of its sections 3 to 8."""

from bnjax.data import DataSet
from bnjax.training.parallel import HostCheckpoints
from experiments.harness.experiment import Outcome, RunLog, Task
from experiments.harness.images import train as images
from experiments.harness.images.compute import ImageCompute
from experiments.harness.images.experiment import image_experiment
from experiments.rethinking_inception.arms import ARMS
from experiments.rethinking_inception.config import PRESETS, Config
from experiments.rethinking_inception.page import PAGE
from experiments.rethinking_inception.sizes import network_size


def train(
    task: Task,
    data: DataSet,
    compute: ImageCompute,
    log: RunLog,
    *,
    checkpoints: HostCheckpoints | None = None,
    description: str = "",
) -> list[Outcome]:
    """Trains a run as all experiments on images do; the outcome says how large the network is."""
    (outcome,) = images.train(
        task, data, compute, log, checkpoints=checkpoints, description=description
    )
    size = network_size(task.arm, task.config, data.classes)
    del size["image_size"]  # the configuration says it
    return [outcome._replace(final=outcome.final | {"network": size})]


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
    train=train,
)
