"""A recorded run can be repeated, and what cannot be repeated is told apart."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from bnjax.data import load_dataset
from bnjax.evidence.records import RecordError
from experiments.mnist_lenet.config import PRESETS
from experiments.mnist_lenet.runs import complete, main_task
from experiments.verify import verify

CONFIG = replace(
    PRESETS["quick"],
    arms=("mlp_bn",),
    seeds=3,
    steps=20,
    steps_per_dispatch=10,
    eval_every=10,
    sparse_eval_every=10,
    checkpoint_every=0,
    population_batches=2,
    units_every=10,
    probe_examples=50,
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    complete(main_task(CONFIG, "mlp_bn", range(3)), load_dataset("mnist5k"), out)
    return out


def _edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def _miscount(run, more):
    """At the first evaluation after the start, so many more are counted correct."""
    path = run / "metrics.jsonl"
    first, second, *rest = path.read_text().splitlines()
    entry = json.loads(second)
    entry["test"]["correct"] += more
    path.write_text("\n".join([first, json.dumps(entry), *rest]) + "\n")


def test_a_run_repeats_bitwise(runs):
    verdict = verify(runs / "mlp_bn-s1")
    assert (verdict.agrees, verdict.bitwise) == (True, True)
    assert "3 evaluations to step 20, final metrics and parameters: bitwise" in verdict.lines[0]


def test_the_beginning_of_a_run_repeats_bitwise(runs):
    verdict = verify(runs / "mlp_bn-s0", steps=10)
    assert verdict.agrees
    assert "2 evaluations to step 10: bitwise equal" in verdict.lines[0]


def test_the_command_takes_as_many_devices_as_the_run_had(runs):
    """Eight here; red where it takes one per core, which is another environment."""
    done = subprocess.run(
        [sys.executable, "-m", "experiments.verify", runs / "mlp_bn-s0", "--steps", "10"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "2 evaluations to step 10: bitwise equal" in done.stdout


def test_a_changed_number_is_named(runs):
    """Red if entries were compared by step alone, or the outcome were not compared."""
    run = runs / "mlp_bn-s2"
    _miscount(run, 1)
    digest = json.loads((run / "record.json").read_text())["final"]["state_sha256"]
    _edit(run / "record.json", digest, "0" * 64)
    verdict = verify(run)
    assert not verdict.agrees
    assert any(line.startswith("step 10: test.correct: stored") for line in verdict.lines)
    assert any(line.startswith("final: state_sha256: stored") for line in verdict.lines)


def _elsewhere(run, copy, *, miscounted, **changes):
    """A copy of a run that was made in another environment, with so many more counted correct."""
    shutil.copytree(run, copy)
    _miscount(copy, miscounted)
    record = json.loads((copy / "record.json").read_text())
    (copy / "record.json").write_text(json.dumps(record | changes))
    return copy


@pytest.mark.parametrize(
    ("miscounted", "agrees", "bitwise"), [(0, True, True), (5, True, False), (15, False, False)]
)
def test_in_another_environment_a_tolerance_will_do(runs, tmp_path, miscounted, agrees, bitwise):
    """Of 1,000 test examples a hundredth is 10."""
    there = json.loads((runs / "mlp_bn-s0" / "record.json").read_text())["environment"]
    there |= {"backend": "tpu", "device_count": 8}
    run = _elsewhere(runs / "mlp_bn-s0", tmp_path / "run", miscounted=miscounted, environment=there)
    verdict = verify(run, steps=20)
    assert (verdict.agrees, verdict.bitwise) == (agrees, bitwise)
    assert bitwise or "backend: stored 'tpu', given 'cpu'" in verdict.lines


def test_a_run_resumed_elsewhere_is_compared_within_a_tolerance(runs, tmp_path):
    there = json.loads((runs / "mlp_bn-s1" / "record.json").read_text())["environment"]
    there |= {"processor": "another"}
    run = _elsewhere(runs / "mlp_bn-s1", tmp_path / "run", miscounted=1, resumed_under=[there])
    verdict = verify(run, steps=10)
    assert (verdict.agrees, verdict.bitwise) == (True, False)
    assert any(line.startswith("processor: stored 'another'") for line in verdict.lines)


def test_other_data_and_unfinished_runs_are_refused(runs, tmp_path):
    run = runs / "mlp_bn-s1"
    record = json.loads((run / "record.json").read_text())
    for change, message in (
        ({"finished": False}, "not finished"),
        ({"data": {**record["data"], "sha256": "0" * 64}}, "SHA-256"),
    ):
        (tmp_path / "record.json").write_text(json.dumps({**record, **change}))
        with pytest.raises(RecordError, match=message):
            verify(tmp_path)
    with pytest.raises(ValueError, match="got 'folder:moved'"):
        verify(run, data="folder:moved")
    with pytest.raises(RecordError, match="no run"):
        verify(tmp_path / "absent")
    with pytest.raises(ValueError, match="steps must be >= 1, got 0"):
        verify(run, steps=0)
