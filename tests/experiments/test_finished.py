"""Damaged results are refused by name; none gives another table in silence."""

import json
import random
import shutil

import numpy as np
import pytest
from made_damages import damage
from made_results import write_image_run, write_run

from bnjax.evidence.records import RecordError, read_record
from bnjax.models import save_safetensors
from experiments.harness.arm import by_name
from experiments.harness.found import experiments
from experiments.harness.results import read_result
from experiments.harness.weights import FILE
from experiments.imagenet_inception.arms import ARMS
from experiments.imagenet_inception.page import REPORT
from experiments.mnist_lenet.summary import summarize


@pytest.fixture
def out(pair, tmp_path):
    return shutil.copytree(pair, tmp_path / "out")


@pytest.mark.parametrize("seed", range(30))
def test_no_damage_is_silent(pair, out, seed):
    """A change that JSON does not see, of a blank to a tab, may pass; another table may not."""
    what = damage(out, random.Random(seed))
    try:
        summary = summarize(out)
    except RecordError:
        return
    assert summary == summarize(pair), what


def _unseal(run, **changes):
    """As schema 1 had it, without digests."""
    record = json.loads((run / "record.json").read_text())
    del record["sha256"], record["log_sha256"]
    (run / "record.json").write_text(json.dumps(record | {"schema": 1} | changes))


def _lines(run, change):
    path = run / "metrics.jsonl"
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: lines[:-1], "line 5 should be of step 2,000"),
        (lambda lines: [*lines[:2], *lines[3:]], "line 3 should be of step 1,000"),
        (lambda lines: [*lines[:2], *lines[1:]], "line 3 should be of step 1,000"),
        (lambda lines: [*lines, lines[-1].replace("2000", "2500")], "line 6 should be absent"),
        (lambda lines: [*lines[:-1], lines[-1].replace("194", "195")], "does not end as record"),
        (lambda lines: [lines[0].replace('"correct"', '"cor"'), *lines[1:]], "KeyError: 'correct'"),
        (lambda lines: [lines[0].replace("20,", "201,"), *lines[1:]], "no sums of an evaluation"),
        (lambda lines: ["5\n", *lines[1:]], "line 1 is damaged: '5'"),
    ],
)
def test_logs_without_a_digest_are_held_against_their_schedule(out, change, words):
    _unseal(out / "mlp-s1")
    read_result(out / "mlp-s1")
    _lines(out / "mlp-s1", change)
    with pytest.raises(RecordError, match=words):
        summarize(out)


def test_a_line_that_a_stop_tore_hides_no_finished_run(pair, out):
    """Going on mends it; red where the whole folder is refused, and the run called damaged."""
    write_run(out, "mlp", 3, [20, 30, 40], finished=False)
    _lines(out / "mlp-s3", lambda lines: [*lines[:-1], lines[-1][:-9]])
    assert summarize(out) == summarize(pair)
    _lines(out / "mlp-s3", lambda lines: [lines[0][:-9] + "\n", *lines[1:]])
    with pytest.raises(RecordError, match="line 1 is damaged"):
        summarize(out)


def test_a_digest_that_is_taken_away_is_missed(out):
    """Unless its record is said to be of schema 1, which had none."""
    path = out / "mlp-s0" / "record.json"
    for name in ("sha256", "log_sha256"):
        record = json.loads(path.read_text())
        del record[name]
        path.write_text(json.dumps(record))
        with pytest.raises(RecordError, match="differs from its own sha256"):
            summarize(out)


def test_a_folder_of_another_name_is_refused(out):
    shutil.copytree(out / "mlp-s1", out / "mlp-s1.bak")
    with pytest.raises(RecordError, match=r"mlp-s1\.bak holds the run mlp-s1 or"):
        summarize(out)


def test_files_beside_runs_are_let_alone(pair, out):
    (out / "mlp-s0.txt").write_text("notes")
    (out / "mlp-s9").mkdir()
    assert summarize(out) == summarize(pair)


def test_runs_that_diverged_are_named_and_count_with_what_they_came_to(pair, out):
    """Red where the mean is one of survivors. Their paths end early, and are not compared."""
    fault = {"step": 1001, "layer": "dense1", "leaf": "kernel", "what": "update"}
    write_run(out, "mlp", 3, [20, 20, 22], diverged=fault)
    before, after = (summarize(folder)["arms"]["mlp"] for folder in (pair, out))
    assert after["diverged"] == [{"seed": 3} | fault]
    assert (before["runs"], after["runs"]) == (3, 4)
    assert after["final_accuracy"]["mean"] == (192 + 194 + 196 + 22) / 4 / 200
    assert after["median_path_length"] == before["median_path_length"]


def test_committed_results_are_read_with_a_digest_and_without():
    digests = set()
    for experiment in experiments():
        results, read = experiment.results, experiment.page.report.summarize
        digests.add("sha256" in read_record(next(results.glob("*-s0"))))
        assert read(results) == json.loads((results / "summary.json").read_text())
    assert digests == {False, True}  # those of schema 1 have none


def test_weights_that_are_not_the_record_s_are_refused(tmp_path):
    settings = by_name(ARMS, "inception").settings()
    write_image_run(tmp_path, "inception", 0, [10, 30, 50, 60, 58], settings=settings)
    REPORT.summarize(tmp_path)
    save_safetensors({"params": {"a": np.zeros(2)}}, tmp_path / "inception-s0" / FILE)
    with pytest.raises(RecordError, match="is not what the run wrote"):
        REPORT.summarize(tmp_path)
