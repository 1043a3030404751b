"""The ImageNet comparison as its users meet it: the command line, its folders, its ends.

A network of two layers stands in for Inception, whose compilation takes longer than all of this;
everything else is what the command runs. `main` runs in this process, on its eight devices.
"""

import gzip
import itertools
import json
import shutil
import signal
import sys
from dataclasses import replace

import flax.linen as nn
import jax
import numpy as np
import pytest
from commands import in_process
from events import scalars
from mnist_commands import assert_same_runs, content, flags
from runs import Entries, inception_task
from small_networks import small_networks
from tolerances import PARALLEL, assert_bitwise

from bnjax.data import DataError, open_data
from bnjax.evidence.records import RecordError, Run, read_metrics, read_record
from bnjax.linen import BatchNorm
from bnjax.models.layers import Dropout
from bnjax.training.checkpoints import CheckpointError, Checkpoints
from bnjax.training.loop import Interrupted, OutOfTime
from bnjax.training.parallel import DataParallel
from experiments.harness import runs
from experiments.harness.experiment import RunLog
from experiments.harness.images import feed, programs
from experiments.harness.images.compute import ImageCompute
from experiments.harness.images.feed import Feed
from experiments.harness.images.programs import training_program
from experiments.harness.images.train import train
from experiments.harness.runs import checkpoint_folder, complete, run_name
from experiments.harness.weights import load_weights
from experiments.imagenet_inception import __main__ as command
from experiments.imagenet_inception.config import PRESETS
from experiments.imagenet_inception.experiment import EXPERIMENT
from experiments.verify import verify

TINY = {
    "steps": 6,
    "accelerated_steps": 6,
    "eval_every": 2,
    "dense_until": 4,
    "sparse_eval_every": 2,
    "eval_batch": 200,
    "checkpoint_every": 2,
    "population_batches": 2,
}
CONFIG = replace(PRESETS["quick"], **TINY, arms=("bn_baseline",))


class Small(nn.Module):
    """Convolution, normalization, ReLU, mean, dropout, dense."""

    norm: bool
    dropout: float
    together: int
    axis_name: str | None

    def check_size(self, height, width):
        """Takes images of any."""

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Conv(8, (4, 4), (4, 4), use_bias=not self.norm, name="conv")(images)
        if self.norm:
            x = BatchNorm(
                momentum=0.9,
                averaging="ema_debiased",
                batch=self.together,
                axis_name=self.axis_name,
                name="norm",
            )(x, use_running_average=not train)
        x = nn.relu(x).mean((1, 2))
        x = Dropout(self.dropout, self.axis_name, name="dropout")(x, train=train)
        return nn.Dense(10, name="logits")(x)


@pytest.fixture(scope="module", autouse=True)
def _small():
    def model(arm, config, *, classes=10, axis_name=None):
        return Small(arm.normalized, arm.dropout, config.normalize_together, axis_name)

    with small_networks(model):
        yield


@pytest.fixture
def cli(monkeypatch, capsys):
    return in_process(command.main, monkeypatch, capsys)


@pytest.fixture(scope="module")
def data():
    return open_data("mnist5k")


COMPUTE = ImageCompute()
summarize = EXPERIMENT.page.report.summarize


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """A whole run."""
    out = tmp_path_factory.mktemp("finished")
    complete(EXPERIMENT, inception_task(CONFIG, "bn_baseline"), data, COMPUTE, out)
    return out


