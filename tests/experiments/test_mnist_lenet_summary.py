"""From the runs of the MNIST experiment to its numbers and tables."""

import shutil

import numpy as np
import pytest
from made_results import MEDIANS, STEPS, write_run
from scipy import stats

from bnjax.evidence.records import RecordError
from experiments.mnist_lenet.summary import summarize
from experiments.mnist_lenet.table import (
    arms_table,
    differences_text,
    drift_text,
    sweep_table,
)


def test_the_summary_by_hand(pair):
    """Made runs of 200 digits: 180 are 90 %, 190 are 95 %, 194 are 97 %, 195 are 97.5 %."""
    plain, normalized = (summarize(pair)["arms"][arm] for arm in ("mlp", "mlp_bn"))
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


def test_the_difference_is_paired_by_seed(pair):
    """Red for an interval of unpaired runs, or runs paired in another order."""
    (difference,) = summarize(pair)["differences"]
    change = np.array([195 - 192, 198 - 194, 196 - 196]) / 200
    interval = stats.ttest_1samp(change, 0).confidence_interval(0.95)
    assert difference["arms"] == ["mlp_bn", "mlp"]
    assert difference["seeds"] == 3
    assert difference["mean"] == round(change.mean(), 6)
    np.testing.assert_allclose(difference["confidence_95"], interval, atol=1e-6)


def test_a_difference_of_one_seed_is_not_called_paired(pair):
    summary = summarize(pair)
    (difference,) = summary["differences"]
    text = differences_text({"differences": [difference | {"seeds": 1}]})
    assert text.endswith("(one seed).")


def test_arms_without_a_seed_in_common_have_no_difference(tmp_path):
    """Seen red: None was multiplied by 100."""
    write_run(tmp_path, "mlp", 1, [20, 100, 180, 190, 192])
    write_run(tmp_path, "mlp_bn", 0, [20, 180, 190, 194, 195])
    text = differences_text(summarize(tmp_path))
    assert text == "- 3x100 sigmoid, BN minus 3x100 sigmoid: no seed in common."


def test_runs_that_go_on_do_not_count(pair, tmp_path):
    out = shutil.copytree(pair, tmp_path / "out")
    write_run(out, "mlp", 3, [0] * 4, finished=False)
    assert summarize(out) == summarize(pair)


def test_the_tables(pair):
    summary = summarize(pair)
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


def test_runs_of_another_length_are_another_column(pair, tmp_path):
    out = shutil.copytree(pair, tmp_path / "out")
    for seed in (0, 1):
        shutil.rmtree(out / "sweep" / f"mlp-lr1-s{seed}")
        shorter = {"medians": MEDIANS[:4], "steps": STEPS[:4], "sweep_rate": 1.0}
        write_run(out, "mlp", seed, [20, 30, 40, 50], **shorter)
    heads, _, *rows = sweep_table(summarize(out)).splitlines()
    assert heads.count("3x100 sigmoid (") == 2
    assert rows[1].startswith("| 1 | **25.00 ± 0.00** |  |")


def test_an_arm_that_lacks_a_rate_leaves_its_cell_empty(pair, tmp_path):
    out = shutil.copytree(pair, tmp_path / "out")
    for seed in (0, 1):
        shutil.rmtree(out / "sweep" / f"mlp-lr0.1-s{seed}")
    lines = sweep_table(summarize(out)).splitlines()
    assert lines[2:] == ["| 0.1 |  | **97.50 ± 0.71** |", "| 1 | **90.50 ± 0.71** | 92.50 ± 0.71 |"]


def test_units_of_two_networks_are_refused(pair, tmp_path):
    """Seen red without the check: a log that lost some of a line's units has other paths."""
    out = shutil.copytree(pair, tmp_path / "out")
    write_run(out, "mlp", 3, [20] * 5, medians=[*MEDIANS[:4], MEDIANS[4][:3]])
    with pytest.raises(RecordError, match="units are not those of one network: p50 at steps"):
        summarize(out)
