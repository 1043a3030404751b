"""The train step's benchmark: contestants train the same network, and what its table says.

With one Inception module of ten: compiling the whole network takes a minute.
"""

import json
import math
import sys

import jax
import numpy as np
import pytest

from bnjax.models import bn_inception
from experiments.benchmarks import memory, train_step, train_step_table
from experiments.benchmarks.__main__ import main
from experiments.benchmarks.train_step_networks import (
    JaxTraining,
    Setting,
    batch,
    initial_variables,
    network,
)

SETTING = Setting("float32", 0.125, 8, 1, 4, 3, 0.05)
TINY = (
    "--width 0.125 --image-size 8 --batch-size 4 --classes 3 --repeats 2 --turn-seconds 1e-4 "
    "--no-keep-memory --contestants"
)
JAX = ("ours", "ours_separate", "flax", "bias")


@pytest.fixture(autouse=True)
def _short_network(monkeypatch):
    monkeypatch.setattr(bn_inception, "FIGURE_5", bn_inception.FIGURE_5[2:3])


@pytest.mark.slow
def test_contestants_train_the_same_network():
    """Red for another initial value, activation, momentum or learning rate in one of them."""
    losses = {}
    for name in JAX:
        training = JaxTraining(name, SETTING)
        losses[name] = []
        for _ in range(3):
            training.run(2)
            losses[name].append(training.loss())
    assert losses["flax"][2] < losses["flax"][0] - 0.01  # it learns
    np.testing.assert_allclose(losses["ours"], losses["flax"], rtol=1e-4)
    np.testing.assert_allclose(losses["ours_separate"], losses["flax"], rtol=1e-4)
    assert abs(losses["bias"][0] - losses["flax"][0]) > 1e-3


def test_initial_values_are_the_same_for_all_and_those_of_he():
    variables = {name: initial_variables(network(name, SETTING), SETTING) for name in JAX}
    kernels = {
        name: [leaf for leaf in jax.tree.leaves(tree["params"]) if leaf.ndim == 4]
        for name, tree in variables.items()
    }
    for name in JAX:
        assert all(map(np.array_equal, kernels[name], kernels["flax"]))
    params = variables["flax"]["params"]
    kernel = np.asarray(params["conv2"]["conv"]["kernel"])
    assert kernel.std() == pytest.approx(math.sqrt(2 / (9 * kernel.shape[2])), rel=0.1)
    assert np.all(params["conv2"]["norm"]["scale"] == 1)
    assert np.all(params["conv2"]["norm"]["bias"] == 0)
    assert np.all(variables["flax"]["batch_stats"]["conv2"]["norm"]["var"] == 1)


def test_the_batch_is_the_same_at_every_call():
    images, labels = batch(SETTING)
    assert images.shape == (4, 8, 8, 3)
    assert set(labels) <= {0, 1, 2}
    assert np.array_equal(images, batch(SETTING)[0])


def test_a_run_writes_json_and_table(monkeypatch, tmp_path, capsys):
    run(monkeypatch, f"{TINY} flax bias --out {tmp_path}")
    result = json.loads((tmp_path / "train_step.json").read_text(), parse_constant=pytest.fail)
    assert (result["schema"], result["benchmark"]) == (1, "train_step")
    assert result["config"]["image_size"] == 8
    assert result["missing"] == {}
    (cell,) = result["cells"]
    for key in ("seconds", "page_faults", "temporary_bytes", "final_loss"):
        assert set(cell[key]) == {"flax", "bias"}
    assert all(len(turns) == 2 for turns in cell["seconds"].values())
    text = train_step.table(result)
    assert (tmp_path / "train_step.md").read_text(encoding="utf-8") == text + "\n"
    assert text in capsys.readouterr().out


def test_a_missing_peer_is_named_with_the_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    config = train_step.Config(
        contestants=("bias", "torch"),
        width=0.125,
        image_size=8,
        batch_size=4,
        repeats=1,
        turn_seconds=1e-4,
    )
    result = train_step.measure(config)
    assert set(result["missing"]) == {"torch"}
    assert "| PyTorch, eager, float32 | not measured: import of torch " in train_step.table(result)


def test_a_network_that_diverges_has_no_times(monkeypatch, tmp_path):
    """NaN and denormal numbers cost other times than training."""
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, f"{TINY} bias --learning-rate 1e30 --out {tmp_path}")
    assert "bias diverged: choose a learning_rate below 1e+30" in str(stop.value.code)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--contestants ours nope", "contestants: unknown 'nope'; choose from ours,"),
        ("--dtypes float32 float32", "dtypes must be given, each once"),
        ("--batch-size 0", "batch_size must be >= 1, got 0"),
        ("--width 0", "width must be > 0, got 0"),
        ("--stem-stride 3", "3"),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong(monkeypatch, capsys, argv, said):
    monkeypatch.setattr(memory.os, "execve", lambda *_: pytest.fail("started anew"))
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, argv)
    assert stop.value.code != 0
    assert said in f"{stop.value.code} {capsys.readouterr().err}"


def test_the_table_compares_steps_of_the_same_repeat():
    """A machine that is slow in one repeat is slow for all: their ratio stays."""
    cell = {
        "dtype": "float32",
        "seconds": {
            "ours": [0.0525, 0.105, 0.21],
            "flax": [0.06, 0.12, 0.24],
            "torch": [0.03, 0.03, 0.03],
            "torch_bias": [0.02, 0.02, 0.02],
            "bias": [0.05, 0.1, 0.2],
        },
        "temporary_bytes": dict.fromkeys(("ours", "flax", "bias"), 1_500_000)
        | dict.fromkeys(("torch", "torch_bias")),
    }
    lines = train_step_table.table(_result(cell)).splitlines()
    assert lines[2:8] == [
        "| bnjax, ReLU inside, float32 | 105.0 (78.8 to 157.5) | 5.0 (5.0 to 5.0) % | 1.5 |",
        "| Flax Linen, float32 | 120.0 (90.0 to 180.0) | 20.0 (20.0 to 20.0) % | 1.5 |",
        "| PyTorch, eager, float32 | 30.0 (30.0 to 30.0) | 50.0 (50.0 to 50.0) % |  |",
        "| PyTorch, eager, bias alone, float32 | 20.0 (20.0 to 20.0) |  |  |",
        "| bias alone, float32 | 100.0 (75.0 to 150.0) |  | 1.5 |",
        "| bnjax, then ReLU, float32 | not measured: gone |  |  |",
    ]
    cell["seconds"]["ours"] = [0.06, 0.12, 0.24]
    assert (
        "- Target: bnjax, ReLU inside, adds at most 5 % in float32: 20.0 %: missed."
        in train_step_table.table(_result(cell)).splitlines()
    )


def run(monkeypatch, argv: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "train_step", *argv.split()])
    main()


def _result(cell):
    return {
        "config": {
            "width": 0.25,
            "batch_size": 32,
            "image_size": 32,
            "classes": 10,
            "stem_stride": 1,
            "repeats": 3,
            "turn_seconds": 0.5,
        },
        "environment": {"backend": "cpu", "processor": "P", "python": "3", "versions": {}},
        "peers": {},
        "allocation": {},
        "missing": {"ours_separate": "gone"},
        "cells": [cell],
    }
