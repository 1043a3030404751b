"""Citations name the versions, commits and data of records, and those alone."""

import hashlib
import json
import re
import shutil
import sys

import pytest

import bnjax
from experiments import cite
from experiments.harness.citations import bibtex, made_by, origin
from experiments.harness.experiment import ROOT

RESULTS = ROOT / "experiments" / "norms" / "results"
RUN = RESULTS / "batch-s0"


def record_of(path):
    return json.loads((path / "record.json").read_text())


def field(text, name):
    (value,) = re.findall(rf"^  {name} = {{(.*)}},$", text, re.MULTILINE)
    return value


def test_a_run_is_cited_with_version_commit_and_data():
    record, text = record_of(RUN), bibtex(origin([RUN]))
    commit = record["environment"]["git"]["commit"]
    assert field(text, "version") == record["environment"]["versions"]["bnjax"] == "0.6.0"
    assert field(text, "url").endswith(f"/tree/{commit}")
    data, digest = record["data"]["sha256"], record["sha256"]
    stated = f"commit {commit}; data mnist5k, SHA-256 {data}; records, SHA-256 {digest}"
    assert field(text, "note") == stated
    assert field(text, "year") == record["started"][:4]
    assert field(text, "title") == "bnjax: experiments/norms/results/batch-s0"
    assert text.startswith(f"@software{{bnjax_norms_{digest[:7]},\n")
    assert text.count("{") == text.count("}")


def test_several_are_cited_with_all_that_made_them(tmp_path):
    """Of other versions, resumed elsewhere, of a commit with changes; versions by their numbers."""
    for seed, changes in enumerate(({}, {"version": "0.10.0"}, {"dirty": True})):
        run = shutil.copytree(RESULTS / f"batch-s{seed}", tmp_path / "runs" / f"batch-s{seed}")
        record = record_of(run)
        record["environment"]["versions"]["bnjax"] = changes.get("version", "0.9.0")
        record["environment"]["git"]["dirty"] = changes.get("dirty", False)
        if seed == 0:
            other = {"versions": {"bnjax": "0.8.0"}, "git": {"commit": "e" * 40, "dirty": False}}
            record["resumed_under"] = [other]
        seal(run, record)
    source = origin([tmp_path / "runs"])
    commit = record["environment"]["git"]["commit"]
    assert source.versions == ("0.8.0", "0.9.0", "0.10.0")
    assert source.commits == (commit, f"{commit} with changes", "e" * 40)
    assert source.paths == ("runs",)  # nothing of this machine
    digests = sorted(record_of(run)["sha256"] for run in (tmp_path / "runs").iterdir())
    assert source.digest == hashlib.sha256("".join(digests).encode()).hexdigest()
    assert field(bibtex(source), "version") == "0.8.0, 0.9.0, 0.10.0"
    assert "/tree/" not in bibtex(source)
    assert origin([tmp_path]) == source._replace(paths=(tmp_path.name,))  # no run right in it


def seal(run, record):
    record.pop("sha256", None)
    text = json.dumps(record, sort_keys=True)
    record["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (run / "record.json").write_text(json.dumps(record))


def test_a_file_of_results_is_cited():
    source = origin([ROOT / "experiments" / "benchmarks" / "results" / "mnist.json"])
    assert (source.versions, source.experiments) == (("0.1.0",), ("mnist",))
    assert [name for name, _ in source.data] == ["mnist5k"]
    assert "year" not in bibtex(source)


def test_a_record_is_cited_as_its_run():
    assert origin([RUN / "record.json"]) == origin([RUN])


def test_data_of_one_name_is_told_apart_by_its_digest(tmp_path):
    """As folder:data on two machines has it. Seen red with the last one alone."""
    for seed, digest in enumerate("ab"):
        run = shutil.copytree(RESULTS / f"batch-s{seed}", tmp_path / f"batch-s{seed}")
        record = record_of(run)
        record["data"]["sha256"] = digest * 64
        seal(run, record)
    source = origin([tmp_path])
    assert source.data == (("mnist5k", "a" * 64), ("mnist5k", "b" * 64))
    assert "data mnist5k (SHA-256 aaaaaaa), mnist5k (SHA-256 bbbbbbb)" in source.line
    both = f"data mnist5k, SHA-256 {'a' * 64}; data mnist5k, SHA-256 {'b' * 64}"
    assert both in field(bibtex(source), "note")


def test_what_was_not_run_has_no_line(tmp_path):
    """A folder without a run yet; numbers that were counted."""
    assert made_by(tmp_path) == ""
    (tmp_path / "sizes.json").write_text('{"small": {"parameters": 3}}')
    assert made_by(tmp_path / "sizes.json") == ""


def run_command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["cite", *map(str, arguments)])
    cite.main()


