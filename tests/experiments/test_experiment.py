"""What is wrong with an experiment is said before it trains."""

import shutil
from dataclasses import dataclass, replace

import pytest

from bnjax.data import open_data
from bnjax.evidence.records import RecordError, Run
from experiments.harness import found, runs
from experiments.harness.affects import network, numbers
from experiments.harness.arm import check_arms
from experiments.harness.comparison import Comparison
from experiments.harness.experiment import identity
from experiments.harness.images.arm import ImageArm
from experiments.harness.images.compute import ImageCompute
from experiments.harness.images.config import ImageConfig
from experiments.harness.main import run_command
from experiments.harness.runs import complete_all, folder_of_runs
from experiments.mnist_lenet import experiment as mnist
from experiments.norms.experiment import ARMS, EXPERIMENT


def test_a_reference_is_one_of_the_arms():
    with pytest.raises(ValueError, match="reference: unknown 'nun'; choose from none, batch"):
        Comparison(ARMS, reference="nun")


def test_arms_have_names_each_its_own():
    with pytest.raises(ValueError, match="arms of norms must have names, each its own"):
        replace(EXPERIMENT, arms=(ARMS[0], ARMS[0]))
    with pytest.raises(ValueError, match="each its own"):
        replace(EXPERIMENT, arms=(replace(ARMS[0], name=""),))


def test_a_configuration_whose_defaults_would_not_count_is_refused():
    class Forgotten(ImageConfig):
        learning_rate: float = numbers(0.05)

    with pytest.raises(TypeError, match="Forgotten is no dataclass of its own"):
        replace(EXPERIMENT, config=Forgotten)


def test_an_experiment_has_its_folder_s_name(monkeypatch, capsys):
    other = replace(EXPERIMENT, name="other")
    monkeypatch.setattr("sys.argv", ["other"])
    with pytest.raises(SystemExit, match="no folder experiments/other: its name must be that"):
        run_command(other)
    monkeypatch.setattr(mnist, "EXPERIMENT", other)
    with pytest.raises(ValueError, match="experiments/mnist_lenet is named 'other'"):
        found.experiment("mnist_lenet")


@pytest.mark.parametrize("below", ["", "sweep"])
def test_a_folder_with_runs_of_another_experiment_is_refused(below, tmp_path, monkeypatch):
    """Before anything of it is written over, from the command as from a notebook."""
    copied = tmp_path / below / "mlp_bn-s0"
    shutil.copytree(mnist.EXPERIMENT.results / "mlp_bn-s0", copied)
    (tmp_path / "summary.json").write_text("kept")
    words = f"--out {tmp_path} holds runs of the experiment mnist_lenet, not of norms: give another"
    monkeypatch.setattr("sys.argv", ["norms", "--out", str(tmp_path)])
    for module in ("main", "runs"):
        monkeypatch.setattr(f"experiments.harness.{module}.complete", pytest.fail)
    with pytest.raises(SystemExit, match=f"^error: {words} --out"):
        run_command(EXPERIMENT)
    with pytest.raises(RecordError, match=words):
        complete_all(EXPERIMENT, EXPERIMENT.config(), tmp_path)
    assert (tmp_path / "summary.json").read_text() == "kept"
    assert folder_of_runs(mnist.EXPERIMENT, tmp_path) == tmp_path


def test_only_what_is_left_is_compiled_ahead(tmp_path, monkeypatch):
    def stop(tasks, data, compute):
        raise InterruptedError(*(task.arm.name for task in tasks))

    monkeypatch.setattr(runs, "is_complete", lambda task, out: task.arm.name == "batch")
    config = EXPERIMENT.config(arms=("none", "batch"), seeds=1)
    with pytest.raises(InterruptedError, match=r"^none$"):
        complete_all(replace(EXPERIMENT, compile_ahead=stop), config, tmp_path)


def test_committed_results_and_folders_without_runs_are_not_refused(tmp_path):
    (tmp_path / "notes").write_text("no run")
    assert folder_of_runs(EXPERIMENT, tmp_path) == tmp_path
    for experiment in found.experiments():
        folders = {file.parents[1] for file in experiment.results.rglob("record.json")}
        for folder in folders:
            assert folder_of_runs(experiment, folder) == folder


@pytest.mark.parametrize("given", [(), ("none", "none")])
def test_arms_are_named_each_once(given):
    with pytest.raises(ValueError, match=r"one or more of none, batch, .* each once, got none"):
        check_arms(given, ARMS)


def test_an_arm_without_a_network_says_what_it_lacks():
    with pytest.raises(NotImplementedError, match="ImageArm has no network: define its method"):
        ImageArm(name="bare").model(None, classes=2)


@dataclass(frozen=True)
class Config(ImageConfig):
    depth: int = network(3)


@pytest.mark.parametrize("change", [{"depth": 4}, {"width": 0.5}, {"momentum": 0.5}])
def test_a_setting_that_does_nothing_is_refused(change):
    """A record would state it all the same; `depth` is one that no arm of norms reads."""
    experiment = replace(EXPERIMENT, config=Config)
    config = Config(**change, arms=("none",))
    if "depth" not in change:
        assert len(experiment.tasks_of(config)) == 1
        return
    with pytest.raises(ValueError, match=r"depth=4 would do nothing: no arm.*Leave it at 3"):
        experiment.tasks_of(config)


def test_a_run_goes_on_with_the_parallel_that_it_was_begun_with(tmp_path):
    """Its record states one, by which it is repeated; what is finished needs none."""
    data, (task, *_) = open_data("mnist5k"), EXPERIMENT.tasks_of(EXPERIMENT.presets["quick"])
    stated = {"identity": identity(task, task.members[0], data), "parallel": "jit"}
    header = {"arm": task.arm.name, "seed": 0, "environment": {}} | stated
    run = Run(tmp_path / runs.run_name(task, task.members[0]), header)
    other = ImageCompute(parallel="shard_map")
    words = f"--parallel shard_map: {run.directory} was begun with --parallel jit, .* give that"
    for act in (runs.check, runs.complete):
        with pytest.raises(ValueError, match=words):
            act(EXPERIMENT, task, data, other, tmp_path)
    checked = replace(EXPERIMENT, check=lambda *_: None)
    runs.check(checked, task, data, ImageCompute(), tmp_path)
    run.finish({})
    runs.check(checked, task, data, other, tmp_path)
