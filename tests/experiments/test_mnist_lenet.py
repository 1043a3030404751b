"""The MNIST experiment as its users meet it: the command line, its folders, its ends.

Where nothing but the process's end is at stake, `main` runs in this process, whose eight devices
train up to eight runs, one each.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from made_results import write_pair, write_run
from scipy import stats

from bnjax.data import load_dataset
from bnjax.evidence.records import read_metrics, read_record
from experiments.mnist_lenet import __main__ as command
from experiments.mnist_lenet.config import PRESETS, Config
from experiments.mnist_lenet.runs import main_task
from experiments.mnist_lenet.summary import steps_to, summarize
from experiments.mnist_lenet.table import (
    arms_table,
    differences_text,
    drift_text,
    sweep_table,
)
from experiments.mnist_lenet.train import train

ROOT = Path(__file__).parents[2]
TINY = {
    "steps": 40,
    "steps_per_dispatch": 10,
    "eval_every": 10,
    "sparse_eval_every": 20,
    "checkpoint_every": 10,
    "population_batches": 2,
    "probe_examples": 50,
    "units_every": 20,
}


def flags(**values) -> list[str]:
    return [
        part for key, value in values.items() for part in (f"--{key.replace('_', '-')}", str(value))
    ]


def start(*arguments, **options) -> subprocess.Popen:
    code = [sys.executable, "-m", "experiments.mnist_lenet", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(code, cwd=ROOT, **pipes, **options)


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def end(process: subprocess.Popen) -> Ended:
    out, err = process.communicate(timeout=300)
    return Ended(process.returncode, out, err)


@pytest.fixture
def cli(monkeypatch, capsys):
    """Runs the command in this process; a message to exit with goes to `err`, as Python does it."""
    monkeypatch.setattr(command, "one_cpu_device_per_core", lambda: None)  # JAX has started

    def call(*arguments) -> Ended:
        monkeypatch.setattr(sys, "argv", ["main", *map(str, arguments)])
        code, message = 0, ""
        try:
            command.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
            message = "" if isinstance(stop.code, int) else f"{stop.code}\n"
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err + message)

    return call


def content(directory: Path) -> dict[str, bytes]:
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def assert_same_runs(actual: Path, desired: Path, names):
    """Bitwise the same log, and the same final metrics, parameters and statistics."""
    for name in names:
        first, second = (read_record(out / name)["final"] for out in (actual, desired))
        assert first["state_sha256"] == second["state_sha256"], name
        assert first["test"] == second["test"]
        assert first["test_population"] == second["test_population"]
        logs = [(out / name / "metrics.jsonl").read_bytes() for out in (actual, desired)]
        assert logs[0] == logs[1], name


# --- One run from its command to its table ---------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a small run of the paper's pair, and how its process ended."""
    out = tmp_path_factory.mktemp("finished") / "out"
    process = start(*flags(**TINY, seeds=2), "--arms", "mlp", "mlp_bn", "--out", out)
    return out, end(process)


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
        [*runs, "checkpoints", "figure1.png", "summary.json"]
    )
    dataset = load_dataset("mnist5k")
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
        (["--arms", "mlp", "mlp"], "arms must name one or more arms, each once"),
        (["--arms"], "arms must name one or more arms"),
        (["--data", "cifar"], "data: unknown 'cifar'; choose from mnist5k, mnist, fashion_mnist"),
        (["--seeds", "0"], "seeds must be >= 1, got 0"),
        (["--steps", "-5"], "steps must be >= 1, got -5"),
        (["--decay", "1.0"], "decay must be in [0, 1), got 1.0: it is the fraction kept"),
        (["--decay", "-0.1"], "decay must be in [0, 1), got -0.1"),
        (["--epsilon", "0"], "epsilon must be > 0, got 0.0"),
        (["--batch-size", "1"], "batch_size must be >= 2, got 1: normalization needs a batch"),
        (["--batch-size", "4001"], "batch_size must be at most the 4,000 training examples"),
        (["--learning-rate", "nan"], "learning_rate must be > 0 and finite, got nan"),
        (["--sweep", "0.1", "-1"], "sweep must be > 0 and finite, got (0.1, -1.0)"),
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
    assert len(Config.__annotations__) > 25
    assert "Stated: 50,000" in ended.out


