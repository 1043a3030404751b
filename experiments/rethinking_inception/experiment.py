"""Table 3 of Szegedy et al. 2016 in small, and the comparisons of its sections 3 to 8."""

from typing import Any

from bnjax.data import DataSet
from bnjax.models.summary import summarize
from bnjax.training.parallel import HostCheckpoints
from experiments.harness.experiment import Outcome, RunLog, Task
from experiments.harness.images import train as images
from experiments.harness.images.compute import ImageCompute
from experiments.harness.images.experiment import image_experiment
from experiments.rethinking_inception.arms import ARMS
from experiments.rethinking_inception.config import PRESETS, Config
from experiments.rethinking_inception.page import PAGE


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
    final = outcome.final | {"network": network_size(task.arm, task.config, data.classes)}
    return [outcome._replace(final=final)]


def network_size(arm: Any, config: Any, classes: int) -> dict[str, int]:
    """Returns parameters, and multiply-adds of an image, without side heads."""
    size = arm.image_size(config)
    network = summarize(arm.model(config, classes=classes), (size, size, 3)).network
    return {"parameters": network.parameters, "multiply_adds": network.multiply_adds}


EXPERIMENT = image_experiment(
    name="rethinking_inception",
    config=Config,
    presets=PRESETS,
    presets_help="quick: the packaged digits, two minutes on 2 cores.",
    arms=ARMS,
    page=PAGE,
    train=train,
)
