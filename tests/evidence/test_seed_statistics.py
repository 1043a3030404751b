"""Numbers of a table from logged accuracies, and their cells."""

import numpy as np
import pytest

from bnjax.evidence.statistics import accuracy, spread, steps_to, times
from bnjax.evidence.tables import percent, plain, steps, table


def test_steps_to_is_the_first_evaluation_that_reaches_the_accuracy():
    at, values = np.array([0, 10, 20, 30]), np.array([0.1, 0.9, 0.89, 0.95])
    assert steps_to(0.9, at, values) == 10
    assert steps_to(0.95, at, values) == 30
    assert steps_to(0.96, at, values) is None
    assert steps_to(0.05, at, values) == 0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], {"mean": None, "sd": None}),
        ([0.5], {"mean": 0.5, "sd": None}),
        ([0, 2], {"mean": 1.0, "sd": 1.414214}),  # divided by n - 1
    ],
)
def test_spread(values, expected):
    assert spread(values) == expected


def test_times_count_those_that_reached():
    assert times([10, None, 30]) == {"reached": 2, "mean": 20.0, "sd": 14.142136}
    assert times([None]) == {"reached": 0, "mean": None, "sd": None}


def test_cells():
    assert accuracy({"correct": 3, "examples": 4}) == 0.75
    assert plain({"mean": 1234.5, "sd": 2.25}, digits=1) == "1,234.5 ± 2.2"
    assert percent({"mean": 0.5, "sd": None}) == "50.00"
    assert steps(times([10, 20]), 2) == "15 ± 7"
    assert steps(times([1000, None]), 2) == "1,000 (1 of 2)"
    assert steps(times([None]), 1) == "not reached"
    assert steps(times([]), 0) == ""  # of no run nothing is said
    assert table(["a", "b"], [["c", "1"]]).splitlines() == [
        "| a | b |",
        "| --- | ---: |",
        "| c | 1 |",
    ]
