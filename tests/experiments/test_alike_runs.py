"""Runs that are averaged or compared differ in what they may alone, whatever code made them."""

import shutil
from dataclasses import replace

import pytest
from made_records import resealed
from made_results import write_image_run

from bnjax.data import open_data
from bnjax.evidence.records import RecordError
from experiments.harness import runs
from experiments.harness.arm import by_name
from experiments.harness.images.compute import ImageCompute
from experiments.harness.results import load_runs, load_sweep
from experiments.imagenet_inception import claims
from experiments.imagenet_inception.arms import ARMS
from experiments.imagenet_inception.claims import PaperClaim, best_accuracy, paper_claims_table
from experiments.imagenet_inception.experiment import EXPERIMENT as INCEPTION
from experiments.imagenet_inception.page import REPORT
from experiments.mnist_lenet.experiment import EXPERIMENT as DIGITS
from experiments.norms.experiment import EXPERIMENT as NORMS
from experiments.results_page.groups import pairs, read_groups
from experiments.why_it_works.experiment import EXPERIMENT as WHY

BATCH = NORMS.results / "batch-s0"


def write_run(out, arm, seed, *, width=0.125, **options):
    settings = by_name(ARMS, arm).settings()
    write_image_run(
        out,
        arm,
        seed,
        [10, 20, 30, 40, 50 + seed],
        settings=settings,
        config={"width": width, "learning_rate": options.get("rate") or 0.1},
        **options,
    )


def test_seeds_of_two_configurations_are_not_averaged(tmp_path):
    write_run(tmp_path, "bn_baseline", 0)
    write_run(tmp_path, "bn_baseline", 1, width=0.5)
    write_run(tmp_path, "bn_baseline", 2)
    words = (
        r"bn_baseline-s1 is not .*bn_baseline-s0 with another seed \(config\.width: stored 0\.125, "
        r"given 0\.5\): move the runs of one of both to another folder"
    )
    with pytest.raises(RecordError, match=words):
        REPORT.summarize(tmp_path)


def test_seeds_of_two_lengths_are_not_averaged(tmp_path):
    write_run(tmp_path, "bn_x5", 0)
    write_run(tmp_path, "bn_x5", 1, every=20, steps=80)
    with pytest.raises(RecordError, match=r"bn_x5-s1 is not .*bn_x5-s0 .*schedule\."):
        load_runs(ARMS, tmp_path)


@pytest.mark.parametrize("rate", [0.1, 0.2])
def test_a_sweep_is_of_one_configuration(tmp_path, rate):
    """At one rate as at several; those differ by the rate and by what it is in."""
    write_run(tmp_path, "bn_x5", 0, rate=0.1)
    write_run(tmp_path, "bn_x5", 0, rate=0.3)
    assert len(load_sweep(ARMS, tmp_path / "sweep")["bn_x5"]) == 2
    write_run(tmp_path, "bn_x5", 1, rate=rate, width=0.5)
    words = r"bn_x5-lr0\..-s. is not .* another (seed|rate) \(config\.width: stored .*: move the"
    with pytest.raises(RecordError, match=words):
        load_sweep(ARMS, tmp_path / "sweep")


def test_a_question_s_answers_are_of_one_measurement(tmp_path):
    """Also those of a link to a run, which would count twice."""
    for seed in (0, 1):
        shutil.copytree(WHY.results / f"group_size-s{seed}", tmp_path / f"group_size-s{seed}")
    read = WHY.page.report.summarize
    assert read(tmp_path)["questions"]["group_size"]["seeds"] == 2
    resealed(WHY.results / "group_size-s2", tmp_path / "group_size-s2", settings__steps=7)
    with pytest.raises(RecordError, match=r"s2 is not .*s0 with another seed \(settings\.steps"):
        read(tmp_path)
    shutil.rmtree(tmp_path / "group_size-s2")
    (tmp_path / "link").symlink_to(tmp_path / "group_size-s1")
    with pytest.raises(RecordError, match="are both of group_size, seed 1"):
        read(tmp_path)


def test_a_link_to_a_run_is_no_other_seed(tmp_path):
    write_run(tmp_path, "bn_x5", 0)
    (tmp_path / "link").symlink_to(tmp_path / "bn_x5-s0")
    words = "link and .*bn_x5-s0 are both of bn_x5, seed 0, which would count twice: leave one"
    with pytest.raises(RecordError, match=words):
        load_runs(ARMS, tmp_path)


