"""Benchmarks of training steps: contestants train the same network, and the tables' numbers.

Without the Inception modules, whose compilation takes a minute.
"""

import io
import math
from contextlib import redirect_stdout

import jax
import numpy as np
import pytest
from benchmark_commands import call, hide, result_in, table_in

from bnjax.models import bn_inception
from experiments.benchmarks import networks, train_step
from experiments.benchmarks.training import JaxTraining, initial_variables, make_network
from experiments.benchmarks.training_spec import StepSpec, make_batch

SPEC = StepSpec(0.125, 8, 1, 4, 3, "float32", 0.05)
SIZE = {name: value for name, value in SPEC._asdict().items() if name in networks.SIZES["full"]}
SHORT = "--repeats 2 --turn-seconds 1e-4 --no-keep-memory"
TINY = f"--width 0.125 --image-size 8 --batch-size 4 --classes 3 {SHORT}"
JAX = ("ours", "ours_separate", "flax", "bias")


@pytest.fixture(scope="module", autouse=True)
def _short_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bn_inception, "FIGURE_5", [])
        patch.setitem(networks.SIZES, "narrow", SIZE)
        yield


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folder and output of runs of both benchmarks, for which PyTorch is not installed."""
    folder, shown = tmp_path_factory.mktemp("benchmarks"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(shown):
        hide(patch, folder, "torch")
        call(patch, f"train_step {TINY} --contestants ours bias torch --out {folder}")
        call(patch, f"networks --sizes narrow {SHORT} --out {folder}")
    return folder, shown.getvalue()


@pytest.mark.slow
def test_a_run_of_train_step_writes_every_measure(written):
    result = result_in(written[0], train_step)
    assert result["config"]["image_size"] == 8
    (cell,) = result["cells"]
    for key in ("seconds", "page_faults", "temporary_bytes", "final_loss"):
        assert set(cell[key]) == {"ours", "bias"}
    assert all(len(turns) == 2 for turns in cell["seconds"].values())


def test_a_run_of_networks_writes_what_was_chosen_for_the_machine(written):
    result = result_in(written[0], networks)
    assert result["config"]["dtype"] == "float32"
    assert result["config"]["contestants"] == ["ours", "torch"]
    assert (result["peers"], result["threads"]) == ({}, None)
    (cell,) = result["cells"]
    assert (cell["size"], cell["width"], cell["batch_size"]) == ("narrow", 0.125, 4)
    assert len(cell["seconds"]["ours"]) == 2


@pytest.mark.parametrize(
    ("benchmark", "row"),
    [
        (train_step, "| PyTorch, eager, float32 | not measured: hidden by the test; "),
        (networks, " | PyTorch, eager, channels_last | not measured: hidden by the test; "),
    ],
)
def test_a_run_writes_its_table_and_names_a_missing_peer(written, benchmark, row):
    text = table_in(*written, benchmark)
    assert set(result_in(written[0], benchmark)["missing"]) == {"torch"}
    assert row in text


def test_a_network_that_diverges_has_no_times(monkeypatch, tmp_path):
    """NaN and denormal numbers cost other times than training."""
    tiny = TINY.replace("--repeats 2", "--repeats 5")
    argv = f"train_step {tiny} --contestants bias --learning-rate 3e38 --out {tmp_path}"
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, argv)
    assert "bias diverged: choose a learning_rate below 3e+38" in str(stop.value.code)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_contestants_train_the_same_network():
    """Red for another initial value, activation, momentum or learning rate in one of them."""
    losses = {}
    for name in JAX:
        contestant = JaxTraining(name, SPEC)
        losses[name] = []
        for _ in range(3):
            contestant.run(2)
            losses[name].append(contestant.loss())
    assert losses["flax"][2] < losses["flax"][0] - 0.01  # it learns
    # Six steps of float32 rounding, which training magnifies; without normalization: 1e-3.
    np.testing.assert_allclose(losses["ours"], losses["flax"], rtol=1e-4)
    np.testing.assert_allclose(losses["ours_separate"], losses["flax"], rtol=1e-4)
    assert abs(losses["bias"][0] - losses["flax"][0]) > 1e-3


def test_initial_values_are_the_same_for_all_and_those_of_he():
    variables = {name: initial_variables(make_network(name, SPEC), SPEC) for name in JAX}
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
    images, labels = make_batch(SPEC)
    assert images.shape == (4, 8, 8, 3)
    assert set(labels) <= {0, 1, 2}
    assert np.array_equal(images, make_batch(SPEC)[0])


@pytest.mark.parametrize(
    ("backend", "sizes", "dtype", "contestants"),
    [
        ("cpu", {"narrow", "full"}, "float32", {"ours", "torch"}),
        ("gpu", {"full_128"}, "bfloat16", {"ours", "torch", "torch_compiled"}),
    ],
)
def test_networks_choose_by_the_machine_unless_told(
    monkeypatch, backend, sizes, dtype, contestants
):
    raced = []
    monkeypatch.setattr(networks.jax, "default_backend", lambda: backend)
    monkeypatch.setattr(networks, "find_torch", lambda names: ({}, {}))
    monkeypatch.setattr(
        networks, "race", lambda spec, names, **_: raced.append((spec, set(names))) or {}
    )
    result = networks.measure(networks.Config())
    assert {cell["size"] for cell in result["cells"]} == sizes
    assert {spec.dtype for spec, _ in raced} == {dtype}
    assert all(names == contestants for _, names in raced)
    networks.measure(networks.Config(sizes=("full",), dtype="bfloat16", contestants=("torch",)))
    spec = StepSpec(**networks.SIZES["full"], dtype="bfloat16", learning_rate=1e-3)
    assert raced[-1] == (spec, {"torch"})


def result_of(cell, **more):
    """A result whose numbers can be checked by hand."""
    return {
        "config": {
            **dict(width=0.25, batch_size=32, image_size=32, classes=10, stem_stride=1),
            **dict(repeats=3, turn_seconds=0.5, dtype="float32"),
        },
        "environment": {
            **dict(backend="cpu", device_kind="G", processor="P", python="3"),
            "versions": {},
        },
        "peers": {},
        "allocation": {},
        "missing": {},
        "threads": 2,
        "cells": [cell],
    } | more


def test_the_table_of_train_step_compares_steps_of_the_same_repeat():
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
    result = result_of(cell, missing={"ours_separate": "gone"})
    assert train_step.table(result).splitlines()[2:8] == [
        "| bnjax, ReLU inside, float32 | 105.0 (78.8 to 157.5) | 5.0 (5.0 to 5.0) % | 1.5 |",
        "| Flax Linen, float32 | 120.0 (90.0 to 180.0) | 20.0 (20.0 to 20.0) % | 1.5 |",
        "| PyTorch, eager, float32 | 30.0 (30.0 to 30.0) | 50.0 (50.0 to 50.0) % |  |",
        "| PyTorch, eager, bias alone, float32 | 20.0 (20.0 to 20.0) |  |  |",
        "| bias alone, float32 | 100.0 (75.0 to 150.0) |  | 1.5 |",
        "| bnjax, then ReLU, float32 | not measured: gone |  |  |",
    ]
    cell["seconds"]["ours"] = [0.06, 0.12, 0.24]
    target = "- Target: bnjax, ReLU inside, adds at most 5 % in float32: 20.0 %: missed."
    assert target in train_step.table(result).splitlines()


CELL = {
    **dict(width=0.25, image_size=32, batch_size=32),
    "seconds": {
        "ours": [0.11, 0.22, 0.44],
        "torch": [0.1, 0.2, 0.4],
        "torch_compiled": [0.2, 0.2, 0.2],
    },
}


def test_the_table_of_networks_compares_steps_of_the_same_repeat():
    lines = networks.table(result_of(CELL)).splitlines()
    where = "width 0.25, 32 images of 32x32"
    assert lines[2:4] == [
        f"| {where} | bnjax | 220.0 (165.0 to 330.0) | 145.5 | 1.10 (1.10 to 1.10) |",
        f"| {where} | PyTorch, eager, channels_last | 200.0 (150.0 to 300.0) | 160.0 |  |",
    ]
    target = f"- Target, {where}: at most 1.15 times PyTorch, eager, channels_last"
    assert f"{target}: 1.10: reached." in lines
    assert "- Threads, XLA's and PyTorch's alike: 2." in lines
    slow = CELL | {"seconds": CELL["seconds"] | {"ours": [0.12, 0.24, 0.48]}}
    assert f"{target}: 1.20: missed." in networks.table(result_of(slow)).splitlines()


def test_on_a_gpu_the_peer_is_compiled_and_images_count():
    result = result_of(CELL)
    result["environment"]["backend"] = "gpu"
    text = networks.table(result)
    assert "times the images/s of PyTorch, torch.compile, channels_last: 0.91: missed." in text
    assert "Threads" not in text
