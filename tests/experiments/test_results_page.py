"""The page of results says what the records say; it needs no network, and its tables no script."""

import json
import re
import sys
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np
import pytest
from made_page import read
from made_results import EXAMPLES, write_run
from scipy import stats

from bnjax.evidence.records import RecordError
from bnjax.extras import MissingExtraError
from experiments import report
from experiments.harness.experiment import ROOT
from experiments.harness.found import experiment
from experiments.mnist_lenet.arms import ARMS as DIGITS
from experiments.results_page.groups import pairs, read_groups

pytest.importorskip("bokeh", reason="needs the extra `page`")

from experiments.results_page.page import curves, page

NAMES = ("norms", "why_it_works")


def groups_of(name):
    found = experiment(name)
    return read_groups(name, found.results, found.arms)


@pytest.fixture(scope="module")
def shown():
    return read(page([group for name in NAMES for group in groups_of(name)]))


def records():
    """Each record's folder and JSON, read without the code that makes the page."""
    for name in NAMES:
        for path in sorted((ROOT / "experiments" / name / "results").rglob("record.json")):
            yield path.parent, json.loads(path.read_text())


def accuracies(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [100 * line["test"]["correct"] / line["test"]["examples"] for line in lines]


def test_every_run_has_a_row_with_the_numbers_of_its_record(shown):
    rows = shown.tables["runs"]
    assert len(rows) == len(list(records()))
    for row, links, (folder, record) in zip(rows, shown.links["runs"], by_row(shown), strict=True):
        assert (row["experiment"], row["seed"]) == (record["experiment"], str(record["seed"]))
        final = record["final"]
        if "test" in final:
            assert row["best accuracy, %"] == f"{max(accuracies(folder)):.2f}"
            test = final["test"]
            assert row["final, %"] == f"{100 * test['correct'] / test['examples']:.2f}"
            assert row["final loss"] == f"{test['loss'] / test['examples']:.4f}"
        else:
            effect = final["effect"]
            assert row["effect"] == ("" if effect is None else f"{effect:.4f}")
            held = [check["deviation"] <= check["bound"] for check in final["checks"]]
            assert row["bounds held"] == (f"{sum(held)} of {len(held)}" if held else "")
        (card,) = (shown.texts[link.removeprefix("#")] for link in links)
        git, data = record["environment"]["git"], record["data"]
        for words in (git["commit"], data["sha256"], record["environment"]["processor"]):
            assert words in card
        assert f"python -m experiments.verify {folder.relative_to(ROOT)}" in card
        assert f"version = {{{record['environment']['versions']['bnjax']}}}" in card


def by_row(shown):
    """The folder and record that each row of the table of runs leads to."""
    known = {record_name(folder): (folder, record) for folder, record in records()}
    return [known[link.removeprefix("#")] for (link,) in shown.links["runs"]]


def record_name(folder):
    return "-".join(part for part in folder.relative_to(ROOT / "experiments").parts[::2])


def of_arm(name, arm):
    results = ROOT / "experiments" / name / "results"
    return [accuracies(folder) for folder in sorted(results.glob(f"{arm}-s*"))]


def test_means_and_spreads_are_those_of_the_logs(shown):
    rows = {row["network or question"]: row for row in shown.tables["networks"]}
    assert len(rows) == len({(record["experiment"], record["arm"]) for _, record in records()})
    for arm, label in (("batch", "batch"), ("layer", "layer"), ("group", "4 groups")):
        best = [max(run) for run in of_arm("norms", arm)]
        expected = f"{np.mean(best):.2f} ± {np.std(best, ddof=1):.2f}"
        assert rows[label]["best accuracy, %"] == expected
        assert rows[label]["seeds"] == "3"
    effects = [
        record["final"]["effect"] for _, record in records() if record["arm"] == "scale_bias_alone"
    ]
    interval = stats.ttest_1samp(effects, 0).confidence_interval()
    expected = f"{np.mean(effects):.3g} ({interval.low:.3g} to {interval.high:.3g})"
    assert rows["scale and bias alone"]["effect"] == expected


def test_differences_are_paired_by_seed(shown):
    """By SciPy's paired t test; red for one of two samples."""
    (row,) = (
        row
        for row in shown.tables["differences"]
        if (row["this"], row["minus this"]) == ("4 groups", "no normalization")
    )
    one, other = ([max(run) for run in of_arm("norms", arm)] for arm in ("group", "none"))
    test = stats.ttest_rel(one, other).confidence_interval()
    assert row["best accuracy, points"] == f"{np.subtract(one, other).mean():+.2f}"
    assert row["95 % interval"] == f"{test.low:+.2f} to {test.high:+.2f}"
    assert (row["differ in"], row["seeds"]) == ("norm", "3")


def test_curves_are_those_of_the_logs(shown):
    (group,) = (group for group in shown.data["groups"] if group["label"] == "ghost batches of 8")
    for run, expected in zip(group["runs"], of_arm("norms", "ghost"), strict=True):
        (curve,) = run["curves"]["test accuracy, %"]
        assert shown.data["steps"][curve["x"]] == [0, 25, 50, 75, 100, 125, 150]
        np.testing.assert_allclose(curve["y"], expected, rtol=1e-6)


def test_what_was_measured_is_drawn_against_what_it_counts(shown):
    """Steps, or layers that fall to one; by position where there is nothing of the kind."""
    of = {group["label"]: group["runs"][0]["curves"] for group in shown.data["groups"]}
    steps = shown.data["steps"]

    def drawn(label):
        return {curve["name"]: steps[curve["x"]] for curve in of[label]["what was measured"]}

    assert "layer" not in drawn("growth of gradients")
    assert set(map(tuple, drawn("growth of gradients").values())) == {tuple(range(30, 0, -1))}
    assert drawn("rank by depth")["normalized"] == list(range(200))


def test_the_page_asks_no_network_and_each_link_leads_somewhere(shown):
    assert all(address.startswith("data:") for address in shown.addresses)
    assert len(set(shown.ids)) == len(shown.ids)
    links = [link for rows in shown.links.values() for row in rows for link in row]
    assert links
    assert {link.removeprefix("#") for link in links} <= set(shown.ids)


@pytest.fixture
def made(tmp_path):
    """Two arms that share two seeds of three; a run that is not finished; one that diverged."""
    for seed, right in ((0, 100), (1, 120), (2, 150)):
        write(tmp_path, "mlp", seed, [20, right, right, right, right])
    for seed, right in ((1, 130), (2, 170)):
        write(tmp_path, "mlp_bn", seed, [20, right, 180, right, right])
    write(tmp_path, "mlp_bn", 3, [20] * 5, finished=False)
    fault = {"step": 700, "what": "loss", "leaf": None, "layer": None}
    write(tmp_path / "deep", "lenet", 0, [20, 30], diverged=fault)
    return tmp_path


def write(out, arm, seed, correct, **more):
    """A run with all that a record has."""
    write_run(out, arm, seed, correct, **more)
    path = out / f"{arm}-s{seed}" / "record.json"
    record = json.loads(path.read_text())
    git = {"commit": "c" * 40, "dirty": False}
    environment = {"versions": {"bnjax": "0.0.1"}, "git": git}
    environment |= {"device_count": 1, "device_kind": "cpu", "processor": "any"}
    record |= {"experiment": "made", "data": {"name": "digits", "sha256": "d" * 64}}
    record["environment"] = environment
    record["identity"] |= {"arm": arm, "data_sha256": "d" * 64}
    if record["finished"]:
        record["final"]["wall_seconds"] = 1.0
    record["schema"] = 1
    record = {key: value for key, value in record.items() if "sha256" not in key}
    path.write_text(json.dumps(record))


def test_any_folder_of_runs_is_shown(made):
    """Of an arm that is not there any more, by its name; unfinished runs are left out."""
    groups = read_groups("made", made, DIGITS[1:])
    assert [(group.folder, group.label, len(group.runs)) for group in groups] == [
        ("", "3x100 sigmoid, BN", 2),
        ("", "mlp", 3),
        ("deep", "LeNet-5", 1),
    ]
    shown = read(page(groups))
    (last,) = (row for row in shown.tables["networks"] if row["runs"] == "deep")
    assert last["diverged"] == "1 of 1, at 700"
    assert last["made by"] == "0.0.1 at ccccccc"
    assert [run["diverged"] for run in curves(groups)["groups"][2]["runs"]] == [700]


@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_a_run_that_left_no_number_is_shown(made, lost):
    """Of its loss, and of a measurement's effect. Seen red: NaN is no JSON, and ends the script."""
    groups = read_groups("made", made, DIGITS)
    for run in groups[0].runs[:2]:
        run.log[-1]["test"]["loss"] = run.final["test"]["loss"] = lost
        run.final["effect"] = lost
    shown = read(page(groups))
    run = shown.data["groups"][0]["runs"][0]
    assert [curve["y"][-1] for curve in run["curves"]["test loss"]] == [None]
    row, *_ = shown.tables["networks"]
    assert row["final loss"] == row["effect"] == "not finite"
    row, *_ = shown.tables["runs"]
    assert row["final loss"] == row["effect"] == str(lost)


def test_settings_that_a_label_only_counts_are_shown_at_the_pointer():
    """Of a recipe, where its own arm is not known; where it is, the label is that arm's."""
    found = experiment("imagenet_inception")
    plain = [each for each in found.arms if each.name == "inception"]
    (group,) = read_groups(found.name, found.results / "recipe_x5", plain)
    (named,) = read_groups(found.name, found.results / "recipe_x5", found.arms)
    assert named.label == "Inception, recipe x5"
    usual = json.loads(json.dumps(group.arm.settings()))
    stated = group.runs[0].record["identity"]["settings"]
    changed = {name: value for name, value in stated.items() if value != usual[name]}
    assert f"{len(changed)} settings changed" in group.label
    (title,) = {each["changed"] for each in curves([group])["groups"]}
    assert all(f"{name} {value}" in title for name, value in changed.items())
    assert f'title="{escape(title)}"' in page([group])


def test_pairs_have_seeds_in_common(made):
    (pair,) = pairs(read_groups("made", made, DIGITS))
    assert (pair.first.label, pair.second.label) == ("3x100 sigmoid, BN", "3x100 sigmoid")
    best = pair.differences["best accuracy, %"]
    assert (best["seeds"], best["mean"]) == (2, 100 * np.mean([60, 30]) / EXAMPLES)
    final = pair.differences["final, %"]
    assert (final["seeds"], final["mean"]) == (2, 100 * np.mean([10, 20]) / EXAMPLES)


@pytest.mark.parametrize("gone", ["best accuracy, %", "final, %"])
def test_a_pair_may_have_one_accuracy_alone(made, gone):
    """Seen red: the other was looked up all the same."""
    groups = read_groups("made", made, DIGITS)
    for group in groups:
        for run in group.runs:
            run.numbers.pop(gone, None)
    (row,) = read(page(groups)).tables["differences"]
    means = {"best accuracy, %": "+22.50", "final, %": "+7.50"} | {gone: ""}
    assert row["best accuracy, points"] == means["best accuracy, %"]
    assert row["final, points"] == means["final, %"]


def test_differences_that_are_all_equal_have_no_interval(tmp_path):
    """Nor have effects: such seeds do not tell how they scatter. Seen red with zero widths."""
    for arm, rights in (("mlp", (120, 150)), ("mlp_bn", (130, 160))):
        for seed, right in enumerate(rights):
            write(tmp_path, arm, seed, [20, right, right, right, right])
    groups = read_groups("made", tmp_path, DIGITS)
    for run in groups[0].runs:
        run.final["effect"] = 0.5
    shown = read(page(groups))
    (row,) = shown.tables["differences"]
    assert row["best accuracy, points"] == row["final, points"] == "+5.00"
    assert row["95 % interval"] == row["95 % interval 2"] == ""
    assert shown.tables["networks"][0]["effect"] == "0.5000 ± 0.0000"


def test_what_is_shown_cannot_break_the_page(made):
    """Red without escapes, in text as in data."""
    (run,) = made.glob("deep/*/record.json")
    record = json.loads(run.read_text())
    record["identity"]["config"] = {"net": "</script><b id='bold'>"}
    run.write_text(json.dumps(record))
    arms = [replace(arm, label="<b id='label'>") for arm in DIGITS]
    shown = read(page(read_groups("made", made, arms)))
    assert not {"bold", "label"} & set(shown.ids)
    assert "net </script><b id='bold'>" in shown.texts["made-deep-lenet-s0"]
    assert {group["label"][:14] for group in shown.data["groups"]} == {"<b id='label'>"}


def test_a_damaged_run_is_not_shown(made):
    (made / "mlp-s1" / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(RecordError, match="mlp-s1"):
        read_groups("made", made, DIGITS)


def test_a_damaged_record_is_named(made):
    """Seen red: JSON's error, which names no file."""
    (made / "mlp-s1" / "record.json").write_text("{")
    with pytest.raises(RecordError, match=r"mlp-s1.record\.json is damaged"):
        read_groups("made", made, DIGITS)


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    report.main()


def test_the_command_writes_one_file_with_the_figures(tmp_path, monkeypatch, capsys):
    norms = [each for each in report._with_results() if each.name == "norms"]
    monkeypatch.setattr(report, "_with_results", lambda: norms)
    command(monkeypatch, "--html", tmp_path / "page")
    assert [path.name for path in (tmp_path / "page").iterdir()] == ["index.html"]
    assert capsys.readouterr().out == f"{tmp_path / 'page' / 'index.html'}\n"
    shown = read((tmp_path / "page" / "index.html").read_text())
    assert len([a for a in shown.addresses if a.startswith("data:image/svg")]) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--html", "file"], "--html"),
        (["--html", "gs://bucket/page"], "--html"),
        (["--html", "page", "--check"], "give one of them"),
    ],
)
def test_where_it_cannot_be_written_it_says_so(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(SystemExit, match=words):
        command(monkeypatch, *arguments)


def test_the_extra_is_named_where_it_is_missing(monkeypatch, tmp_path):
    for name in list(sys.modules):
        if name == "bokeh" or name.startswith("bokeh."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "bokeh", None)
    monkeypatch.delitem(sys.modules, "experiments.results_page.page")
    said = "bokeh: pip install -c constraints.txt -e '.[page]'"
    with pytest.raises(MissingExtraError, match=re.escape(said)):
        report.write_page(tmp_path)
    assert not list(tmp_path.iterdir())