def test_the_command_prints_it(monkeypatch, capsys):
    run_command(monkeypatch, RUN)
    assert capsys.readouterr().out == bibtex(origin([RUN])) + "\n"


def test_a_folder_of_files_is_cited_by_all_of_them(tmp_path):
    """Red if only runs count. Files that are no results are left out."""
    made = ROOT / "experiments" / "benchmarks" / "results" / "networks.json"
    (tmp_path / "deep").mkdir()
    shutil.copy(made, tmp_path / "deep")
    (tmp_path / "numbers.json").write_text("{}")
    found = origin([tmp_path])
    assert found.experiments == ("networks",)
    assert found.commits == origin([made]).commits


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ("nowhere", "nowhere does not exist: give a run's folder"),
        (".", "holds no run: give a run's folder"),
        ("words.txt", "words.txt does not say what made it"),
        ("numbers.json", "does not say what made it"),
        ("batch-s0", "differs from log_sha256"),
        ("batch-s1", "is not finished"),
        ("batch-s2", "names no commit"),
    ],
)
def test_what_is_no_result_is_refused(result, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text("words")
    (tmp_path / "numbers.json").write_text("{}")
    if result.startswith("batch"):
        shutil.copytree(RESULTS / result, tmp_path / result)
    if result == "batch-s0":
        (tmp_path / result / "metrics.jsonl").write_text("")
    if result == "batch-s1":
        seal(tmp_path / result, record_of(RESULTS / result) | {"finished": False, "final": None})
    if result == "batch-s2":
        record = record_of(RESULTS / result)
        record["environment"]["git"] = None
        seal(tmp_path / result, record)
    with pytest.raises(SystemExit, match=re.escape(words)):
        run_command(monkeypatch, result)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda record: record | {"finished": False, "final": None}, "is not finished"),
        (lambda record: record | {"sha256": "0" * 64}, "differs from its own sha256"),
    ],
)
def test_a_run_is_refused_by_its_record_s_file_as_well(change, words, tmp_path, monkeypatch):
    """Seen red: a file was read without a check."""
    run = shutil.copytree(RUN, tmp_path / RUN.name)
    record = change(record_of(run))
    (run / "record.json").write_text(json.dumps(record))
    if not record["finished"]:
        seal(run, record)
    for result in (run, run / "record.json"):
        with pytest.raises(SystemExit, match=words):
            run_command(monkeypatch, result)


def test_each_generated_table_says_what_made_it():
    """On the experiments' pages, which `tests/test_report.py` holds against the results."""
    pages = [path.read_text() for path in ROOT.glob("experiments/*/README.md")]
    blocks = re.findall(r"<!-- begin \S+ -->\n(.*?)\n<!-- end", "\n".join(pages), re.DOTALL)
    tables = [block for block in blocks if "\n| ---" in block]
    assert len(tables) > 20
    line = r"\*By bnjax [\d., ]+, commits? \w{7}.* `python -m experiments\.cite (.+)`\.\*"
    for block in tables:
        if block.count("\n") == 1:
            continue  # of an experiment without a run yet
        (paths,) = re.findall(line, block.splitlines()[-1])
        assert made_by(*(ROOT / path for path in paths.split())) == block.splitlines()[-1]


def test_versions_are_in_the_changelog_and_the_citation():
    changes = (ROOT / "CHANGELOG.md").read_text()
    told = re.findall(r"^## (\d+\.\d+\.\d+) \(\d{4}-\d\d-\d\d, \w{7}\)$", changes, re.MULTILINE)
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {bnjax.__version__}\n" in citation
    assert told[0] == bnjax.__version__
    records = map(record_of, (path.parent for path in ROOT.glob("experiments/**/record.json")))
    assert {record["environment"]["versions"]["bnjax"] for record in records} <= set(told)
