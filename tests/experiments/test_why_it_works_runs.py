"""Runs of `why_it_works`: what is reported of them, how they are repeated and judged."""

import numpy as np
import pytest
from events import scalars

from bnjax.evidence.records import Run, read_record
from experiments import verify as verify_module
from experiments.harness.compute import Compute
from experiments.harness.repetition import rerun
from experiments.harness.runs import complete_all
from experiments.verify import verify
from experiments.why_it_works.answers import Answers, verdict_of_effects
from experiments.why_it_works.experiment import EXPERIMENT, QUESTIONS, Config


@pytest.fixture
def measured(tmp_path):
    config = Config(arms=("layer_gradient",), seeds=2)
    complete_all(EXPERIMENT, config, tmp_path, compute=Compute(tensorboard=True))
    return tmp_path


def test_a_measurement_is_a_run_that_is_reported_and_repeated(measured):
    report = Answers(QUESTIONS)
    summary = report.summarize(measured)
    found = summary["questions"]["layer_gradient"]
    assert (found["seeds"], found["verdict"]) == (2, "holds exactly")
    assert "holds exactly" in report.tables(measured, summary)[0]
    assert [path.name for path in report.draw(measured)] == ["answers.png"]
    assert verify(measured / "layer_gradient-s0").bitwise
    numbers = read_record(measured / "layer_gradient-s1")["final"]["numbers"]
    shown = scalars(measured / "tensorboard" / "layer_gradient-s1")
    assert shown == {name.replace(" ", "_"): {1: pytest.approx(numbers[name])} for name in numbers}


def changed_record(folder, to, change):
    """A copy of a run whose record says something else, sealed anew."""
    record = read_record(folder)
    header = {name: record[name] for name in record if name not in ("final", "finished", "sha256")}
    change(header, record["final"])
    run = Run(to / folder.name, header)
    (to / folder.name / "metrics.jsonl").write_text((folder / "metrics.jsonl").read_text())
    run.finish(record["final"])
    return to / folder.name


def test_elsewhere_a_theorem_must_hold_again(measured, tmp_path):
    def change(header, final):
        header["environment"]["versions"]["jax"] = "0.0.1"
        final["curves"]["measured"][0] += 1.0

    verdict = verify(changed_record(measured / "layer_gradient-s0", tmp_path / "other", change))
    assert (verdict.agrees, verdict.bitwise) == (True, False)
    assert "holds within its bounds" in verdict.lines[0]


def test_elsewhere_two_seeds_are_too_few_to_judge_an_effect(measured, tmp_path, monkeypatch):
    """Of a question that no theorem answers. Red by an interval of one degree of freedom."""

    def change(header, final):
        header["environment"]["versions"]["jax"] = "0.0.1"
        final["effect"] = 1.0

    def observed(*arguments, **options):
        entries, final = rerun(*arguments, **options)
        return entries, final | {"checks": [], "effect": 2.0}

    monkeypatch.setattr(verify_module, "rerun", observed)
    for seed in (0, 1):
        run = changed_record(measured / f"layer_gradient-s{seed}", tmp_path / "other", change)
    verdict = verify(run)
    assert (verdict.agrees, verdict.bitwise) == (None, False)
    assert "NOT JUDGED; measure other seeds too, 3 in all" in verdict.lines[0]


def test_elsewhere_a_deviation_that_is_no_number_breaks_a_bound(measured, tmp_path, monkeypatch):
    """Seen red: no bound is less than NaN."""

    def change(header, final):
        header["environment"]["versions"]["jax"] = "0.0.1"

    def nowhere(*arguments, **options):
        entries, final = rerun(*arguments, **options)
        checks = [check | {"deviation": np.nan} for check in final["checks"]]
        return entries, final | {"checks": checks}

    monkeypatch.setattr(verify_module, "rerun", nowhere)
    verdict = verify(changed_record(measured / "layer_gradient-s0", tmp_path / "other", change))
    assert verdict.agrees is False
    assert "breaks the bounds of squared gradient of each feature" in verdict.lines[0]


def test_a_deviation_that_is_no_number_is_neither_held_nor_hidden(measured):
    """In one of two seeds. Seen red: Python's max knows no NaN."""

    def change(header, final):
        final["checks"][0]["deviation"] = np.nan

    changed_record(measured / "layer_gradient-s1", measured, change)
    report = Answers(QUESTIONS)
    summary = report.summarize(measured)
    assert summary["questions"]["layer_gradient"]["verdict"] == "not finite"
    table, deviations, _ = report.tables(measured, summary)
    assert "off by nan" in table
    assert "| nan |" in deviations


def test_seeds_that_are_alike_make_no_interval(measured):
    """Seen red: "(+0.5 to +0.5)", as if the next seed could not differ."""

    def change(header, final):
        final["checks"], final["effect"] = [], 0.5

    for seed in (0, 1):
        changed_record(measured / f"layer_gradient-s{seed}", measured, change)
    report = Answers(QUESTIONS)
    found, *_ = report.tables(measured, report.summarize(measured))
    assert "| +0.5, in each seed | holds in small |" in found


def test_an_effect_that_reached_infinity_has_no_interval(measured):
    def change(header, final):
        final["checks"], final["effect"] = [], np.inf if header["seed"] else 1.0

    for seed in (0, 1):
        changed_record(measured / f"layer_gradient-s{seed}", measured, change)
    found = Answers(QUESTIONS).summarize(measured)["questions"]["layer_gradient"]
    assert (found["effect"], found["verdict"]) == (np.inf, "not finite")
    assert "confidence_95" not in found


@pytest.mark.parametrize(
    ("effects", "said"),
    [
        ([1.0, 1.1, 0.9], "holds in small"),
        ([-1.0, -1.1, -0.9], "contradicted"),
        ([1.0, -1.0, 0.1], "not seen"),
        ([1.0], "one seed: no verdict"),
        ([np.nan], "not finite"),
        ([1.0, 1.1, np.inf], "not finite"),
    ],
)
def test_a_verdict_follows_from_the_interval(effects, said):
    assert verdict_of_effects(effects) == said


def test_names_hide_no_curve():
    """Of the committed figure. Seen red: legends lay within the axes."""
    panels = Answers(QUESTIONS).panels(EXPERIMENT.results)
    panels.draw_without_rendering()
    places = [axes.get_window_extent() for axes in panels.axes]
    legends = [legend.get_window_extent() for axes in panels.axes if (legend := axes.get_legend())]
    assert len(legends) > 20
    assert not [legend for legend in legends if legend.count_overlaps(places)]
