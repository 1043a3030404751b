"""The MNIST benchmark writes results and tables; its programs compute the same."""

import os
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from benchmark_commands import call_without, result_in, table_in
from mnist_runs import run

from bnjax.data import in_memory, open_data
from experiments.benchmarks import mnist, mnist_programs
from experiments.benchmarks.mnist_programs import (
    LAYERS,
    FlaxLoop,
    Trained,
    bnjax_task,
    flax_step,
    order,
    run_loop,
)
from experiments.mnist_lenet.config import Config as Setting

TINY = "--steps 4 --steps-per-dispatch 2 --seeds 1 --repeats 1 --matmul-size 64 --matmul-tries 1"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folder and output of a tiny run without PyTorch."""
    folder = tmp_path_factory.mktemp("benchmark")
    shown, _ = call_without(folder, ("torch",), f"mnist {TINY} --out out")
    return folder / "out", shown


@pytest.fixture(scope="module")
def flax():
    """The Flax loop."""
    return FlaxLoop(Setting(), in_memory(open_data("mnist5k")))


@pytest.mark.slow
def test_json_holds_configuration_environment_and_raw_repeats(written):
    result = result_in(written[0], mnist)
    assert result["config"] == {
        "data": "mnist5k",
        "data_dir": None,
        "seeds": 1,
        "steps": 4,
        "steps_per_dispatch": 2,
        "repeats": 1,
        "matmul_size": 64,
        "matmul_tries": 1,
    }
    assert result["setting"]["batch_size"] == 60
    assert result["environment"]["backend"] == "cpu"
    assert result["environment"]["device_count"] == len(os.sched_getaffinity(0))
    assert result["machine_flops_per_second"] > 0
    programs = result["programs"]
    assert [(p["program"], p["seeds"]) for p in programs] == [
        ("bnjax", 1),
        ("flax", 1),
    ]
    for program in programs:
        (repeat,) = program["repeats"]
        assert repeat["seconds"] > 0
        assert len(repeat["correct"]) == program["seeds"]


def test_programs_run_in_turn_and_each_keeps_its_own_times(monkeypatch):
    """Red where all repeats of one program follow each other, or the times change places."""
    ran = []

    def run(name):
        ran.append(name)
        return Trained(float(len(ran)), (1,))

    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(mnist, "run_bnjax", lambda task, *_: run(f"bnjax {len(task.members)}"))
    monkeypatch.setattr(mnist, "run_loop", lambda loop, *_, untimed: run("flax"))
    kernel = {"kernel": np.zeros((2, 2))}
    state = SimpleNamespace(params=dict.fromkeys(LAYERS, kernel))
    loop = SimpleNamespace(start=lambda: state)
    monkeypatch.setattr(mnist, "FlaxLoop", lambda *_: loop)
    monkeypatch.setattr(mnist, "order", lambda *_: np.zeros((4, 3), int))
    monkeypatch.setattr(mnist, "matmul_flops_per_second", lambda size, tries: 1.0)
    result = mnist.measure(mnist.Config(seeds=3, repeats=2))
    assert ran == ["bnjax 3", "bnjax 1", "flax"] * 2
    seconds = [[repeat["seconds"] for repeat in p["repeats"]] for p in result["programs"]]
    assert seconds == [[1, 4], [2, 5], [3, 6]]


@pytest.mark.slow
def test_a_run_writes_its_table_and_names_a_missing_peer(written):
    """Red where the row is left out."""
    text = table_in(*written, mnist)
    assert result_in(written[0], mnist)["torch"] is None
    assert "| PyTorch, eager | not measured: hidden by the test; " in text


def test_step_flops_are_those_counted_by_hand():
    forward = 2 * 60 * (784 * 100 + 100 * 100 + 100 * 100 + 100 * 10)
    kernels = forward
    inputs = 2 * 60 * (100 * 100 + 100 * 100 + 100 * 10)  # the images need no gradient
    counted = mnist.step_flops(60, [(784, 100), (100, 100), (100, 100), (100, 10)])
    assert counted == forward + kernels + inputs == 26_376_000


def test_step_flops_are_those_of_the_compiled_flax_step(flax):
    """XLA's own count holds the elementwise work too, which is small."""
    state = flax.start()
    compiled = flax_step.lower(state, np.zeros((60, 784), np.float32), np.zeros(60, int)).compile()
    counted = mnist.step_flops(60, [state.params[layer]["kernel"].shape for layer in LAYERS])
    assert 1 < compiled.cost_analysis()["flops"] / counted < 1.1


