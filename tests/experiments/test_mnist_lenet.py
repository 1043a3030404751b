"""The MNIST experiment as its users meet it: the command line, its folders, its ends.

Where nothing but the process's end is at stake, `main` runs in this process, whose eight devices
train up to eight runs, one each.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from commands import in_process
from events import scalars
from mnist_commands import ROOT, TINY, assert_same_runs, content, end, flags, start
from runs import JAX_HAS_STARTED

from bnjax.data import in_memory, open_data
from bnjax.evidence.records import read_metrics, read_record
from experiments.harness.arm import by_name
from experiments.harness.compute import Compute
from experiments.harness.experiment import Experiment, RunLog
from experiments.harness.runs import run_name
from experiments.mnist_lenet import __main__ as command
from experiments.mnist_lenet.arms import ARMS
from experiments.mnist_lenet.config import PRESETS, Config
from experiments.mnist_lenet.experiment import EXPERIMENT, comparison
from experiments.mnist_lenet.summary import summarize
from experiments.mnist_lenet.table import (
    arms_table,
)
from experiments.mnist_lenet.train import train


@pytest.fixture
def cli(monkeypatch, capsys):
    monkeypatch.setattr(*JAX_HAS_STARTED)
    return in_process(command.main, monkeypatch, capsys)


# --- One run from its command to its table ---------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a small run of the paper's pair, and how its process ended."""
    out = tmp_path_factory.mktemp("finished") / "out"
    words = ("--arms", "mlp", "mlp_bn", "--tensorboard", "--out")
    process = start(*flags(**TINY, seeds=2), *words, out)
    return out, end(process)


@pytest.mark.slow
def test_the_command_ends_with_a_table_and_a_figure(finished):
    out, ended = finished
    assert ended.code == 0, ended.err
    table = arms_table(summarize(out))
    assert table in ended.out
    assert "3x100 sigmoid, BN minus 3x100 sigmoid:" in ended.out
    assert f"Written: {out / 'summary.json'}, {out / 'figure1.png'}" in ended.out
    assert (out / "figure1.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "summary.json").read_text()) == summarize(out)
    assert "step/s" in ended.err  # the bar
    assert "Warning" not in ended.err


def test_a_run_directory_holds_record_and_metrics(finished):
    out, _ = finished
    runs = [f"{arm}-s{seed}" for arm in ("mlp", "mlp_bn") for seed in (0, 1)]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*runs, "checkpoints", "figure1.png", "summary.json", "tensorboard"]
    )
    dataset = in_memory(open_data("mnist5k"))
    for name in runs:
        record, metrics = read_record(out / name), read_metrics(out / name)
        assert record["finished"]
        assert (record["arm"], record["seed"]) == (name[:-3], int(name[-1]))
        assert record["data"] == {
            "name": "mnist5k",
            "sha256": dataset.sha256,
            "train": 4000,
            "test": 1000,
        }
        assert record["identity"]["schedule"]["steps"] == 40
        assert record["identity"]["config"]["decay"] == 0.99
        assert [entry["step"] for entry in metrics] == [0, 10, 20, 30, 40]
        assert [entry["train"]["examples"] for entry in metrics] == [0, 600, 600, 600, 600]
        assert {entry["test"]["examples"] for entry in metrics} == {1000}
        assert metrics[-1]["test"] == record["final"]["test"]
        assert ("units" in metrics[1], "units" in metrics[2]) == (False, True)
        assert ("p15" in metrics[2]["units"]) == (record["seed"] == 0)
        assert len(metrics[2]["units"]["p50"]) == 100
        population = record["final"]["test_population"]
        assert (population is None) == name.startswith("mlp-")
        assert population is None or population["examples"] == 1000


def test_each_run_has_curves_of_its_own(finished):
    """Of the runs of an arm that train together; moments where there is normalization."""
    out, _ = finished
    moments = {}
    for arm in ("mlp", "mlp_bn"):
        for seed in (0, 1):
            shown = scalars(out / "tensorboard" / f"{arm}-s{seed}")
            tested = [entry["test"] for entry in read_metrics(out / f"{arm}-s{seed}")]
            losses = [sums["loss"] / sums["examples"] for sums in tested]
            assert list(shown["loss/test"].values()) == pytest.approx(losses)
            assert list(shown["learning_rate"].values()) == pytest.approx([0.1] * 5)
            moments[arm, seed] = {tag: shown[tag] for tag in shown if tag.startswith("moments/")}
    assert moments["mlp", 0] == {}
    assert len(moments["mlp_bn", 0]) == 4 * 3
    assert moments["mlp_bn", 0] != moments["mlp_bn", 1]


