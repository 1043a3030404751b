"""A recorded run can be repeated, and what cannot be repeated is told apart."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from bnjax.data import DataError, in_memory, open_data
from bnjax.evidence.records import RecordError
from experiments.mnist_lenet import runs as mnist_runs
from experiments.mnist_lenet.config import PRESETS
from experiments.mnist_lenet.runs import complete, main_task
from experiments.verify import main, verify

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
    complete(main_task(CONFIG, "mlp_bn", range(3)), in_memory(open_data("mnist5k")), out)
    return out


def _unsealed(run, copy, **changes):
    """A copy of a run as schema 1 had it, without digests, that can be changed."""
    folder = shutil.copytree(run, copy / run.name)
    record = json.loads((folder / "record.json").read_text())
    del record["sha256"], record["log_sha256"]
    (folder / "record.json").write_text(json.dumps(record | {"schema": 1} | changes))
    return folder


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


def test_a_changed_number_is_named(runs, tmp_path):
    """Red if entries were compared by step alone, or the outcome were not compared."""
    final = json.loads((runs / "mlp_bn-s2" / "record.json").read_text())["final"]
    final["state_sha256"] = "0" * 64
    run = _unsealed(runs / "mlp_bn-s2", tmp_path, final=final)
    _miscount(run, 1)
    verdict = verify(run)
    assert not verdict.agrees
    assert any(line.startswith("step 10: test.correct: stored") for line in verdict.lines)
    assert any(line.startswith("final: state_sha256: stored") for line in verdict.lines)


def _elsewhere(run, copy, *, miscounted, **changes):
    """A copy of a run that was made in another environment, with so many more counted correct."""
    folder = _unsealed(run, copy, **changes)
    _miscount(folder, miscounted)
    return folder


@pytest.mark.parametrize(
    ("miscounted", "agrees", "bitwise"), [(0, True, True), (5, True, False), (15, False, False)]
)
def test_in_another_environment_a_tolerance_will_do(runs, tmp_path, miscounted, agrees, bitwise):
    """Of 1,000 test examples a hundredth is 10."""
    there = json.loads((runs / "mlp_bn-s0" / "record.json").read_text())["environment"]
    there |= {"backend": "tpu", "device_count": 8}
    run = _elsewhere(runs / "mlp_bn-s0", tmp_path, miscounted=miscounted, environment=there)
    verdict = verify(run, steps=20)
    assert (verdict.agrees, verdict.bitwise) == (agrees, bitwise)
    assert bitwise or "backend: stored 'tpu', given 'cpu'" in verdict.lines


def test_a_run_resumed_elsewhere_is_compared_within_a_tolerance(runs, tmp_path):
    there = json.loads((runs / "mlp_bn-s1" / "record.json").read_text())["environment"]
    there |= {"processor": "another"}
    run = _elsewhere(runs / "mlp_bn-s1", tmp_path, miscounted=1, resumed_under=[there])
    verdict = verify(run, steps=10)
    assert (verdict.agrees, verdict.bitwise) == (True, False)
    assert any(line.startswith("processor: stored 'another'") for line in verdict.lines)


def test_other_data_and_unfinished_runs_are_refused(runs, tmp_path):
    run = runs / "mlp_bn-s1"
    record = json.loads((run / "record.json").read_text())
    for number, (change, message) in enumerate(
        (
            ({"finished": False, "final": None}, "not finished"),
            ({"data": {**record["data"], "sha256": "0" * 64}}, "SHA-256"),
        )
    ):
        with pytest.raises(RecordError, match=message):
            verify(_unsealed(run, tmp_path / str(number), **change))
    with pytest.raises(DataError, match="moved: expected train"):
        verify(run, data="folder:moved")
    with pytest.raises(RecordError, match="no run"):
        verify(tmp_path / "absent")
    with pytest.raises(ValueError, match="steps must be >= 1, got 0"):
        verify(run, steps=0)


def _set(*path, to):
    """A change of a record, at a path of keys; `to` None removes the key."""

    def change(record):
        *parents, last = path
        for key in parents:
            record = record[key]
        if to is None:
            del record[last]
        else:
            record[last] = to

    return change


MALFORMED = {
    "steps": _set("identity", "schedule", "steps", to=10**15),
    "dispatch": _set("identity", "schedule", "steps_per_dispatch", to=0),
    "schedule": _set("identity", "schedule", to=[1, 2]),
    "schedule's key": _set("identity", "schedule", "length", to=20),
    "no schedule": _set("identity", "schedule", to=None),
    "config": _set("identity", "config", to=3),
    "config's key": _set("identity", "config", "dekay", to=0.9),
    "batch": _set("identity", "config", "batch_size", to="60"),
    "population": _set("identity", "config", "population_batches", to=10**9),
    "no seed": _set("identity", "seed", to=None),
    "together": _set("final", "trained_together", to=10**9),
    "together's kind": _set("final", "trained_together", to="2"),
    "no together": _set("final", "trained_together", to=None),
    "experiment": _set("experiment", to="os"),
    "no experiment": _set("experiment", to=None),
    "no data": _set("data", to=None),
    "data's kind": _set("data", to="mnist5k"),
    "arm": _set("arm", to="mlp"),
    "resumed": _set("resumed_under", to=[5]),
    "environment": _set("environment", to=5),
    "identity": _set("identity", to=[]),
    "final": _set("final", to=5),
    "final's test": _set("final", "test", to=5),
    "finished": _set("finished", to="yes"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_record_is_refused_before_training(runs, tmp_path, monkeypatch, case):
    monkeypatch.setattr(mnist_runs, "train", None)
    record = json.loads((runs / "mlp_bn-s0" / "record.json").read_text())
    MALFORMED[case](record)
    del record["sha256"], record["log_sha256"]
    run = shutil.copytree(runs / "mlp_bn-s0", tmp_path / "mlp_bn-s0")
    (run / "record.json").write_text(json.dumps(record | {"schema": 1}))
    with pytest.raises(
        (RecordError, ValueError), match=r"record\.json|schedule|population_batches"
    ):
        verify(run)


@pytest.mark.parametrize("count", [1_000_000, 0, "8", None, True])
def test_devices_that_cannot_be_are_not_asked_for(runs, tmp_path, monkeypatch, capsys, count):
    there = json.loads((runs / "mlp_bn-s0" / "record.json").read_text())["environment"]
    run = _unsealed(runs / "mlp_bn-s0", tmp_path, environment=there | {"device_count": count})
    monkeypatch.setattr(sys, "argv", ["verify", str(run)])
    with pytest.raises(SystemExit, match=f"asks for {count!r} CPU devices; 1 to 1,024"):
        main()


@pytest.mark.parametrize("name", ["metrics.jsonl", "record.json"])
def test_a_missing_file_is_found_before_training(runs, tmp_path, monkeypatch, name):
    monkeypatch.setattr(mnist_runs, "train", None)
    run = shutil.copytree(runs / "mlp_bn-s0", tmp_path / "mlp_bn-s0")
    (run / name).unlink()
    with pytest.raises(RecordError, match=name):
        verify(run)


def test_how_long_it_trains_is_said_before(runs, capsys):
    verify(runs / "mlp_bn-s0", steps=10)
    assert "training mlp_bn, seed 0, again: 10 of its 20 steps" in capsys.readouterr().err
