"""A sweep over learning rates in words: its table, the best rate, the borders."""

import numpy as np
import pytest

from experiments.harness.arm import Arm
from experiments.harness.bounds import check_rates
from experiments.harness.results import Runs
from experiments.harness.sweeps import at_best_rate, best_rates_text, sweep_table

SMALLER = "on the border of the sweep; try smaller ones."


def entry(rate, mean, *, steps=300, runs=3, diverged=0):
    best = {"mean": mean, "sd": 0.01}
    return {
        "learning_rate": rate,
        "steps": steps,
        "best": best,
        "runs": runs,
        "diverged": ["x"] * diverged,
    }


def column(*means, diverged=()):
    """Rates 0.1, 0.2, ...; of the last ones so many runs diverged."""
    faults = [0] * (len(means) - len(diverged)) + [*diverged]
    pairs = enumerate(zip(means, faults, strict=True), start=1)
    return [entry(i / 10, mean, diverged=fault) for i, (mean, fault) in pairs]


def label(arm, entry):
    return arm.upper()


def test_the_table_by_hand():
    """An arm lacks a rate; another has runs of two lengths, in two columns."""
    sweep = {
        "a": column(0.5, 0.7, 0.9, diverged=(1,)),
        "b": [entry(0.1, 0.6), entry(0.3, 0.4, steps=20)],
    }
    assert sweep_table(sweep, label, "best").splitlines() == [
        "| learning rate | A (300 steps) | B (20 steps) | B (300 steps) |",
        "| ---: | ---: | ---: | ---: |",
        "| 0.1 | 50.00 ± 1.00 |  | **60.00 ± 1.00** |",
        "| 0.2 | **70.00 ± 1.00** |  |  |",
        "| 0.3 | 90.00 ± 1.00 (1 of 3 diverged) | **40.00 ± 1.00** |  |",
    ]
    assert sweep_table({}, label, "best") == best_rates_text({}, label, "best") == ""


def test_a_rate_that_lacks_seeds_is_not_the_best():
    """As while a sweep goes on. Seen red: one lucky seed was in bold."""
    column = [entry(0.1, 0.91), entry(0.2, 0.915, runs=1), entry(0.3, 0.9)]
    rows = sweep_table({"a": column}, label, "best").splitlines()
    assert rows[2:4] == ["| 0.1 | **91.00 ± 1.00** |", "| 0.2 | 91.50 ± 1.00 (seeds: 1, not 3) |"]


def runs_at(rate, *right, diverged=None):
    """Runs of seeds 0, 1, ... of an arm, with so many of 100 right at the end."""
    identity = {"schedule": {"steps": 300}}
    tests = [{"test": {"correct": each, "examples": 100}, "diverged": diverged} for each in right]
    return Runs(
        Arm(name="a", label="A"),
        {"learning_rate": rate, "identity": identity},
        {},
        "A",
        tuple(range(len(right))),
        [np.array([300])] * len(right),
        [np.array([each / 100]) for each in right],
        tests,
        [],
    )


def test_the_runs_at_the_best_rate_are_of_all_seeds():
    """Seen red with the one seed at 0.2."""
    groups = [runs_at(0.1, 90, 91, 92), runs_at(0.2, 95), runs_at(0.3, 89, 90, 90)]
    assert at_best_rate(groups).learning_rate == 0.1
    fault = {"step": 3}
    with pytest.raises(ValueError, match="A has no rate at which all 2 seeds were trained"):
        at_best_rate([runs_at(0.1, 90, 91, diverged=fault), runs_at(0.2, 95)])


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (column(0.5, 0.7, 0.6), "0.2 is best, inside the sweep."),
        (column(0.5, 0.7, 0.9, diverged=(2,)), "0.2 is best, inside the sweep."),
        (column(0.8, 0.7, 0.6), "0.1 is best, on the border of the sweep; try smaller ones."),
        (column(0.5, 0.7, 0.9), "0.3 is best, on the border of the sweep; try larger ones."),
        (column(0.7, 0.7), "0.1 is best, on the border of the sweep; try smaller ones."),
        (column(0.7), "0.1 is best, the only rate of the sweep; try others."),
        ([entry(0.1, 0.7), entry(0.2, 0.8, runs=1)], f"0.1 is best, {SMALLER}"),
        (
            [entry(0.1, 0.7, diverged=1), entry(0.2, 0.8, runs=1)],
            "no rate has all 3 seeds without divergence yet; complete the sweep.",
        ),
        (column(0.7, 0.8, diverged=(1, 3)), "runs diverged at every rate; try smaller ones."),
    ],
)
def test_the_best_rate_and_the_borders(entries, said):
    assert best_rates_text({"a": entries}, label, "best") == f"- A (300 steps): {said}"


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ((0.1, 0.10000001), r"rates must .* differ in their first six digits, got \(0.1, "),
        ((0.1, 0.0), "rates must be > 0 and finite, got 0.0"),
    ],
)
def test_rates_that_folders_would_not_tell_apart_are_refused(rates, words):
    with pytest.raises(ValueError, match=words):
        check_rates("rates", rates)
