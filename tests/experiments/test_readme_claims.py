"""The README's claims are what the committed runs say, and cannot say otherwise."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from experiments import claims
from experiments.harness.differences import points

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def row(words):
    """The numbers of the README's line with these words: difference, low, high."""
    (line,) = [line for line in README.splitlines() if words in line]
    return [float(number) for number in re.findall(r"[-+]?\d+\.\d+", line.split("|")[2])], line


def best(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    tests = [json.loads(line)["test"] for line in lines]
    return max(test["correct"] / test["examples"] for test in tests)


def test_a_difference_is_that_of_the_logs():
    """In float64, from the files. Red for unpaired runs, or a normal interval."""
    results = ROOT / "experiments" / "imagenet_inception" / "results" / "wide"
    pairs = [(f"bn_baseline-s{seed}", f"inception-s{seed}") for seed in range(3)]
    change = 100 * np.array([best(results / a) - best(results / b) for a, b in pairs])
    low, high = stats.t.interval(0.95, 2, change.mean(), stats.sem(change))
    found, line = row("becomes better by BN alone")
    np.testing.assert_allclose(found, [change.mean(), low, high], atol=0.005)
    assert "| 3 pairs |" in line


def test_a_ratio_is_that_of_the_logarithms():
    results = ROOT / "experiments" / "mnist_lenet" / "results"

    def steps(arm, seed):
        lines = (results / f"{arm}-s{seed}" / "metrics.jsonl").read_text().splitlines()
        entries = [json.loads(line) for line in lines]
        return next(e["step"] for e in entries if e["test"]["correct"] >= 0.9 * 10_000)

    change = np.log([steps("mlp", seed) / steps("mlp_bn", seed) for seed in range(10)])
    bounds = stats.t.interval(0.95, 9, change.mean(), stats.sem(change))
    found, _ = row("reaches 90 % sooner")
    np.testing.assert_allclose(found, np.exp([change.mean(), *bounds]), atol=0.05)


def test_questions_and_claims_are_counted_by_the_page_s_lines():
    """A claim that is asked twice, at two rates or with other labels, is one claim."""
    page = (ROOT / "experiments" / "why_it_works" / "README.md").read_text(encoding="utf-8")
    block = page.partition("<!-- begin answers -->")[2].partition("<!-- end answers -->")[0]
    asked = [line.split(" | ")[0] for line in block.splitlines() if line.startswith("| ")][2:]
    assert f"{len(asked)} questions on {len({*asked})} claims: " in README


@pytest.mark.parametrize(("second", "side"), [(0.5, "above"), (0.62, "unclear"), (0.8, "below")])
def test_a_claim_that_the_runs_contradict_is_an_error(monkeypatch, second, side):
    """Red if a side is not held against the interval."""
    first = {seed: 0.6 + seed / 100 for seed in range(3)}
    other = {seed: second + seed**2 / 100 for seed in range(3)}
    found = claims.of_pairs(points(first, other))
    assert found.side == side
    for claimed in ("above", "unclear", "below"):
        claim = claims.Claim("normalized is better", "norms", claimed, lambda: found)
        monkeypatch.setattr(claims, "CLAIMS", (claim,))
        if claimed == side:
            found_in = claims.findings()
            (line,) = claims.claims_of("norms", found_in).splitlines()[2:]
            assert claims.claims_of("mnist_lenet", found_in) == ""
            assert claims.claims_table(found_in).splitlines()[2].startswith(line)
            continue
        with pytest.raises(ValueError, match=f"claims 'normalized is better', {claimed}.* {side}"):
            claims.claims_table(claims.findings())