def test_the_command_ends_with_a_table_and_a_figure(cli, tmp_path):
    arms = ("inception", "bn_x5")
    ended = cli(*flags(**TINY), "--arms", *arms, "--out", tmp_path)
    assert ended.code == 0, ended.err
    assert EXPERIMENT.page.report.arms_table(summarize(tmp_path)) in ended.out
    assert "Training waited for images" in ended.out
    assert (tmp_path / "figure2.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "summary.json").read_text()) == summarize(tmp_path)
    assert "images/s" in ended.err  # the bar
    before = content(tmp_path)
    again = cli(*flags(**TINY), "--arms", *arms, "--out", tmp_path, "--resume")
    assert (again.code, again.out) == (0, ended.out)
    assert content(tmp_path) == before
    assert "images/s" not in again.err


def test_a_run_directory_holds_record_and_metrics(finished, data):
    folder = finished / "bn_baseline-s0"
    record, metrics = read_record(folder), read_metrics(folder)
    assert record["data"] == {
        "name": "mnist5k",
        "sha256": data.sha256,
        "train": 4000,
        "test": 1000,
    }
    assert record["identity"]["settings"]["dropout"] == 0.4
    assert (record["parallel"], record["environment"]["device_count"]) == ("jit", 8)
    assert [entry["step"] for entry in metrics] == [0, 2, 4, 6]
    assert [entry["train"]["examples"] for entry in metrics] == [0, 64, 64, 64]
    assert {entry["test"]["examples"] for entry in metrics} == {1000}
    final = record["final"]
    assert metrics[-1]["test"] == final["test"]
    assert final["test_population"]["examples"] == 1000
    assert final["diverged"] is None
    assert 0 <= final["timing"]["waiting_share"] < 1
    _, second, third, last = final["memory"]["arrays"]
    assert second == third > last  # nothing of past steps is kept; no batch is next at the end
    assert len(final["memory"]["host"]) == len(metrics)


@pytest.mark.parametrize(("stop_at", "by"), [(1, Interrupted), (3, OutOfTime)])
def test_a_run_that_is_stopped_goes_on_bitwise(stop_at, by, finished, data, tmp_path, monkeypatch):
    """Red if sums, order, views, dropout or the learning rate start anew."""
    task = inception_task(CONFIG, "bn_baseline")
    training, asked = Feed.training, itertools.count()  # before the run, after each of its steps

    def interrupting(self, first_step, steps):
        if by is Interrupted and first_step == stop_at:
            signal.raise_signal(signal.SIGTERM)
        return training(self, first_step, steps)

    with monkeypatch.context() as patch:
        patch.setattr(Feed, "training", interrupting)
        if by is OutOfTime:
            patch.setattr(ImageCompute, "out_of_time", lambda compute: next(asked) == stop_at)
        with pytest.raises(by, match=f"step {stop_at}"):
            complete(EXPERIMENT, task, data, COMPUTE, tmp_path)
    assert not read_record(tmp_path / run_name(task, task.members[0]))["finished"]
    complete(EXPERIMENT, task, data, COMPUTE, tmp_path)
    assert_same_runs(tmp_path, finished, ["bn_baseline-s0"])


@pytest.mark.slow
def test_verify_repeats_a_run(finished):
    verdict = verify(finished / "bn_baseline-s0")
    assert verdict.agrees, verdict.lines
    assert verdict.bitwise
    assert verify(finished / "bn_baseline-s0", steps=2).agrees


def outcome(data, config, how="jit", devices=8):
    log = Entries()
    compute = ImageCompute(parallel=how, device_count=devices)
    (reached,) = train(inception_task(config, "bn_baseline"), data, compute, log)
    return log.entries, reached


@pytest.mark.slow
def test_all_ways_of_parallel_training_agree(data):
    """Red if masks, moments or shares of the batch depend on the devices."""
    config = replace(CONFIG, normalize_together=16, steps_per_dispatch=2, population_batches=1)
    alone, expected = outcome(data, config, devices=1)
    for how in ("jit", "shard_map", "pmap"):
        entries, actual = outcome(data, config, how)
        for one, other in zip(alone, entries, strict=True):
            assert one["train"]["examples"] == other["train"]["examples"]
            np.testing.assert_allclose(
                [one["train"]["loss"], one["test"]["loss"]],
                [other["train"]["loss"], other["test"]["loss"]],
                rtol=2e-5,
                err_msg=how,
            )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, **PARALLEL),
            expected.weights,
            actual.weights,
        )


@pytest.mark.slow
def test_micro_batches_are_groups(data):
    """Without dropout, whose keys are those of parts: halves one after another, or groups of 16."""
    config = replace(CONFIG, dropout=0.0)
    _, grouped = outcome(data, replace(config, normalize_together=16))
    _, parts = outcome(data, replace(config, normalize_together=16, micro_batches=2))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **PARALLEL),
        {key: grouped.weights[key] for key in ("params", "batch_stats")},
        {key: parts.weights[key] for key in ("params", "batch_stats")},
    )


@pytest.mark.slow
def test_averaged_parameters_are_what_is_evaluated(data):
    """Of all steps alike: the mean of the parameters after each of them."""
    config = replace(CONFIG, steps=3, eval_every=3, population_batches=1)
    _, averaged = outcome(data, replace(config, parameter_averaging="cumulative"))
    each = [outcome(data, replace(config, steps=n))[1].weights["params"] for n in (1, 2, 3)]
    jax.tree.map(  # a float32 mean, of runs whose programs round differently
        lambda mean, *values: np.testing.assert_allclose(
            mean, np.mean(np.float64(values), 0), rtol=1e-5, atol=1e-7
        ),
        averaged.weights["params"],
        *each,
    )


