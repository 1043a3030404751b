"""MNIST runs that diverge, or meet another process in their folder."""

import json
import shutil
from dataclasses import replace

import pytest
from mnist_commands import TINY

from bnjax.data import in_memory, open_data
from bnjax.evidence.records import RecordError, read_metrics, read_record
from bnjax.training.checkpoints import Checkpoints
from bnjax.training.locks import lock
from bnjax.training.loop import Interrupted
from experiments.harness import runs
from experiments.harness.bounds import check_population
from experiments.harness.compute import Compute
from experiments.harness.experiment import Member
from experiments.harness.results import read_result
from experiments.harness.runs import check, complete
from experiments.mnist_lenet.config import Config
from experiments.mnist_lenet.experiment import EXPERIMENT, OneCPUDevicePerCore, comparison
from experiments.mnist_lenet.summary import summarize
from experiments.mnist_lenet.table import divergence_text

CONFIG = Config(**TINY)


def train_whole(task, dataset, out, experiment=EXPERIMENT):
    complete(experiment, task, dataset, OneCPUDevicePerCore(), out)


@pytest.fixture(scope="module")
def dataset():
    return in_memory(open_data("mnist5k"))


def mixed_task():
    """Members of which the second has a rate that no run survives."""
    task = comparison(CONFIG, "mlp_bn", [0])
    return task._replace(members=(Member(0, 0.1), Member(1, 1e38)))


@pytest.fixture(scope="module")
def mixed(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("mixed")
    train_whole(mixed_task(), dataset, out)
    return out


def test_a_run_that_diverges_ends_with_step_and_layer(dataset, tmp_path):
    """Red where NaN ends as a result of 10 %."""
    task = comparison(replace(CONFIG, weight_std=3e37), "mlp", [0, 1])
    train_whole(task, dataset, tmp_path)
    for seed in (0, 1):
        record, log = read_result(tmp_path / f"mlp-s{seed}")
        fault = record["final"]["diverged"]
        assert (fault["step"], fault["what"]) == (1, "gradient")
        assert fault["layer"].startswith("dense")
        assert record["final"]["test_population"] is None
        assert [entry["step"] for entry in log] == [0]
    summary = summarize(tmp_path)
    assert summary["arms"]["mlp"]["final_accuracy"]["mean"] < 0.2
    line = divergence_text(summary).splitlines()[1]
    assert line.startswith("- 3x100 sigmoid, seed 1, reached infinity at step 1")


@pytest.mark.slow
def test_members_that_stay_finite_are_as_without_the_others(dataset, mixed, tmp_path):
    assert read_record(mixed / "mlp_bn-s1")["final"]["diverged"]["step"] == 2
    assert [entry["step"] for entry in read_metrics(mixed / "mlp_bn-s1")] == [0]
    complete(
        EXPERIMENT, comparison(CONFIG, "mlp_bn", [0, 1]), dataset, OneCPUDevicePerCore(), tmp_path
    )
    (one, other) = ((out / "mlp_bn-s0" / "metrics.jsonl").read_bytes() for out in (mixed, tmp_path))
    assert one == other


@pytest.mark.slow
def test_a_run_beside_one_that_diverged_goes_on_bitwise(dataset, mixed, tmp_path, monkeypatch):
    """Its checkpoint holds a member that stands still since before its last evaluation."""
    save = Checkpoints.save

    def stop(self, step, *arguments):
        save(self, step, *arguments)
        if step == 20:
            raise Interrupted(step, 2)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", stop)
        with pytest.raises(Interrupted):
            train_whole(mixed_task(), dataset, tmp_path)
    train_whole(mixed_task(), dataset, tmp_path)
    for name in ("mlp_bn-s0", "mlp_bn-s1"):
        logs = [(out / name / "metrics.jsonl").read_bytes() for out in (mixed, tmp_path)]
        assert logs[0] == logs[1]
        finals = [read_record(out / name)["final"] for out in (mixed, tmp_path)]
        for key in ("state_sha256", "test", "diverged"):
            assert json.dumps(finals[0][key]) == json.dumps(finals[1][key])


@pytest.mark.slow
def test_two_processes_cannot_write_one_run_whatever_their_seeds(dataset, tmp_path):
    """Red where the lock is that of the runs which train together."""

    def second(*arguments, **options):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*.json*")}
        with pytest.raises(RecordError, match=r"mlp-s0 is in use by another writer"):
            complete(
                EXPERIMENT,
                comparison(CONFIG, "mlp", range(3)),
                dataset,
                OneCPUDevicePerCore(),
                tmp_path,
            )
        assert {path: path.read_bytes() for path in tmp_path.rglob("*.json*")} == before
        raise Interrupted(0, 2)

    stopped = replace(EXPERIMENT, train=second)
    with pytest.raises(Interrupted):
        complete(
            stopped, comparison(CONFIG, "mlp", range(2)), dataset, OneCPUDevicePerCore(), tmp_path
        )
    complete(
        EXPERIMENT, comparison(CONFIG, "mlp", range(3)), dataset, OneCPUDevicePerCore(), tmp_path
    )
    assert summarize(tmp_path)["arms"]["mlp"]["runs"] == 3


@pytest.mark.slow
def test_runs_that_another_process_finishes_meanwhile_are_left_alone(
    dataset, mixed, tmp_path, monkeypatch
):
    """Red if no run at all is trained on, in place of those."""

    def late(file, what):
        shutil.copytree(mixed, tmp_path, dirs_exist_ok=True)
        return lock(file, what)

    monkeypatch.setattr(runs, "lock", late)
    train_whole(mixed_task(), dataset, tmp_path, replace(EXPERIMENT, train=None))
    for seed in (0, 1):
        read_result(tmp_path / f"mlp_bn-s{seed}")
        for name in ("record.json", "metrics.jsonl"):
            own, other = (out / f"mlp_bn-s{seed}" / name for out in (tmp_path, mixed))
            assert own.read_bytes() == other.read_bytes()


def test_a_finished_run_needs_no_lock(dataset, mixed):
    held = [lock(mixed / "checkpoints" / f"mlp_bn-s{seed}.lock", mixed) for seed in (0, 1)]
    train_whole(mixed_task(), dataset, mixed)
    for file in held:
        file.close()


def test_a_population_of_too_many_batches_is_refused_before_training(dataset, tmp_path):
    check_population(6_666, 60, 4_000)
    task = comparison(replace(CONFIG, population_batches=10**9), "mlp_bn", [0])
    with pytest.raises(ValueError, match=r"population_batches must be at most 6,666, .* 1,000,000"):
        check(EXPERIMENT, task, dataset, Compute(), tmp_path)


def test_an_infinite_width_of_weights_is_refused():
    with pytest.raises(ValueError, match="weight_std must be > 0 and finite, got inf"):
        Config(weight_std=float("inf"))