@pytest.mark.slow
def test_bnjax_and_flax_train_the_same_network(flax, tmp_path):
    """Red for another weight_std, learning rate, order, threshold or epsilon in one of them."""
    setting, dataset = Setting(), in_memory(open_data("mnist5k"))
    task = bnjax_task(setting, seeds=1, steps=4, steps_per_dispatch=2)
    state = run(task, dataset, tmp_path).state
    assert state.step == 6
    ours = state.params

    initial = jax.tree.map(np.array, flax.start().params)
    theirs = flax.train(flax.start(), order(setting, dataset, 6)).params
    for name in LAYERS:
        moved = np.abs(initial[name]["kernel"] - theirs[name]["kernel"]).max()
        assert moved > 1e-3
        np.testing.assert_allclose(
            ours[name]["kernel"], theirs[name]["kernel"], rtol=0, atol=1e-6, err_msg=name
        )
    for i in (1, 2, 3):
        for leaf in ("scale", "bias"):
            np.testing.assert_allclose(
                ours[f"hidden{i}"]["norm"][leaf], theirs[f"norm{i}"][leaf], rtol=0, atol=1e-6
            )
    np.testing.assert_allclose(ours["logits"]["bias"], theirs["logits"]["bias"], rtol=0, atol=1e-6)


def test_bnjax_evaluates_only_where_the_clock_starts_and_stops():
    schedule = bnjax_task(Setting(), seeds=1, steps=700, steps_per_dispatch=100).schedule
    schedule.check()
    assert [step for step in range(1, 801) if schedule.evaluates_at(step)] == [100, 800]


def test_the_clock_of_a_loop_leaves_out_the_untimed_steps(monkeypatch):
    now = [0.0]
    loop = SimpleNamespace(
        start=lambda: now.__setitem__(0, now[0] + 1_000) or "state",
        train=lambda state, indices: now.__setitem__(0, now[0] + len(indices)) or state,
        correct=lambda state: now.__setitem__(0, now[0] + 1_000) or 7,
    )
    monkeypatch.setattr(mnist_programs.time, "perf_counter", lambda: now[0])
    assert run_loop(loop, np.zeros((12, 3), int), untimed=5) == (7.0, (7,))


def test_table_compares_medians_with_the_better_peer():
    result = {
        "config": dict(data="mnist5k", steps=100, steps_per_dispatch=10, repeats=3, matmul_size=8),
        "setting": {"batch_size": 60, "learning_rate": 0.1},
        "test_examples": 1_000,
        "environment": {"processor": "P", "device_count": 2, "python": "3", "versions": {}},
        "torch": {"version": "2", "default_threads": 2},
        "missing": {},
        "flops_per_step": 10_000_000,
        "machine_flops_per_second": 1e11,
        "programs": [
            _program("bnjax", 0.1, 0.25, 0.5, seeds=10, correct=[900, *[910] * 9]),
            _program("flax", 0.05, 0.05, 0.05, correct=[901]),
            _program("torch", 0.2, 0.2, 0.2, correct=[902], threads=2),
            _program("torch", 0.1, 0.1, 0.1, correct=[903], threads=1),
        ],
    }
    lines = mnist.table(result).splitlines()
    assert lines[2:6] == [
        "| bnjax, 10 seeds | 4,000 (2,000 to 10,000) | 2.00 | 4.00 | 40.0 % | 90.00 % |",
        "| Flax, a jitted step a batch | 2,000 (2,000 to 2,000) | 1.00 | 2.00 | 20.0 % | 90.10 % |",
        "| PyTorch, eager, 2 threads | 500 (500 to 500) | 0.25 | 0.50 | 5.0 % | 90.20 % |",
        "| PyTorch, eager, 1 thread | 1,000 (1,000 to 1,000) | 0.50 | 1.00 | 10.0 % | 90.30 % |",
    ]
    assert lines[-3:] == [
        "- bnjax, 10 seeds: test accuracy 90.90 ± 0.32 %, mean ± sd over the seeds.",
        "- Target: 1.8 times Flax, a jitted step a batch: reached.",
        "- Target: 3 times PyTorch, eager: reached.",
    ]


def _program(name, *seconds, correct, seeds=1, **more):
    repeats = [{"seconds": value, "correct": correct} for value in seconds]
    return {"program": name, "seeds": seeds, "repeats": repeats, **more}