def test_a_record_names_no_host_and_no_path(finished):
    out, _ = finished
    text = (out / "mlp-s0" / "record.json").read_text()
    assert str(Path.home()) + "/" not in text
    assert str(ROOT) not in text
    assert str(out) not in text


def test_running_again_repeats_nothing(finished, tmp_path, cli):
    out, first = finished
    copy = shutil.copytree(out, tmp_path / "out")
    before = content(copy)
    again = cli(*flags(**TINY, seeds=2), "--arms", "mlp", "mlp_bn", "--out", copy)
    assert again.code == 0
    assert again.out.replace(str(copy), str(out)) == first.out
    assert content(copy) == before
    assert "step/s" not in again.err


def test_resuming_what_is_finished_is_no_error(finished, tmp_path, cli):
    copy = shutil.copytree(finished[0], tmp_path / "out")
    assert cli(*flags(**TINY, seeds=1), "--arms", "mlp", "--out", copy, "--resume").code == 0


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"decay": 0.9}, "config.decay: stored 0.99, given 0.9"),
        ({"batch_size": 50}, "config.batch_size: stored 60, given 50"),
        ({"steps": 60}, "schedule.steps: stored 40, given 60"),
        ({"learning_rate": 0.2}, "learning_rate: stored 0.1, given 0.2"),
    ],
)
def test_another_configuration_is_refused_and_touches_nothing(
    finished, tmp_path, cli, change, line
):
    """Neither the runs that stand there nor, by new ones, the folder: `lenet` is not trained."""
    copy = shutil.copytree(finished[0], tmp_path / "out")
    before = content(copy)
    arguments = flags(**TINY | change, seeds=3)
    ended = cli(*arguments, "--arms", "lenet", "mlp_bn", "mlp", "--out", copy)
    assert ended.code == 1
    lines = ended.err.splitlines()
    assert lines[0] == f"error: {copy / 'mlp_bn-s0'} holds a run of another configuration:"
    assert [text.strip() for text in lines[1:-1]] == [line]
    assert lines[-1] == "Choose another --out, or remove that folder."
    assert content(copy) == before


# --- Bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arms", "mlp", "vgg"], "arms: unknown 'vgg'; choose from mlp, mlp_bn, lenet, lenet_bn"),
        (["--arms", "mlp", "mlp"], "arms must name one or more of mlp, mlp_bn, lenet, lenet_bn"),
        (["--arms"], "--arms has no value"),
        (["--data", "cifar"], "data: unknown 'cifar'; choose from mnist5k, mnist, fashion_mnist"),
        (["--seeds", "0"], "seeds must be >= 1, got 0"),
        (["--steps", "-5"], "steps must be >= 1, got -5"),
        (["--decay", "1.0"], "decay must be in [0, 1), got 1.0"),
        (["--decay", "-0.1"], "decay must be in [0, 1), got -0.1"),
        (["--epsilon", "0"], "epsilon must be > 0 and finite, got 0.0"),
        (["--batch-size", "1"], "batch_size must be >= 2, got 1: normalization needs a batch"),
        (["--batch-size", "4001"], "batch_size must be at most the 4,000 training examples"),
        (["--learning-rate", "nan"], "learning_rate must be > 0 and finite, got nan"),
        (["--sweep", "0.1", "-1"], "sweep must be > 0 and finite, got -1.0"),
        (["--sweep", "0.1", "0.1"], "sweep must name rates that differ"),
        (["--threshold", "127"], "threshold must be in [0, 1), got 127.0"),
        (["--eval-every", "150"], "eval_every=150 must be a multiple of steps_per_dispatch=100"),
        (["--resume"], "holds no run to go on with; leave --resume out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_values_end_in_one_line(cli, tmp_path, arguments, message):
    """Before anything is written, which a corrected command would stumble over."""
    out = tmp_path / "out"
    ended = cli(*arguments, "--out", out)
    assert ended.code == 1
    assert ended.err.startswith("error: ")
    assert message in ended.err
    assert ended.err.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    "arguments",
    [["--sedes", "3"], ["--seeds", "three"], ["--preset", "tiny"], ["--preset"]],
    ids=str,
)
def test_unknown_flags_and_words_are_refused(cli, arguments):
    ended = cli(*arguments)
    assert ended.code == 2
    assert arguments[0].lstrip("-") in ended.err
    assert "Traceback" not in ended.err