def test_results_to_be_cited_come_from_a_commit(cli, monkeypatch):
    """A run into the committed results is refused while tracked files differ from the commit."""
    dirty = {"git": {"commit": "a" * 40, "dirty": True}}
    monkeypatch.setattr(command, "environment", lambda: dirty)
    out = ROOT / "experiments" / "mnist_lenet" / "results" / "new"
    ended = cli("--out", out)
    assert ended.code == 1
    assert "which must come from a commit: commit your changes first" in ended.err
    assert not out.exists()


def test_a_missing_data_set_without_a_network_fails_fast(tmp_path):
    """tensorflow-datasets alone would try for minutes. Every proxy leads nowhere here."""
    code = (
        "import sys, time, tensorflow_datasets, experiments.mnist_lenet.__main__ as command\n"
        f"sys.argv = ['main', '--data', 'mnist', '--out', {str(tmp_path / 'out')!r}]\n"
        "start = time.perf_counter()\n"
        "try: command.main()\n"
        "finally: print(time.perf_counter() - start)\n"
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
    assert float(ended.stdout) < 5
    assert f"error: mnist is not in {tmp_path / 'data' / 'mnist'}" in ended.stderr
    assert "TFDS_DATA_DIR" in ended.stderr
    assert "mnist5k" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out").exists()


# --- Configuration ---------------------------------------------------------------------------


def test_the_paper_preset_is_the_papers_setting():
    paper = PRESETS["paper"]
    assert (paper.data, paper.steps, paper.batch_size, paper.seeds) == ("mnist", 50_000, 60, 10)
    assert paper.running_var == "unbiased"
    assert len(paper.run_seeds("lenet")) >= 5
    assert paper.schedule("lenet").steps == paper.schedule("mlp").steps == 50_000
    assert len(paper.sweep) >= 5
    quick = PRESETS["quick"]
    assert (quick.data, quick.sweep) == ("mnist5k", ())
    for field in ("learning_rate", "batch_size", "decay", "epsilon", "threshold", "weight_std"):
        assert getattr(quick, field) == getattr(paper, field)


def test_identity_holds_all_that_numbers_depend_on():
    """A new field must be told apart: does it change a single run's numbers?"""
    base = Config()
    apart = {"arms", "seeds", "lenet_max_seeds", "steps", "lenet_max_steps", "learning_rate"}
    apart |= {name.name for name in fields(Config) if "sweep" in name.name}
    assert set(base.identity()) == {field.name for field in fields(Config)} - apart
    assert replace(base, decay=0.5).identity() != base.identity()


def test_lenet_is_cut_shorter_than_the_mlp():
    config = Config(steps=500, lenet_max_steps=300, seeds=4, lenet_max_seeds=2)
    assert config.schedule("mlp").steps == 500
    assert config.schedule("lenet_bn").steps == 300
    assert list(config.run_seeds("mlp_bn")) == [0, 1, 2, 3]
    assert list(config.run_seeds("lenet")) == [0, 1]


# --- From runs to numbers --------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("made")
    write_pair(out)
    return out


def test_steps_to_is_the_first_evaluation_that_reaches_the_accuracy():
    steps, accuracy = np.array([0, 10, 20, 30]), np.array([0.1, 0.9, 0.89, 0.95])
    assert steps_to(0.9, steps, accuracy) == 10
    assert steps_to(0.95, steps, accuracy) == 30
    assert steps_to(0.96, steps, accuracy) is None
    assert steps_to(0.05, steps, accuracy) == 0


def test_the_summary_by_hand(made):
    """Made runs of 200 digits: 180 are 90 %, 190 are 95 %, 194 are 97 %, 195 are 97.5 %."""
    plain, normalized = (summarize(made)["arms"][arm] for arm in ("mlp", "mlp_bn"))
    assert plain["runs"] == 3
    assert plain["steps_to"]["0.9"] == {  # at 1,000, 1,500 and 2,000
        "reached": 3,
        "mean": 1500.0,
        "sd": 500.0,
    }
    assert plain["steps_to"]["0.97"] == {"reached": 2, "mean": 2000.0, "sd": 0.0}
    assert plain["steps_to"]["0.975"] == {"reached": 1, "mean": 2000.0, "sd": None}
    assert normalized["steps_to"]["0.9"]["mean"] == round(2000 / 3, 6)
    final = np.array([192, 194, 196]) / 200
    assert plain["final_accuracy"] == {"mean": 0.97, "sd": round(final.std(ddof=1), 6)}
    assert normalized["final_accuracy_algorithm_2"] == {"mean": 0.98, "sd": 0.01}
    assert "final_accuracy_algorithm_2" not in plain
    # lengths 3, 0, 1, 9, 2 are 3 on average, as are those of shifted paths; doubled ones are 6
    assert plain["median_path_length"] == {"mean": 4.0, "sd": round(np.sqrt(3), 6)}
    assert normalized["median_path_length_running"] == {"mean": 6.0, "sd": 0.0}


def test_the_difference_is_paired_by_seed(made):
    """Red for an interval of unpaired runs, or runs paired in another order."""
    (difference,) = summarize(made)["differences"]
    change = np.array([195 - 192, 198 - 194, 196 - 196]) / 200
    interval = stats.ttest_1samp(change, 0).confidence_interval(0.95)
    assert difference["arms"] == ["mlp_bn", "mlp"]
    assert difference["seeds"] == 3
    assert difference["mean"] == round(change.mean(), 6)
    np.testing.assert_allclose(difference["confidence_95"], interval, atol=1e-6)


def test_only_finished_runs_count(made, tmp_path):
    out = shutil.copytree(made, tmp_path / "out")
    write_run(out, "mlp", 3, [0] * 5, finished=False)
    assert summarize(out) == summarize(made)


def test_the_tables(made):
    summary = summarize(made)
    assert arms_table(summary).splitlines()[2:] == [
        "| 3x100 sigmoid | 3 | 1,500 ± 500 | 1,833 ± 289 | 2,000 ± 0 (2 of 3) "
        "| 2,000 (1 of 3) | 97.00 ± 1.00 |  |",
        "| 3x100 sigmoid, BN | 3 | 667 ± 289 | 1,000 ± 0 | 1,333 ± 289 | 1,500 ± 500 "
        "| 98.17 ± 0.76 | 98.00 ± 1.00 |",
    ]
    assert differences_text(summary).startswith(
        "- 3x100 sigmoid, BN minus 3x100 sigmoid: +1.17 points, 95 % confidence interval "
    )
    assert drift_text(summary).splitlines() == [
        "- 3x100 sigmoid: 4.00 ± 1.73; from step 1,000 on.",
        "- 3x100 sigmoid, BN: 3.00 ± 0.00; by running statistics 6.00 ± 0.00; from step 1,000 on.",
    ]
    assert sweep_table(summary).splitlines() == [
        "| learning rate | 3x100 sigmoid (2,000 steps) | 3x100 sigmoid, BN (2,000 steps) |",
        "| ---: | ---: | ---: |",
        "| 0.1 | **95.50 ± 0.71** | **97.50 ± 0.71** |",
        "| 1 | 90.50 ± 0.71 | 92.50 ± 0.71 |",
    ]


def test_an_arm_that_lacks_a_rate_leaves_its_cell_empty(made, tmp_path):
    out = shutil.copytree(made, tmp_path / "out")
    for seed in (0, 1):
        shutil.rmtree(out / "sweep" / f"mlp-lr0.1-s{seed}")
    lines = sweep_table(summarize(out)).splitlines()
    assert lines[2:] == ["| 0.1 |  | **97.50 ± 0.71** |", "| 1 | **90.50 ± 0.71** | 92.50 ± 0.71 |"]


# --- What training gives ---------------------------------------------------------------------


def logs(config, arm, seeds, dataset):
    """Each run's log and final outcome."""
    entries = [[] for _ in seeds]
    task = main_task(config, arm, seeds)
    finals = train(task, dataset, lambda position, entry: entries[position].append(entry))
    return entries, finals


def test_a_seed_gives_the_same_numbers_alone_and_among_others():
    """One run a device here; red if members share the order, the weights or a generator."""
    dataset = load_dataset("mnist5k")
    config = Config(**TINY | {"steps": 20, "checkpoint_every": 0})
    (alone,), (final,) = logs(config, "mlp_bn", [1], dataset)
    among, finals = logs(config, "mlp_bn", [0, 1, 2], dataset)
    assert json.dumps(among[1]) == json.dumps(alone)
    assert finals[1] == final
    assert len({outcome["state_sha256"] for outcome in finals}) == 3


@pytest.mark.slow
def test_normalization_learns_faster():
    """After 1,000 steps on the packaged digits; seen over four seeds: 48 to 57 %, 88 to 90 %."""
    dataset = load_dataset("mnist5k")
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
        del record["final"]
        path.write_text(json.dumps(record | {"finished": False}))
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


# --- Interruption ----------------------------------------------------------------------------

LONG = TINY | {"steps": 1_000, "eval_every": 50, "sparse_eval_every": 50}
LONG |= {"checkpoint_every": 100, "units_every": 100, "seeds": 2, "arms": "mlp_bn"}
NAMES = ("mlp_bn-s0", "mlp_bn-s1")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    ended = end(start(*flags(**LONG), "--out", out))
    assert ended.code == 0, ended.err
    return out


@contextlib.contextmanager
def running(out: Path, *, until):
    """A training process that has come as far as `until` says; ended with the block."""
    with start(*flags(**LONG), "--out", out) as process:
        try:
            deadline = time.monotonic() + 240
            while not until():
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield process
        finally:
            process.kill()


def first_bar(err: str) -> str:
    """Steps done when a progress bar was first drawn."""
    return re.search(r"\| *([0-9.]+k?)/", err)[1]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_resumes_bitwise(uninterrupted, tmp_path, number):
    out = tmp_path / "with blank"
    metrics = out / NAMES[0] / "metrics.jsonl"
    with running(
        out, until=lambda: metrics.exists() and '"step":50' in metrics.read_text()
    ) as process:
        process.send_signal(number)
        ended = end(process)
    assert ended.code == 128 + number, ended.err
    assert "Traceback" not in ended.err
    step = int(re.search(r"Stopped at step ([\d,]+); saved\.", ended.out)[1].replace(",", ""))
    assert 50 <= step < 1_000
    advice = ended.out.strip().splitlines()[-1].strip()
    assert advice.startswith("python -m experiments.mnist_lenet ")
    assert advice.endswith(f"--out '{out}' --resume")
    assert not read_record(out / NAMES[0])["finished"]

    resumed = end(start(*flags(**LONG), "--out", out, "--resume"))
    assert resumed.code == 0, resumed.err
    assert first_bar(resumed.err) not in ("0", "0.00")
    assert_same_runs(out, uninterrupted, NAMES)


@pytest.mark.slow
def test_a_killed_run_goes_on_bitwise(uninterrupted, tmp_path):
    """From its last checkpoint; a torn line at the end of the log is made whole."""

    def saved():
        return any(path.name.isdigit() for path in tmp_path.glob("checkpoints/*/*"))

    with running(tmp_path, until=saved) as process:
        process.kill()
        process.wait()
    metrics = tmp_path / NAMES[1] / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step":29')
    again = end(start(*flags(**LONG), "--out", tmp_path))
    assert again.code == 0, again.err
    assert first_bar(again.err) not in ("0", "0.00")
    assert_same_runs(tmp_path, uninterrupted, NAMES)


def test_ctrl_c_outside_training_says_how_to_go_on(cli, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "load_dataset", interrupt)
    ended = cli("--seeds", 1)
    assert ended.code == 130
    assert ended.out.splitlines()[-1].strip() == "python -m experiments.mnist_lenet --seeds 1"
