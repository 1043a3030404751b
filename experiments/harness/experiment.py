"""What an experiment is, and the runs that it consists of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from bnjax.data import DataSet, open_data
from bnjax.evidence.records import number
from bnjax.training.loop import Schedule
from bnjax.training.objectives import Metrics
from bnjax.training.parallel import HostCheckpoints
from experiments.harness import affects
from experiments.harness.arm import Arm, by_name, check_arms
from experiments.harness.compute import Compute
from experiments.harness.page import Page

ROOT = Path(__file__).parents[2]
"""The repository's folder."""


class Member(NamedTuple):
    """A run among those of one arm that train together.

    Attributes:
        seed: sets weights, order of data, and all else that is random.
        learning_rate: None where the configuration and the arm say it.
    """

    seed: int
    learning_rate: float | None = None


class Task(NamedTuple):
    """All that the numbers of some runs of one arm depend on, but the data.

    Attributes:
        config: the configuration.
        arm: an `Arm` of the experiment's own kind, with the settings that `config` gives to all.
        members: the runs.
        schedule: when they evaluate and save.
        sweep: whether they are of a sweep over learning rates, beside the comparison.
    """

    config: Any
    arm: Any
    members: tuple[Member, ...]
    schedule: Schedule
    sweep: bool = False

    @property
    def seed(self) -> int:
        """The seed of the first member."""
        return self.members[0].seed


class Outcome(NamedTuple):
    """What a run came to.

    Attributes:
        final: JSON values, which a repetition must give again. Of training: metrics on the whole
            test set by running statistics (`test`) and by Algorithm 2 (`test_population`, None
            without normalization or after a divergence), digests of what was evaluated, and
            `diverged`: None, or where and how. Of a measurement: `checks`, deviations with their
            bounds, or an `effect`, a number that seeds scatter.
        cost: JSON values that differ from run to run: seconds, bytes.
        weights: arrays to be written beside the record, or None.
    """

    final: dict[str, Any]
    cost: dict[str, Any]
    weights: dict[str, Any] | None = None


def as_json(metrics: Metrics) -> dict[str, float | int]:
    """Returns metrics as a log and an outcome have them."""
    return {name: number(value) for name, value in metrics._asdict().items()}


class RunLog:
    """Takes down how the members of a task go on; by itself, nothing."""

    def begin(self, step: int, own: Sequence[int]) -> None:
        """Takes the step to begin or go on from, and each member's own, less if it diverged."""

    def log(self, position: int, entry: dict[str, Any]) -> None:
        """Takes what a member measured at an evaluation."""

    def show(self, position: int, step: int, values: dict[str, float]) -> None:
        """Takes what only curves for TensorBoard show, after the entry of the same step."""


class Train(Protocol):
    """Trains the members of a task, from the newest whole checkpoint on if there is one.

    Raises Interrupted after Ctrl-C or SIGTERM, and OutOfTime when `compute` says so, with a
    checkpoint if there is a place for it.
    """

    def __call__(
        self,
        task: Task,
        data: Any,
        compute: Any,
        log: RunLog,
        *,
        checkpoints: HostCheckpoints | None,
        description: str,
    ) -> list[Outcome]:
        """Returns what each member came to."""
        ...


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A question, and all that it takes to answer it with runs.

    Attributes:
        name: of its folder in `experiments`.
        config: its configuration, a dataclass whose fields say what they affect (`affects`); its
            docstring says in `--help` what the experiment is.
        presets: configurations by name; the first one is the default.
        presets_help: what the presets are, for `--help`.
        arms: what it compares, in the order of tables.
        compute: flags of how it is computed, a dataclass.
        tasks: the runs of a configuration with the arms that it names, in their order.
        decode: `(config, opened data) -> data` as `train` takes it, for example in memory.
        check: raises ValueError for a task that cannot run, before any compute; by default never.
        compile_ahead: `(tasks, data, compute) -> None`, before the first of these tasks.
        train: trains a task.
        page: the tables and figures of runs, and its committed results.
        together: whether the members of a task train together; otherwise each task has one.
    """

    name: str
    config: type[Any]
    presets: Mapping[str, Any]
    presets_help: str
    arms: tuple[Arm, ...]
    compute: type[Compute] = Compute
    tasks: Callable[[Any, Sequence[Any]], list[Task]]
    decode: Callable[[Any, DataSet], DataSet] = lambda config, data: data
    compile_ahead: Callable[[Sequence[Task], Any, Any], None] = lambda tasks, data, compute: None
    check: Callable[[Task, Any, Any], None] = lambda task, data, compute: None
    train: Train
    page: Page
    together: bool = False

    def __post_init__(self) -> None:
        if "__dataclass_params__" not in vars(self.config):
            raise TypeError(
                f"{self.config.__name__} is no dataclass of its own, and its defaults would not "
                "count: write @dataclass(frozen=True) above it."
            )
        names = [arm.name for arm in self.arms]
        if not all(names) or len(set(names)) < len(names):
            raise ValueError(f"arms of {self.name} must have names, each its own, got {names}.")

    @property
    def module(self) -> str:
        """The name that `python -m` takes."""
        return f"experiments.{self.name}"

    @property
    def results(self) -> Path:
        """Where its committed results are."""
        return ROOT / "experiments" / self.name / "results"

    def open_data(self, config: Any, data_dir: Path | None, *, name: str | None = None) -> Any:
        """Opens the data of a configuration, or another of a `name`.

        Args:
            config: the configuration.
            data_dir: where prepared data sets are.
            name: of the data set, in the place of the configuration's.
        """
        return self.decode(config, open_data(name or config.data, data_dir=data_dir))

    def tasks_of(self, config: Any) -> list[Task]:
        """Returns the runs of a configuration, in their order.

        Raises:
            ValueError: unless it names arms, and each once.
        """
        check_arms(config.arms, self.arms)
        return self.tasks(config, [self.arm(name, config) for name in config.arms])

    def arm(self, name: str, config: Any) -> Arm:
        """Returns an arm with the settings that a configuration gives to all arms."""
        return by_name(self.arms, name).changed_by(config)


def identity(task: Task, member: Member, data: DataSet) -> dict[str, Any]:
    """Returns what a member's numbers depend on, JSON values."""
    parts: dict[str, Any] = {"arm": task.arm.name, "seed": member.seed}
    if member.learning_rate is not None:
        parts["learning_rate"] = member.learning_rate
    if settings := task.arm.settings():
        parts["settings"] = settings
    return parts | {
        "schedule": task.schedule._asdict(),
        "data_sha256": data.sha256,
        "config": affects.identity(task.config),
    }