@pytest.mark.slow
def test_a_sweep_goes_on_and_its_runs_are_those_of_its_rates(cli, tmp_path, monkeypatch):
    """Stopped in its second run: red if --resume does not see it, or a rate is the base rate."""
    out, arms = tmp_path / "out", ("--arms", "inception")
    sweep = (*flags(**TINY), *arms, "--rates", "0.001", "0.1", "--out", out)
    training, begun = Feed.training, []

    def interrupting(self, first_step, steps):
        begun.extend([first_step] * (first_step == 3))
        if len(begun) == 2:
            signal.raise_signal(signal.SIGTERM)
        return training(self, first_step, steps)

    with monkeypatch.context() as patch:
        patch.setattr(Feed, "training", interrupting)
        assert cli(*sweep).code == 128 + signal.SIGTERM
    ended = cli(*sweep, "--resume")
    assert ended.code == 0, ended.err
    assert "| learning rate | Inception (6 steps) |\n| ---: | ---: |\n| 0.001 | " in ended.out
    names = ["inception-lr0.001-s0", "inception-lr0.1-s0"]
    assert sorted(folder.name for folder in (out / "sweep").iterdir()) == names
    assert summarize(out)["arms"] == {}
    verdict = verify(out / "sweep" / names[1])
    assert verdict.agrees, verdict.lines
    assert verdict.bitwise
    assert cli(*flags(**TINY, learning_rate=0.1), *arms, "--out", tmp_path).code == 0
    (out / "sweep" / names[1]).rename(out / "inception-s0")
    assert_same_runs(out, tmp_path, ["inception-s0"])


def test_a_divergence_is_a_result(cli, tmp_path):
    ended = cli(*flags(**TINY, learning_rate_factor=1e36), "--arms", "inception", "--out", tmp_path)
    assert ended.code == 0, ended.err
    fault = read_record(tmp_path / "inception-s0")["final"]["diverged"]
    assert fault["step"] >= 1
    network = "Inception, learning_rate_factor 1e+36"
    assert f"{network}, seed 0, reached infinity at step {fault['step']}" in ended.out
    if fault["layer"] is not None:
        assert fault["layer"] in ended.out


@pytest.mark.slow
def test_a_divergence_leaves_the_average_where_it_was():
    """Red if it goes on to the end of the dispatch, at a state that stays."""
    config = replace(CONFIG, parameter_averaging="ema_tensorflow", steps_per_dispatch=2)
    one = DataParallel("jit", devices=jax.devices()[:1])
    program = training_program(config, inception_task(config, "bn_baseline").arm, one, classes=10)
    start = jax.jit(program.init)(np.int32(0), np.float32(np.inf))
    batch = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), program.batch_shapes)
    state, _ = jax.jit(program.step)(start, batch)
    assert (state.train.fault > 0, state.train.step) == (True, 0)
    assert_bitwise(state.average, start.average)


def test_arms_that_differ_in_numbers_share_their_programs():
    config = PRESETS["quick"]

    def of(arm, **changes):
        task = inception_task(replace(config, **changes), arm)
        return programs.programs_of(task.config, task.arm, COMPUTE.devices, classes=10)

    assert of("bn_x5") is of("bn_x30") is of("bn_x5", steps=7, learning_rate=1.0)
    assert of("recipe_x1") is of("recipe_x30") is of("bn_x5", normalized=False)
    assert of("googlenet", stem_stride=2) is not of("inception", stem_stride=2)
    assert of("bn_x5") is not of("bn_x5_sigmoid")
    assert of("bn_x5") is not of("bn_x5", momentum=0.5)


@pytest.mark.parametrize(("where", "name"), [(runs, "save_weights"), (Run, "log")])
def test_all_processes_hear_of_what_the_first_cannot_write(
    data, tmp_path, monkeypatch, where, name
):
    """Red if it is raised on the first alone: the others would wait for it in vain."""
    told = []

    def succeed(act):
        try:
            return act()
        except RecordError as error:
            told.append(error)
            raise

    def full(*arguments):
        raise RecordError("no space")

    monkeypatch.setattr(runs, "all_succeed", succeed)
    monkeypatch.setattr(where, name, full)
    with pytest.raises(RecordError, match="no space"):
        complete(EXPERIMENT, inception_task(CONFIG, "inception"), data, COMPUTE, tmp_path)
    assert len(told) == 1


@pytest.mark.parametrize("batches", ["validation", "population"])
def test_all_hosts_hear_of_images_that_one_cannot_read(data, monkeypatch, batches):
    """Red if it is raised on that one alone: the others would wait for its share in vain."""
    told = []

    def succeed(act):
        try:
            return act()
        except DataError as error:
            told.append(error)
            raise

    def broken(*arguments, **options):
        raise DataError("truncated")

    monkeypatch.setattr(feed, "all_succeed", succeed)
    monkeypatch.setattr(feed, "evaluation_batches", broken)
    monkeypatch.setattr(feed, "training_batches", broken)
    task = inception_task(CONFIG, "bn_baseline")
    with pytest.raises(DataError, match="truncated"):
        list(getattr(Feed(task, data, COMPUTE.devices, axis=1, workers=0), batches)())
    assert len(told) == 1