def test_arms_of_other_data_are_not_compared(tmp_path):
    for arm, changes in (("batch", {}), ("layer", {"data_sha256": "f" * 64})):
        resealed(NORMS.results / f"{arm}-s0", tmp_path / f"{arm}-s0", **changes)
    with pytest.raises(RecordError, match=r"layer-s0 is of data_sha256 f+, .*batch-s0 of .*move"):
        NORMS.page.report.summarize(tmp_path)


def printed(out):
    return "\n".join(REPORT.tables(out, REPORT.summarize(out)))


def test_what_arms_differ_in_beside_themselves_is_said(tmp_path):
    """Their settings and lengths are theirs."""
    write_run(tmp_path, "inception", 0)
    write_run(tmp_path, "bn_x30", 0, every=20, steps=80)
    assert "differ in more" not in printed(tmp_path)
    write_run(tmp_path, "bn_x5", 0, width=0.5)
    said = "- The arms differ in more than themselves: width is 0.125 of inception, bn_x30; 0.5 of "
    assert said + "bn_x5." in printed(tmp_path)
    assert said in REPORT.blocks(tmp_path)["arms"]


def test_what_arms_of_a_sweep_differ_in_is_said(tmp_path):
    """Not their rates."""
    write_run(tmp_path, "inception", 0, rate=0.1)
    write_run(tmp_path, "bn_x5", 0, rate=0.2)
    assert "differ in more" not in printed(tmp_path)
    write_run(tmp_path, "bn_x30", 0, rate=0.2, width=0.5)
    assert "arms of the sweep differ in more" in printed(tmp_path)
    assert "; 0.5 of bn_x30." in printed(tmp_path)


def test_so_it_is_of_digits(tmp_path):
    for arm, changes in (("mlp", {}), ("mlp_bn", {"config__decay": 0.5})):
        resealed(DIGITS.results / f"{arm}-s0", tmp_path / f"{arm}-s0", **changes)
    report = DIGITS.page.report
    said = "- The arms differ in more than themselves: decay is 0.99 of mlp; 0.5 of mlp_bn."
    assert said in report.tables(tmp_path, report.summarize(tmp_path))
    assert said in report.blocks(tmp_path)["arms"]


@pytest.fixture
def old_and_new(tmp_path):
    """A run that is older than the field `pipeline`, and one with its default."""
    shutil.copytree(BATCH, tmp_path / "batch-s0")
    resealed(NORMS.results / "batch-s1", tmp_path / "batch-s1", config__pipeline="streamed")
    return tmp_path


def test_a_field_that_an_older_record_lacks_has_its_default(old_and_new):
    """Red where what it lacks is another value than all."""
    assert load_runs(NORMS.arms, old_and_new)["batch"].seeds == (0, 1)
    (group,) = read_groups("norms", old_and_new, NORMS.arms)
    assert [run.seed for run in group.runs] == [0, 1]
    resealed(NORMS.results / "batch-s2", old_and_new / "batch-s2", config__pipeline="resident")
    words = r"batch-s2 is not .*pipeline: stored 'streamed', given 'resident'"
    with pytest.raises(RecordError, match=words):
        load_runs(NORMS.arms, old_and_new)


def test_published_results_take_more_seeds():
    """With the configuration that the README names; nothing trains."""
    config = NORMS.presets["quick"]
    (task, *_) = NORMS.tasks_of(replace(config, seeds=3, arms=("batch",)))
    checked = replace(NORMS, check=lambda *_: None)
    runs.check(checked, task, open_data("mnist5k"), ImageCompute(), NORMS.results)


def test_older_and_newer_groups_of_a_page_differ_in_what_differs():
    groups = read_groups("imagenet_inception", INCEPTION.results, ARMS)
    found = {
        ((p.first.folder, p.first.arm.name), (p.second.folder, p.second.arm.name)): p.differ
        for p in pairs(groups)
    }
    assert found[("sigmoid", "bn_x5_sigmoid"), ("", "bn_x5")] == ["activation"]
    assert found[("left_out", "left_out_l2"), ("", "bn_x5")] == ["l2"]
    assert not [differ for differ in found.values() if "pipeline" in differ]


def test_older_and_newer_runs_of_a_claim_differ_in_what_differs(monkeypatch):
    pair = ("sigmoid/bn_x5_sigmoid", "bn_x5")
    claim = PaperClaim("sigmoid trains", "", "activation", best_accuracy, (pair,))
    monkeypatch.setattr(claims, "CLAIMS", (claim,))
    text = paper_claims_table(INCEPTION.results, REPORT)
    assert "| `activation`; versions, processor | 3 |" in text
