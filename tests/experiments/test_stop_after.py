"""--stop-after: what is finished is reported, what is not goes on as if nothing had been."""

import itertools
import shlex
import sys
import time
from types import SimpleNamespace

import pytest
from mnist_commands import TINY, assert_same_runs, flags
from runs import JAX_HAS_STARTED

from experiments.harness import compute
from experiments.harness.compute import Compute
from experiments.mnist_lenet.__main__ import main

RUNS = [*flags(**TINY, seeds=1), "--arms", "mlp", "mlp_bn"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5_400), (".5s", 0.5)]
)
def test_times_have_units(text, seconds, monkeypatch):
    how = Compute(stop_after=text)
    for passed, over in ((0.99, False), (1.01, True)):
        now = how.started + passed * seconds
        monkeypatch.setattr(compute, "time", SimpleNamespace(monotonic=lambda now=now: now))
        assert how.out_of_time() == over


def test_without_a_time_none_is_over():
    assert not Compute().out_of_time()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("90", "needs a unit, got '90': write 90s, 90m or 90h for seconds, minutes or hours"),
        *((text, f"as 90s, 10m or 1.5h, got {text!r}") for text in ("0m", "-1s", "1d", "", "1 m")),
    ],
)
def test_other_times_are_refused_with_the_remedy(text, words):
    with pytest.raises(ValueError, match=f"--stop-after .*{words}"):
        Compute(stop_after=text)


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command in this process, where each look at the clock takes an hour."""
    monkeypatch.setattr(*JAX_HAS_STARTED)

    def run(*arguments):
        began, looks = time.monotonic(), itertools.count()
        clock = SimpleNamespace(monotonic=lambda: began + 3600 * next(looks))
        monkeypatch.setattr(compute, "time", clock)
        monkeypatch.setattr(sys, "argv", ["main", *map(str, arguments)])
        main()  # which would raise SystemExit for a status other than 0
        return capsys.readouterr().out

    return run


@pytest.mark.slow
def test_what_is_stopped_goes_on_bitwise(call, tmp_path):
    """In a run, then between two: the clock is looked at after dispatches, and before all runs but
    the first, which takes a step in any case."""
    whole, out = tmp_path / "whole", tmp_path / "with blank"
    call(*RUNS, "--out", whole)

    said = call(*RUNS, "--out", out, "--stop-after", "0.5h")
    assert "| 3x100 sigmoid" not in said
    assert "Left: mlp-s0, mlp_bn-s0.\n" in said
    assert "Stopped, out of time after step 20; saved. Go on with:\n" in said
    assert not (out / "summary.json").exists()

    again = shlex.split(said.splitlines()[-1])
    assert again[:3] == ["python", "-m", "experiments.mnist_lenet"]
    said = call(*again[3:], "--stop-after", "1.5h")
    assert "| 3x100 sigmoid | 1 |" in said
    assert "| 3x100 sigmoid, BN |" not in said
    assert "Left: mlp_bn-s0.\n" in said
    assert "Stopped, out of time before mlp_bn. Go on with" in said
    assert (out / "summary.json").exists()
    assert not (out / "mlp_bn-s0").exists()

    said = call(*RUNS, "--out", out)
    assert "Left:" not in said
    assert_same_runs(out, whole, ["mlp-s0", "mlp_bn-s0"])
    assert (out / "summary.json").read_text() == (whole / "summary.json").read_text()
