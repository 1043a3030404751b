"""Errors of networks and of ensembles on all validation images, over several crops of each."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bnjax.data import DataSet
from bnjax.data.stream import evaluation_batches
from bnjax.data.views.augmentation import Crops, evaluation_views
from bnjax.progress import ProgressBar
from bnjax.training.parallel import DataParallel
from bnjax.training.parallel.hosts import own_share
from bnjax.training.predictions import Errors, count_errors, mean_prediction, predict
from experiments.harness import affects
from experiments.harness.experiment import Task
from experiments.harness.images.blacklist import LEFT_OUT
from experiments.harness.images.programs import logits_of

Tree = Any
WhichStatistics = Literal["running", "population"]


class Trained(NamedTuple):
    """A finished run.

    Attributes:
        task: what was trained.
        weights: as `load_weights` returns them.
    """

    task: Task
    weights: dict[str, Tree]

    @property
    def image_size(self) -> int:
        """Height and width of its network's input, pixels."""
        return self.task.arm.image_size(self.task.config)

    @property
    def normalized(self) -> bool:
        """Whether it has statistics to choose from."""
        return bool(self.weights.get("batch_stats"))


class Score(NamedTuple):
    """What is counted: one run, or an ensemble.

    Attributes:
        runs: their positions.
        statistics: of normalized networks; None if there are none among them.
    """

    runs: tuple[int, ...]
    statistics: WhichStatistics | None


class Plan(NamedTuple):
    """How many images and views are computed together.

    Attributes:
        images: of a batch, over all devices.
        at_once: views of each image in one pass; divides the number of crops.
    """

    images: int
    at_once: int


def plan(crops: int, *, devices: int, views: int) -> Plan:
    """Batches of about `views` views, or one for each device if that is more.

    Raises:
        ValueError: for less than one view.
    """
    if views < 1:
        raise ValueError(f"views must be >= 1, got {views}.")
    images = devices * max(1, views // (crops * devices))
    most = max(1, views // images)
    return Plan(
        images, max(part for part in range(1, crops + 1) if not crops % part and part <= most)
    )


def scores_of(
    runs: Sequence[Trained],
    groups: Sequence[tuple[int, ...]],
    statistics: Sequence[WhichStatistics],
) -> list[Score]:
    """Each group with each kind of statistics; once, if none of its networks has any."""
    scores = []
    for group in groups:
        normalized = any(runs[position].normalized for position in group)
        scores += [Score(group, kind) for kind in (statistics if normalized else (None,))]
    return scores


def measure(
    runs: Sequence[Trained],
    scores: Sequence[Score],
    data: DataSet,
    *,
    crops: Crops,
    fraction: float,
    views: int,
    parallel: DataParallel,
    workers: int = 0,
) -> list[Errors]:
    """Counts errors, each validation image once; those with the label `LEFT_OUT` do not count.

    The networks see the same views, one network after another.

    Args:
        runs: on this data, with images of one size.
        scores: what to count.
        data: with the validation images.
        crops: views of each image.
        fraction: as `bnjax.data.views.augmentation.evaluation_views` takes it.
        views: about how many of them to hold in memory at once.
        parallel: devices, and how they share a batch.
        workers: processes that make views; 0 for threads.

    Returns:
        Errors of each score, on the host.
    """
    size = plan(crops, devices=parallel.device_count, views=views)
    networks = _Networks(runs, scores, data.classes, size, parallel)
    rows = np.arange(size.images, dtype=np.int32)[own_share(size.images)]
    view = partial(
        evaluation_views,
        image_size=runs[0].image_size,
        crops=crops,
        fraction=fraction,
    )
    total: Tree = None
    name = "1 crop" if crops == 1 else f"{crops} crops"
    bar = ProgressBar(len(data.test), description=name, unit="image", compiles=True)
    with (
        bar,
        evaluation_batches(
            data.test,
            view,
            batch_size=size.images,
            workers=workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        ) as stream,
    ):
        for batch in stream:
            errors = networks.count(batch.images, (batch.labels, batch.mask, rows))
            total = errors if total is None else jax.tree.map(np.add, total, errors)
            bar.update(int(errors[0].examples))
    return total


class _Networks:
    """The runs' networks on the devices, and their programs."""

    def __init__(
        self,
        runs: Sequence[Trained],
        scores: Sequence[Score],
        classes: int,
        size: Plan,
        parallel: DataParallel,
    ) -> None:
        self._parallel = parallel
        programs: dict[str, Callable[..., Any]] = {}
        self._members: list[tuple[Callable[..., Any], Tree]] = []
        positions: dict[tuple[int, WhichStatistics | None], int] = {}
        for run, statistics in dict.fromkeys(each for s in scores for each in _members(runs, s)):
            task, weights = runs[run]
            key = _architecture(task)
            if key not in programs:
                model = task.arm.model(task.config, classes=classes)
                predictions = _predictions(model, classes, size)
                programs[key] = parallel.compile_eval(predictions)
            variables = parallel.replicate(_variables(weights, statistics))
            positions[run, statistics] = len(self._members)
            self._members.append((programs[key], variables))
        groups = [[positions[member] for member in _members(runs, score)] for score in scores]
        self._count = parallel.compile_eval(_errors(groups))

    def count(self, images: np.ndarray, rest: tuple[np.ndarray, ...]) -> list[Errors]:
        """Errors of each score on a batch: this host's images, labels, mask and rows."""
        batch = self._parallel.split((images, rest[2]))
        logs = [predict_with(variables, batch) for predict_with, variables in self._members]
        return self._parallel.fetch(self._count(logs, self._parallel.split(rest)))


def _members(runs: Sequence[Trained], score: Score) -> list[tuple[int, WhichStatistics | None]]:
    """Whose predictions a score averages; networks without statistics go with any."""
    return [(run, score.statistics if runs[run].normalized else None) for run in score.runs]


def _predictions(model: nn.Module, classes: int, size: Plan) -> Callable[..., jax.Array]:
    """Predictions `[images, classes]` for the whole batch, of a device's part of it.

    Rows of other devices are zero, so that the sum over devices is what all of them predict.
    """

    def predictions(variables: Tree, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        images, rows = batch
        logs = predict(partial(logits_of, model, variables), images, at_once=size.at_once)
        return jnp.zeros((size.images, classes), jnp.float32).at[rows].set(logs)

    return predictions


def _errors(groups: list[list[int]]) -> Callable[..., list[Errors]]:
    """Counts errors of groups of predictions, on a device's part of the labels."""

    def errors(logs: list[jax.Array], batch: tuple[jax.Array, ...]) -> list[Errors]:
        labels, mask, rows = batch
        own = [log[rows] for log in logs]
        mask &= labels != LEFT_OUT
        means = (mean_prediction(jnp.stack([own[i] for i in group]), 0) for group in groups)
        return [count_errors(mean, labels, mask) for mean in means]

    return errors


def _variables(weights: dict[str, Tree], statistics: WhichStatistics | None) -> dict[str, Tree]:
    if statistics is None:
        return {"params": weights["params"]}
    stats = weights["batch_stats" if statistics == "running" else "population_stats"]
    return {"params": weights["params"], "batch_stats": stats}


def _architecture(task: Task) -> str:
    """What tells the programs of two runs apart."""
    settings = [affects.values(part, "network") for part in (task.arm, task.config)]
    return json.dumps([type(task.arm).__name__, *settings])