def test_help_names_every_field(cli):
    ended = cli("--help")
    assert ended.code == 0
    for field in fields(Config):
        assert f"--{field.name.replace('_', '-')}" in ended.out
    for flag in ("--preset", "--out", "--resume", "--data-dir"):
        assert flag in ended.out
    assert len(fields(Config)) > 25
    assert "Stated: 50,000" in ended.out


def test_results_to_be_cited_come_from_a_commit(cli, monkeypatch):
    """A run into the committed results is refused while tracked files differ from the commit."""
    dirty = {"git": {"commit": "a" * 40, "dirty": True}}
    monkeypatch.setattr("bnjax.evidence.environment.environment", lambda: dirty)
    out = ROOT / "experiments" / "mnist_lenet" / "results" / "new"
    ended = cli("--out", out)
    assert ended.code == 1
    assert "which must come from a commit: commit your changes first" in ended.err
    assert not out.exists()


@pytest.mark.slow
def test_a_missing_data_set_without_a_network_is_asked_for_once(tmp_path):
    """tensorflow-datasets alone would try for minutes. Every proxy leads nowhere here."""
    code = (
        "import sys, experiments.mnist_lenet.__main__ as command\n"
        f"sys.argv = ['main', '--data', 'mnist', '--out', {str(tmp_path / 'out')!r}]\n"
        "sys.addaudithook(lambda event, told: event == 'socket.connect' and print(told[1]))\n"
        "command.main()\n"
    )
    nowhere = dict.fromkeys(
        ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"
    )
    environment = {**os.environ, **nowhere, "TFDS_DATA_DIR": str(tmp_path / "data")}
    for name in ("no_proxy", "NO_PROXY"):
        environment.pop(name, None)
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 1
    assert ended.stdout == "('127.0.0.1', 9)\n"
    assert f"error: mnist is not in {tmp_path / 'data' / 'mnist'}" in ended.stderr
    assert "TFDS_DATA_DIR" in ended.stderr
    assert "mnist5k" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out").exists()


# --- Configuration ---------------------------------------------------------------------------


MLP, LENET = by_name(ARMS, "mlp"), by_name(ARMS, "lenet")


