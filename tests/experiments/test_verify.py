"""A recorded run can be repeated, and what cannot be repeated is told apart."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from bnjax.data import DataError, in_memory, open_data
from bnjax.evidence.records import RecordError
from experiments import verify as verify_module
from experiments.harness.differences import prediction_interval
from experiments.harness.runs import complete
from experiments.mnist_lenet import experiment
from experiments.mnist_lenet.config import PRESETS
from experiments.mnist_lenet.experiment import EXPERIMENT, OneCPUDevicePerCore, comparison
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
    data, compute = in_memory(open_data("mnist5k")), OneCPUDevicePerCore()
    complete(EXPERIMENT, comparison(CONFIG, "mlp_bn"), data, compute, out)
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


@pytest.mark.parametrize("steps", [0, 9])
def test_the_untrained_network_alone_is_no_repetition(runs, monkeypatch, steps):
    """Red where step 0 is all that is compared, and called bitwise equal."""
    monkeypatch.setattr(experiment, "EXPERIMENT", replace(EXPERIMENT, train=None))
    with pytest.raises(ValueError, match=f"--steps must be >= 10, .*got {steps}"):
        verify(runs / "mlp_bn-s0", steps=steps)


@pytest.mark.slow
def test_the_command_takes_as_many_devices_as_the_run_had(runs):
    """Eight here; red where it takes one per core, which is another environment."""
    done = subprocess.run(
        [sys.executable, "-m", "experiments.verify", runs / "mlp_bn-s0", "--steps", "10"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "2 evaluations to step 10: bitwise equal" in done.stdout


@pytest.mark.slow
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


def _in_another_place(runs, copy, miscounted):
    """All runs, the first of which was made elsewhere and has so many more counted correct."""
    for run in runs.glob("mlp_bn-s*"):
        shutil.copytree(run, copy / run.name)
    first = copy / "mlp_bn-s0"
    record = json.loads((first / "record.json").read_text())
    del record["sha256"], record["log_sha256"]
    record["environment"] |= {"backend": "tpu", "device_count": 8}
    (first / "record.json").write_text(json.dumps(record | {"schema": 1}))
    _miscount(first, miscounted)
    return first


def test_elsewhere_a_run_is_one_more_seed(runs, tmp_path):
    """What was counted differently stands in the record, so that it moves the interval too."""
    assert verify(_in_another_place(runs, tmp_path / "same", 0)).bitwise
    near = verify(_in_another_place(runs, tmp_path / "near", 5), steps=20)
    assert (near.agrees, near.bitwise) == (True, False)
    assert "agrees with what 3 seeds predict of one more run" in near.lines[0]
    assert "largest difference of a test accuracy 0.50 points" in near.lines[0]
    assert "backend: stored 'tpu', given 'cpu'" in near.lines


def test_elsewhere_another_accuracy_than_the_seeds_predict_is_named(runs, tmp_path, monkeypatch):
    """Red if a fixed tolerance, or no spread at all, judges."""
    first = _in_another_place(runs, tmp_path, 1)
    rerun = verify_module.rerun

    def better(*arguments, **options):
        entries, final = rerun(*arguments, **options)
        entries[-1]["test"]["correct"] = 1000
        return entries, final

    monkeypatch.setattr(verify_module, "rerun", better)
    verdict = verify(first)
    assert (verdict.agrees, verdict.bitwise) == (False, False)
    assert (
        "DIFFERS from what 3 seeds predict of one more run: 100.00 % after step 20"
        in (verdict.lines[0])
    )


@pytest.mark.slow
def test_elsewhere_one_seed_alone_cannot_be_judged(runs, tmp_path, monkeypatch, capsys):
    there = json.loads((runs / "mlp_bn-s1" / "record.json").read_text())["environment"]
    there |= {"processor": "another"}
    run = _unsealed(runs / "mlp_bn-s1", tmp_path, resumed_under=[there])
    _miscount(run, 1)
    verdict = verify(run, steps=10)
    assert (verdict.agrees, verdict.bitwise) == (None, False)
    assert "NOT JUDGED" in verdict.lines[0]
    assert "train other seeds" in verdict.lines[0]
    assert any(line.startswith("processor: stored 'another'") for line in verdict.lines)


@pytest.mark.slow
def test_elsewhere_two_seeds_are_too_few_to_judge(runs, tmp_path):
    """Red by an interval of one degree of freedom, which nearly any accuracy is in."""
    run = _in_another_place(runs, tmp_path, 1)
    shutil.rmtree(tmp_path / "mlp_bn-s2")
    verdict = verify(run, steps=10)
    assert (verdict.agrees, verdict.bitwise) == (None, False)
    assert "NOT JUDGED" in verdict.lines[0]
    assert "3 in all" in verdict.lines[0]


@pytest.mark.slow
def test_elsewhere_a_link_to_a_seed_is_no_other(runs, tmp_path):
    run = _in_another_place(runs, tmp_path, 1)
    shutil.rmtree(tmp_path / "mlp_bn-s2")
    (tmp_path / "link").symlink_to(tmp_path / "mlp_bn-s1")
    assert verify(run, steps=10).agrees is None


@pytest.mark.slow
def test_elsewhere_seeds_that_diverged_do_not_count(runs, tmp_path):
    """Red if one accuracy is given a spread, which is not a number."""
    run = _in_another_place(runs, tmp_path, 1)
    for seed in (1, 2):
        other = tmp_path / f"mlp_bn-s{seed}"
        final = json.loads((other / "record.json").read_text())["final"]
        shutil.rmtree(other)
        fault = {"step": 15, "what": "gradient", "layer": None}
        other = _unsealed(runs / other.name, tmp_path, final=final | {"diverged": fault})
        lines = (other / "metrics.jsonl").read_text().splitlines(keepends=True)
        (other / "metrics.jsonl").write_text("".join(lines[:2]))
    verdict = verify(run)
    assert (verdict.agrees, verdict.bitwise) == (None, False)
    assert "NOT JUDGED" in verdict.lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("diverged", ["record", "repetition"])
def test_a_divergence_of_one_alone_is_a_difference(runs, tmp_path, monkeypatch, diverged):
    """Red if what both came to before is all that is compared."""
    run = _in_another_place(runs, tmp_path, 1)
    if diverged == "record":
        record = json.loads((run / "record.json").read_text())
        record["final"]["diverged"] = {"step": 15, "what": "gradient", "layer": None}
        (run / "record.json").write_text(json.dumps(record))
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        (run / "metrics.jsonl").write_text("".join(lines[:2]))
    else:
        rerun = verify_module.rerun

        def shorter(*arguments, **options):
            entries, final = rerun(*arguments, **options)
            return entries[:-1], final

        monkeypatch.setattr(verify_module, "rerun", shorter)
    verdict = verify(run)
    assert verdict.agrees is False
    assert "one of both reached infinity, the other did not" in verdict.lines[0]
    if diverged == "record":  # its beginning was finite
        assert verify(run, steps=10).agrees


def test_damaged_runs_beside_it_are_found_before_training(runs, tmp_path, monkeypatch):
    run = _in_another_place(runs, tmp_path, 1)
    shutil.copytree(runs / "mlp_bn-s1", tmp_path / "mlp_bn-s1 copy")
    monkeypatch.setattr(experiment, "EXPERIMENT", replace(EXPERIMENT, train=None))
    with pytest.raises(RecordError, match="give it that name, or move it elsewhere"):
        verify(run)


def test_the_prediction_interval_is_students():
    """Two values 0.5 and 0.7: mean 0.6, sd 0.1414, t of one degree of freedom at 97.5 % 12.706."""
    low, high = prediction_interval([0.5, 0.7], 10_000, confidence=0.95)
    half = 12.7062047 * np.sqrt(0.02) * np.sqrt(1.5)
    assert (low, high) == (pytest.approx(0.6 - half), pytest.approx(0.6 + half))
    low, high = prediction_interval([0.5, 0.5, 0.5], 100, confidence=0.9)
    assert high - 0.5 == pytest.approx(2.91998558 * 0.05 * np.sqrt(4 / 3))  # the standard error
    low, high = prediction_interval([1.0, 1.0], 100, confidence=0.5)
    assert high > 1 > low


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
    with pytest.raises(RecordError, match="absent does not exist"):
        verify(tmp_path / "absent")


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
    monkeypatch.setattr(experiment, "EXPERIMENT", replace(EXPERIMENT, train=None))
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
    monkeypatch.setattr(experiment, "EXPERIMENT", replace(EXPERIMENT, train=None))
    run = shutil.copytree(runs / "mlp_bn-s0", tmp_path / "mlp_bn-s0")
    (run / name).unlink()
    with pytest.raises(RecordError, match=name):
        verify(run)


def test_how_long_it_trains_is_said_before(runs, capsys):
    verify(runs / "mlp_bn-s0", steps=10)
    assert "training mlp_bn, seed 0, again: 10 of its 20 steps" in capsys.readouterr().err