def test_two_processes_cannot_train_one_run(data, finished, tmp_path):
    task = inception_task(CONFIG, "bn_baseline")
    record = read_record(finished / run_name(task, task.members[0]))
    folder = checkpoint_folder(EXPERIMENT, task, data, tmp_path)
    with (
        Checkpoints(folder, config={"identity": record["identity"]}),
        pytest.raises(CheckpointError, match="in use by another writer"),
    ):
        complete(EXPERIMENT, task, data, COMPUTE, tmp_path)


def test_another_configuration_is_refused_with_the_difference(finished, cli, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    before = content(out)
    ended = cli(*flags(**TINY, l2=0.5), "--arms", "bn_baseline", "--out", out)
    assert ended.code == 1
    assert "settings.l2: stored 0.0002, given 0.5" in ended.err
    assert content(out) == before


@pytest.mark.slow
def test_tensorboard(cli, tmp_path, monkeypatch):
    """Its last moments are those of the weights; a rate is that of the last update before."""
    arguments = (*flags(**TINY), "--arms", "bn_x5", "--tensorboard", "--out")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tensorboardX", None)
        ended = cli(*arguments, tmp_path / "without")
    assert ended.code == 1
    assert "pip install -c constraints.txt -e '.[tensorboard]'" in ended.err
    assert not (tmp_path / "without").exists()
    assert cli(*arguments, tmp_path / "with").code == 0
    shown = scalars(tmp_path / "with" / "tensorboard" / "bn_x5-s0")
    run = tmp_path / "with" / "bn_x5-s0"
    log = {entry["step"]: entry["test"] for entry in read_metrics(run)}
    tested = {step: sums["correct"] / sums["examples"] for step, sums in log.items()}
    assert shown["accuracy/test"] == pytest.approx(tested)
    stats = load_weights(run, read_record(run))["batch_stats"]["norm"]
    last = max(log)
    for name in ("mean", "var"):
        values = np.asarray(stats[name], np.float64)
        assert shown[f"moments/norm/{name}"][last] == pytest.approx(values.mean(), rel=1e-6)
        assert shown[f"moments/norm/{name}_spread"][last] == pytest.approx(values.std(), rel=1e-6)
    assert shown["moments/norm/var_spread"][0] == 0  # variance 1 at first
    rates = shown["learning_rate"]
    assert set(rates) == set(log)
    assert rates[0] == pytest.approx(5 * PRESETS["quick"].learning_rate)
    assert rates[last] <= rates[0]


@pytest.mark.slow
def test_a_profile_is_for_perfetto(data, tmp_path):
    """Of a run that ends while it is profiled, too."""
    config = replace(CONFIG, steps=4, population_batches=1)
    train(inception_task(config, "bn_baseline"), data, ImageCompute(profile=tmp_path), RunLog())
    (trace,) = tmp_path.rglob("perfetto_trace.json.gz")
    events = gzip.decompress(trace.read_bytes())
    assert b'"train"' in events


def test_the_paper_s_settings():
    """Section 4.2.1 and 4.2.2; Figure 3 has the steps."""
    config = PRESETS["paper"]
    inception, baseline, x5, x30, sigmoid = (
        EXPERIMENT.arm(name, config).settings() for name in config.arms
    )
    assert not inception["normalized"]
    assert baseline == inception | {"normalized": True}
    assert x30 == x5 | {"learning_rate_factor": 30}
    assert sigmoid == x5 | {"activation": "sigmoid"}
    assert (x5["learning_rate_factor"], x5["dropout"], x5["decay_speed"]) == (5, 0, 6)
    assert x5["l2"] == inception["l2"] / 5
    assert (inception["local_response_norm"], x5["local_response_norm"]) == (True, False)
    assert (inception["photometric"], x5["photometric"]) == ("full", "reduced")
    assert (inception["shuffle"], x5["shuffle"]) == ("shards", "within_shard")
    assert config.learning_rate * x30["learning_rate_factor"] == pytest.approx(0.045)
    assert (config.batch_size, config.normalize_together, config.image_size) == (32, 32, 224)
    assert (config.steps, config.width, config.stem) == (31_000_000, 1, "separable")
    config = replace(config, dropout=0.1, learning_rate_factor=2.0)
    changed = EXPERIMENT.arm("bn_x5", config).settings()
    assert changed == x5 | {"dropout": 0.1, "learning_rate_factor": 2.0}