def test_the_paper_preset_is_the_papers_setting():
    paper = PRESETS["paper"]
    assert (paper.data, paper.steps, paper.batch_size, paper.seeds) == ("mnist", 50_000, 60, 10)
    assert paper.running_var == "unbiased"
    assert len(paper.run_seeds(LENET)) >= 5
    assert paper.schedule(LENET).steps == paper.schedule(MLP).steps == 50_000
    assert paper.sweep == (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    quick = PRESETS["quick"]
    assert (quick.data, quick.sweep) == ("mnist5k", ())
    for field in ("learning_rate", "batch_size", "decay", "epsilon", "threshold", "weight_std"):
        assert getattr(quick, field) == getattr(paper, field)


def test_lenet_is_cut_shorter_than_the_mlp():
    config = Config(steps=500, lenet_max_steps=300, seeds=4, lenet_max_seeds=2)
    assert config.schedule(MLP).steps == 500
    assert config.schedule(LENET).steps == 300
    assert list(config.run_seeds(MLP)) == [0, 1, 2, 3]
    assert list(config.run_seeds(LENET)) == [0, 1]


def test_a_sweep_is_laid_out_behind_the_comparison():
    """Each arm at all rates, LeNet with fewer seeds and steps. Seen red with those of the
    comparison, and with rates inside seeds."""
    config = Config(
        arms=("mlp", "lenet"),
        sweep=(0.1, 1.0),
        sweep_seeds=2,
        lenet_max_sweep_seeds=1,
        lenet_max_sweep_steps=300,
    )
    tasks = EXPERIMENT.tasks_of(config)
    laid_out = [
        ([run_name(task, member) for member in task.members], task.schedule.steps) for task in tasks
    ]
    sweep = [f"sweep/mlp-lr{rate}-s{seed}" for rate in ("0.1", "1") for seed in (0, 1)]
    assert laid_out == [
        ([f"mlp-s{seed}" for seed in range(4)], 3_000),
        (["lenet-s0", "lenet-s1"], 600),
        (sweep, 3_000),
        (["sweep/lenet-lr0.1-s0", "sweep/lenet-lr1-s0"], 300),
    ]
    assert [task.schedule.eval_every for task in tasks] == [100, 100, 500, 500]
    rates = [[member.learning_rate for member in task.members] for task in tasks]
    assert rates == [[0.1] * 4, [0.1] * 2, [0.1, 0.1, 1.0, 1.0], [0.1, 1.0]]


# --- What training gives ---------------------------------------------------------------------


def logs(config, arm, seeds, dataset):
    """Each run's log and final outcome."""
    entries = [[] for _ in seeds]
    log = RunLog()
    log.log = lambda position, entry: entries[position].append(entry)
    outcomes = train(comparison(config, arm, seeds), dataset, Compute(), log)
    return entries, [outcome.final for outcome in outcomes]


@pytest.mark.slow
def test_a_seed_gives_the_same_numbers_alone_and_among_others():
    """One run a device here; red if members share the order, the weights or a generator."""
    dataset = in_memory(open_data("mnist5k"))
    config = Config(**TINY | {"steps": 20, "checkpoint_every": 0})
    (alone,), (final,) = logs(config, "mlp_bn", [1], dataset)
    among, finals = logs(config, "mlp_bn", [0, 1, 2], dataset)
    assert json.dumps(among[1]) == json.dumps(alone)
    assert finals[1] == final
    assert len({outcome["state_sha256"] for outcome in finals}) == 3


@pytest.mark.slow
def test_normalization_learns_faster():
    """After 1,000 steps on the packaged digits; seen over four seeds: 48 to 57 %, 88 to 90 %."""
    dataset = in_memory(open_data("mnist5k"))
    config = Config(steps=1_000, eval_every=500, sparse_eval_every=500, checkpoint_every=0)
    accuracy = {}
    for arm in ("mlp", "mlp_bn"):
        _, finals = logs(config, arm, [0, 1], dataset)
        accuracy[arm] = [final["test"]["correct"] / final["test"]["examples"] for final in finals]
    assert min(accuracy["mlp_bn"]) > 0.85
    assert min(accuracy["mlp_bn"]) > max(accuracy["mlp"]) + 0.15


@pytest.mark.slow
def test_more_seeds_can_be_added_to_what_is_finished(tmp_path, cli):
    """And give what they give at once; the seed that stands there is not trained again."""
    tiny = [*flags(**TINY | {"steps": 20}), "--arms", "mlp"]
    assert cli(*tiny, "--seeds", 1, "--out", tmp_path / "grown").code == 0
    before = content(tmp_path / "grown" / "mlp-s0")
    grown = cli(*tiny, "--seeds", 3, "--out", tmp_path / "grown")
    assert grown.code == 0, grown.err
    assert content(tmp_path / "grown" / "mlp-s0") == before
    assert cli(*tiny, "--seeds", 3, "--out", tmp_path / "whole").code == 0
    names = [f"mlp-s{seed}" for seed in range(3)]
    assert_same_runs(tmp_path / "grown", tmp_path / "whole", names)

    # A kill between the last writes, when one run is finished and the others are not.
    cut = shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for name in names[1:]:
        path = cut / name / "record.json"
        record = json.loads(path.read_text())
        del record["final"], record["sha256"], record["log_sha256"]
        path.write_text(json.dumps(record | {"schema": 1, "finished": False}))
    ended = cli(*tiny, "--seeds", 3, "--out", cut)
    assert ended.code == 0, ended.err
    assert_same_runs(cut, tmp_path / "whole", names)


@pytest.mark.slow
def test_lenet_trains_through_the_command(tmp_path, cli):
    ended = cli(*flags(**TINY | {"steps": 10}, seeds=1), "--arms", "lenet_bn", "--out", tmp_path)
    assert ended.code == 0, ended.err
    metrics = read_metrics(tmp_path / "lenet_bn-s0")
    assert metrics[-1]["test"]["loss"] < metrics[0]["test"]["loss"]
    assert len(metrics[0]["units"]["p50"]) == 84


def test_ctrl_c_outside_training_says_how_to_go_on(cli, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Experiment, "open_data", interrupt)
    ended = cli("--seeds", 1)
    assert ended.code == 130
    assert ended.out.splitlines()[-1].strip() == "python -m experiments.mnist_lenet --seeds 1"
