"""What pairs of runs say to a claim: differences by hand, and what gets no verdict."""

import numpy as np
import pytest
from made_results import write_image_run

from experiments.imagenet_inception import claims
from experiments.imagenet_inception.claims import (
    PaperClaim,
    best_accuracy,
    fewer_steps,
    paper_claims_table,
)
from experiments.imagenet_inception.page import REPORT

SETTINGS = REPORT.arms[0].settings()
BETTER = [[10, 20, 60, 70], [10, 62, 61, 72], [10, 66, 60, 74]]
WORSE = [[10, 20, 30, 60], [10, 30, 62, 20], [10, 40, 50, 64]]
"""Of 100 images, at steps 0 to 30, in each seed."""


def write_runs(out, arm, seeds, made=None, **changes):
    options = {"settings": SETTINGS | changes, "config": {"width": 1.0}, "steps": 30}
    options["environment"] = made
    for seed, correct in enumerate(seeds):
        write_image_run(out, arm, seed, correct, **options)


def judged(monkeypatch, out, *pairs, measure=best_accuracy):
    """The table's cells behind the claim and its numbers, a list a line."""
    claim = PaperClaim("normalization helps", "+1", "normalized", measure, pairs)
    monkeypatch.setattr(claims, "CLAIMS", (claim,))
    head, _, *lines = paper_claims_table(out, REPORT).splitlines()
    assert head.startswith("| claim | in the paper | runs | differ in | seeds |")
    assert lines[0].startswith("| normalization helps | +1 |")
    return [line.split(" | ")[2:] for line in lines]


@pytest.fixture
def out(tmp_path):
    write_runs(tmp_path, "bn_baseline", BETTER, normalized=True)
    write_runs(tmp_path, "inception", WORSE, normalized=False)
    return tmp_path


def interval(values):
    """Mean and 95 % bounds of three values; 4.302653 is Student's t of two degrees of freedom."""
    half = 4.302653 * np.std(values, ddof=1) / np.sqrt(3)
    return np.mean(values), np.mean(values) - half, np.mean(values) + half


def test_the_difference_of_bests_and_its_verdict(monkeypatch, out):
    write_runs(out / "more", "bn_baseline", [[10, 20, 60, 71], *BETTER[1:]], normalized=True)
    mean, low, high = interval([11, 10, 10])
    pair = ("more/bn_baseline", "inception")
    ((runs, *cells),) = judged(monkeypatch, out, pair)
    assert runs == "`more/bn_baseline` against `inception`"
    text = f"{mean:+.2f} points ({low:+.2f} to {high:+.2f})"
    assert cells == ["`normalized`", "3", text, "shown |"]
    ((_, *_, turned),) = judged(monkeypatch, out, pair[::-1])
    assert turned == "contradicted |"
    write_runs(out / "like", "bn_baseline", [[10, 20, 60, 80], *WORSE[1:]], normalized=True)
    ((_, *_, verdict),) = judged(monkeypatch, out, ("like/bn_baseline", "inception"))
    assert verdict == "not shown |"


def test_the_ratio_of_steps_is_of_each_seed(monkeypatch, out):
    """Seeds need 20, 10 and 10 steps to the other's best, which has it after 30, 20 and 30."""
    mean, low, high = np.exp(interval(np.log([30 / 20, 20 / 10, 30 / 10])))
    pair = ("bn_baseline", "inception")
    ((_, *cells),) = judged(monkeypatch, out, pair, measure=fewer_steps)
    text = f"{mean:.1f} times fewer ({low:.1f} to {high:.1f})"
    assert cells == ["`normalized`", "3", text, "not shown |"]


def test_a_seed_that_never_gets_there_leaves_no_interval(monkeypatch, out):
    """Red if the ratios of those that do are taken for all."""
    write_runs(out / "late", "bn_baseline", [*BETTER[:2], [10, 20, 30, 63]], normalized=True)
    pair = ("late/bn_baseline", "inception")
    ((_, *cells),) = judged(monkeypatch, out, pair, measure=fewer_steps)
    assert cells == ["`normalized`", "3", "2 of 3 reach it", "not shown |"]


def test_differences_without_a_spread_have_no_interval(monkeypatch, out):
    """One seed, or three that the evaluations do not tell apart."""
    ((_, _, *cells),) = judged(monkeypatch, out, ("bn_baseline", "inception"))
    assert cells == ["3", "+10.00 points", "not shown |"]
    write_runs(out / "one", "bn_baseline", BETTER[:1], normalized=True)
    ((_, _, *cells),) = judged(monkeypatch, out, ("one/bn_baseline", "inception"))
    assert cells == ["1", "+10.00 points", "not shown |"]


def test_versions_and_machines_are_told_and_do_not_judge(monkeypatch, out):
    """Red where a pair of two machines looks like one of one."""
    made = {"versions": {"jax": "0"}, "device_kind": "H100"}
    write_runs(out / "there", "bn_baseline", BETTER, made, normalized=True)
    write_runs(out / "there", "inception", WORSE, made, normalized=False)
    pairs = [("there/bn_baseline", folder) for folder in ("inception", "there/inception")]
    elsewhere, alike = judged(monkeypatch, out, *pairs)
    assert (elsewhere[1], elsewhere[-1]) == ("`normalized`; versions, device_kind", "not shown |")
    assert alike[1] == "`normalized`"


def test_pairs_that_differ_in_more_and_pairs_that_are_not_there(monkeypatch, out):
    recipe = {"dropout": 0.0, "l2": 1.0, "decay_speed": 6.0}
    write_runs(out, "bn_x5", BETTER, normalized=True, **recipe)
    write_runs(out / "two", "inception", WORSE, normalized=False, dropout=0.0)
    whole, two, absent = judged(
        monkeypatch,
        out,
        ("bn_x5", "inception"),
        ("bn_baseline", "two/inception"),
        ("bn_x30", "nowhere/inception"),
    )
    assert (whole[1], whole[-1]) == ("the whole recipe, 4 settings", "none: more differs |")
    assert (two[1], two[-1]) == ("`dropout`, `normalized`", "none: more differs |")
    assert absent[1:] == ["", "", "", "no such pair yet |"]
    ((runs, *_, verdict),) = judged(monkeypatch, out)
    assert (runs, verdict) == ("", "no such pair yet |")
