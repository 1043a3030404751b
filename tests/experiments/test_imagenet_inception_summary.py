"""From the runs of the ImageNet comparison to its numbers, table and figure."""

import numpy as np
import pytest
from made_results import write_image_run

from experiments.harness import comparison
from experiments.harness.arm import by_name
from experiments.harness.comparison import match_steps, waiting_text
from experiments.harness.differences import Difference, points
from experiments.imagenet_inception.arms import ARMS
from experiments.imagenet_inception.page import REPORT, memory_text


def write_run(out, arm, seed, correct, *, batch=32, changes=(), **options):
    """Of a run that had to wait for so many hundredths of its time as its seed says."""
    write_image_run(
        out,
        arm,
        seed,
        correct,
        settings=by_name(ARMS, arm).settings() | dict(changes),
        config={"batch_size": batch},
        timing={"waiting_share": seed / 100},
        **options,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("made")
    write_run(out, "inception", 0, [10, 30, 50, 60, 58])  # best 60 at 30
    write_run(out, "inception", 1, [10, 30, 50, 60, 62])  # best 62 at 40
    write_run(out, "bn_x5", 0, [10, 60, 61, 61, 61], population=63)  # matched at 10
    write_run(out, "bn_x5", 1, [10, 61, 62, 64, 63], population=65)  # at 20
    write_run(out, "bn_x30", 0, [10, 50, 60, 70, 70], population=72)  # at 20
    write_run(out, "bn_x30", 1, [10, 50, 60, 61, 61], population=62)  # never
    fault = {"step": 13, "layer": "conv1/conv", "leaf": "kernel", "what": "gradient"}
    write_run(out, "bn_x5_sigmoid", 0, [10, 12], diverged=fault)
    return out


def test_runs_are_matched_with_the_reference_of_their_seed(made):
    """Red if all are held against the mean of the bests, 61, or another seed's."""
    runs = REPORT.load(made)
    assert match_steps(runs["bn_x5"], runs["inception"]) == {0: 10, 1: 20}
    assert match_steps(runs["bn_x30"], runs["inception"]) == {0: 20, 1: None}
    assert match_steps(runs["inception"], runs["inception"]) == {0: 30, 1: 40}


def test_the_summary_by_hand(made):
    arms = REPORT.summarize(made)["arms"]
    assert list(arms) == ["inception", "bn_x5", "bn_x30", "bn_x5_sigmoid"]
    x5, x30 = arms["bn_x5"], arms["bn_x30"]
    assert x5["steps_to_best_of_reference"] == {
        "compared": 2,
        "reached": 2,
        "mean": 15.0,
        "sd": 7.071068,
    }
    assert x5["times_fewer_steps"] == {"mean": 2.5, "sd": 0.707107}  # 30 / 10 and 40 / 20
    assert x30["steps_to_best_of_reference"] == {
        "compared": 2,
        "reached": 1,
        "mean": 20.0,
        "sd": None,
    }
    assert x30["times_fewer_steps"] == {"mean": 1.5, "sd": None}
    assert x5["best_accuracy"] == {"mean": 0.625, "sd": 0.021213}
    assert x5["final_accuracy_algorithm_2"] == {"mean": 0.64, "sd": 0.014142}
    assert "final_accuracy_algorithm_2" not in arms["inception"]
    assert arms["inception"]["times_fewer_steps"] == {"mean": 1.0, "sd": 0.0}
    assert arms["bn_x5_sigmoid"]["steps_to_best_of_reference"]["reached"] == 0


def test_runs_count_that_were_trained_to_their_end(tmp_path):
    """One that was stopped after its last step, too: it lacks Algorithm 2 alone."""
    write_run(tmp_path, "bn_x5", 0, [10, 20, 30, 50], finished=False)
    assert REPORT.summarize(tmp_path) == {"arms": {}}
    assert REPORT.draw(tmp_path) == []
    write_run(tmp_path, "bn_x30", 0, [10, 20, 30, 50, 40], population=60, finished=False)
    summary = REPORT.summarize(tmp_path)["arms"]["bn_x30"]
    assert summary["best_accuracy"]["mean"] == 0.5
    assert summary["final_accuracy"]["mean"] == 0.4
    assert "final_accuracy_algorithm_2" not in summary


def test_a_run_that_was_stopped_before_its_first_evaluation_is_no_error(tmp_path):
    write_run(tmp_path, "bn_x5", 0, [10], finished=False)
    (tmp_path / "bn_x5-s0" / "metrics.jsonl").unlink()
    assert REPORT.summarize(tmp_path) == {"arms": {}}


def test_seeds_count_that_have_a_reference(tmp_path):
    """Red if a seed that could not be compared counts as one that failed."""
    write_run(tmp_path, "inception", 0, [10, 20, 30, 40, 40])
    write_run(tmp_path, "bn_x5", 0, [10, 20, 40, 40, 40])
    write_run(tmp_path, "bn_x5", 1, [10, 20, 40, 40, 40])
    assert "| BN-x5 | 2 | 40 | 20 | 1.5 |" in REPORT.arms_table(REPORT.summarize(tmp_path))


def test_arms_without_a_seed_in_common_are_not_compared(tmp_path):
    """As after one of two runs of seed 0 was stopped. Seen red: None was multiplied by 100."""
    write_run(tmp_path, "inception", 1, [10, 30, 50, 60, 62])
    write_run(tmp_path, "bn_x5", 0, [10, 60, 61, 61, 61])
    table, differences, *_ = REPORT.tables(tmp_path, REPORT.summarize(tmp_path))
    assert differences == "Best accuracy:\n- BN-x5 minus Inception: no seed in common."
    assert "| BN-x5 | 1 | 40 |  |  | 61.00 |" in table
    assert points({0: 0.5}, {1: 0.6}) == Difference(0, "no seed in common", "unclear")


def test_a_changed_arm_is_not_the_papers(tmp_path):
    write_run(tmp_path, "inception", 0, [10, 20, 30, 40, 40], changes={"learning_rate_factor": 5.0})
    *_, row = REPORT.arms_table(REPORT.summarize(tmp_path)).splitlines()
    assert row.startswith("| Inception, learning_rate_factor 5.0 | 1 | 40 | 40.00 |")
    assert row.endswith("|  |  |  |")
    write_run(tmp_path, "ensemble_4", 0, [10, 20, 30, 40, 40])
    assert REPORT.summarize(tmp_path)["arms"]["ensemble_4"]["changed"] == {}


def test_the_table_and_its_lines(made):
    summary = REPORT.summarize(made)
    assert REPORT.arms_table(summary).splitlines()[2:4] == [
        "| Inception | 2 | 40 | 35 ± 7 | 1.0 ± 0.0 | 61.00 ± 1.41 | 60.00 ± 2.83 |  "
        "| 31.0e6 | 1.0 | 72.2 |",
        "| BN-x5 | 2 | 40 | 15 ± 7 | 2.5 ± 0.7 | 62.50 ± 2.12 | 62.00 ± 1.41 | 64.00 ± 1.41 "
        "| 2.1e6 | 14.8 | 73.0 |",
    ]
    assert "| 20 (1 of 2) | 1.5 |" in REPORT.arms_table(summary)
    assert REPORT.divergence_text(summary) == (
        "- BN-x5-Sigmoid, seed 0, reached infinity at step 13: gradient of kernel in conv1/conv."
    )
    assert waiting_text(summary) == "Training waited for images 1.0 % of its time at most."


def test_steps_of_other_batches_are_counted_in_the_paper_s(made, tmp_path):
    """256 examples are eight batches of 32: of 40 and of 15 ± 7 steps, 320 and 120 ± 57."""
    assert "batches of 32" not in REPORT.arms_table(REPORT.summarize(made))
    write_run(tmp_path, "inception", 0, [10, 30, 50, 60, 58])
    write_run(tmp_path, "inception", 1, [10, 30, 50, 60, 62])
    write_run(tmp_path, "bn_x5", 0, [10, 60, 61, 61, 61], batch=256)
    write_run(tmp_path, "bn_x5", 1, [10, 61, 62, 64, 63], batch=256)
    heads, _, plain, eightfold = REPORT.arms_table(REPORT.summarize(tmp_path)).splitlines()
    assert "| steps in batches of 32 | the same to Inception's best | paper: " in heads
    assert "| 40 | 35 ± 7 | 31.0e6 |" in plain
    assert "| 320 | 120 ± 57 | 2.1e6 |" in eightfold


def test_a_sweep_is_beside_the_comparison(made, tmp_path):
    """Its runs are told apart by their rates, and are no runs of the comparison."""
    assert "sweep" not in REPORT.summarize(made)
    fault = {"step": 13, "layer": None, "leaf": None, "what": "loss"}
    for rate, best in ((0.001, 40), (0.002, 60), (0.1, 20)):
        write_run(tmp_path, "inception", 0, [10, 20, best, 15, 15], rate=rate)
        write_run(tmp_path, "inception", 1, [10, 20, 15, 15, best + 2], rate=rate)
    write_run(tmp_path, "bn_x5", 0, [10, 70], rate=0.1, diverged=fault)
    summary = REPORT.summarize(tmp_path)
    assert summary["arms"] == {}
    assert REPORT.tables(tmp_path, summary)[0] == ""
    assert REPORT.sweep_text(summary).splitlines() == [
        "| learning rate | Inception (40 steps) | BN-x5 (40 steps) |",
        "| ---: | ---: | ---: |",
        "| 0.001 | 41.00 ± 1.41 |  |",
        "| 0.002 | **61.00 ± 1.41** |  |",
        "| 0.1 | 21.00 ± 1.41 | 70.00 (1 of 1 diverged) |",
        "",
        "- Inception (40 steps): 0.002 is best, inside the sweep.",
        "- BN-x5 (40 steps): runs diverged at every rate; try smaller ones.",
    ]
    write_run(tmp_path, "inception", 0, [10, 20, 30, 40, 40])
    assert REPORT.summarize(tmp_path)["arms"]["inception"]["runs"] == 1
    assert REPORT.tables(tmp_path, REPORT.summarize(tmp_path))[3] == REPORT.sweep_text(summary)


def test_what_a_run_held_is_said_from_its_second_evaluation_on():
    memory = {"host": [9e9, 1.2e9, 1.4e9, 1.3e9], "arrays": [0, 5e6, 5.2e6, 5e6]}
    record = {"arm": "bn_x5", "identity": {"schedule": {"steps": 10_000}}}
    assert memory_text(record | {"final": {"memory": memory}}) == (
        "BN-x5 over 10,000 steps: the process held 1,200 MB at the second evaluation, 1,300 MB at "
        "the last, 1,400 MB at most; its arrays 5.00 to 5.20 MB."
    )


def test_the_figure_marks_those_that_match_in_every_seed(made, tmp_path, monkeypatch):
    marked = []
    monkeypatch.setattr(
        comparison, "mark", lambda axes, markers, *, level: marked.extend([*markers, level])
    )
    (path,) = REPORT.draw(made, tmp_path)
    assert path.name == "figure2.png"
    *markers, level = marked
    assert level == pytest.approx(0.61)
    assert [(marker.step, marker.y) for marker in markers] == [
        (35.0, pytest.approx(0.61)),
        (15.0, pytest.approx(0.61)),
    ]
    assert np.isfinite(level)
