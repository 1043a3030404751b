"""The MNIST benchmark writes results and tables; its programs compute the same."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnjax.data import load_dataset
from bnjax.training.checkpoints import Checkpoints
from bnjax.training.divergence import start_watch
from bnjax.training.loop import Progress
from bnjax.training.objectives import Metrics
from bnjax.training.optimizers import sgd
from bnjax.training.state import TrainState
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
from experiments.mnist_lenet.arms import make_model
from experiments.mnist_lenet.config import Config as Setting
from experiments.mnist_lenet.train import train

ROOT = Path(__file__).parents[2]
TINY = "--steps 4 --steps-per-dispatch 2 --seeds 1 --repeats 1 --matmul-size 64 --matmul-tries 1"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What a tiny run without PyTorch leaves behind: its folder, and standard output."""
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "torch.py").write_text("raise ImportError('hidden by the test')\n")
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benchmarks", "mnist", *TINY.split(), "--out", "out"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "out", done.stdout


@pytest.mark.slow
def test_json_holds_configuration_environment_and_raw_repeats(written):
    result = json.loads((written[0] / "mnist.json").read_text())
    assert (result["schema"], result["benchmark"]) == (1, "mnist")
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
    monkeypatch.setattr(mnist, "matmul_flops_per_second", lambda size, tries: 1.0)
    config = mnist.Config(seeds=3, steps=2, steps_per_dispatch=2, repeats=2)
    result = mnist.measure(config)
    assert ran == ["bnjax 3", "bnjax 1", "flax"] * 2
    seconds = [[repeat["seconds"] for repeat in p["repeats"]] for p in result["programs"]]
    assert seconds == [[1, 4], [2, 5], [3, 6]]


@pytest.mark.slow
def test_the_file_and_the_terminal_show_the_table_of_the_json(written):
    folder, shown = written
    text = mnist.table(json.loads((folder / "mnist.json").read_text()))
    assert (folder / "mnist.md").read_text(encoding="utf-8") == text + "\n"
    assert text in shown


@pytest.mark.slow
def test_a_missing_peer_is_named_with_the_reason(written):
    """Red where the row is left out."""
    folder, _ = written
    result = json.loads((folder / "mnist.json").read_text())
    assert result["torch"] is None
    assert "| PyTorch, eager | not measured: hidden by the test; " in mnist.table(result)


def test_step_flops_are_those_counted_by_hand():
    forward = 2 * 60 * (784 * 100 + 100 * 100 + 100 * 100 + 100 * 10)
    kernels = forward
    inputs = 2 * 60 * (100 * 100 + 100 * 100 + 100 * 10)  # the images need no gradient
    counted = mnist.step_flops(60, [(784, 100), (100, 100), (100, 100), (100, 10)])
    assert counted == forward + kernels + inputs == 26_376_000


def test_step_flops_are_those_of_the_compiled_flax_step():
    """XLA's own count holds the elementwise work too, which is small."""
    state = FlaxLoop(Setting(), load_dataset("mnist5k")).start()
    compiled = flax_step.lower(state, np.zeros((60, 784), np.float32), np.zeros(60, int)).compile()
    counted = mnist.step_flops(60, [state.params[layer]["kernel"].shape for layer in LAYERS])
    assert 1 < compiled.cost_analysis()["flops"] / counted < 1.1


@pytest.mark.slow
def test_bnjax_and_flax_train_the_same_network(tmp_path):
    """Red for another weight_std, learning rate, order, threshold or epsilon in one of them."""
    setting, dataset = Setting(), load_dataset("mnist5k")
    task = bnjax_task(setting, seeds=1, steps=4, steps_per_dispatch=2)
    with Checkpoints(tmp_path, config={}) as checkpoints:
        train(task, dataset, lambda member, entry: None, checkpoints=checkpoints)
        restored = checkpoints.restore(_stacked(jax.eval_shape(partial(_start, setting))))
    assert restored.step == 6
    ours = jax.tree.map(lambda leaf: leaf[0], restored.state.state.params)

    loop = FlaxLoop(setting, dataset)
    initial = jax.tree.map(np.array, loop.start().params)
    theirs = loop.train(loop.start(), order(setting, dataset, 6)).params
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
        "config": {
            "data": "mnist5k",
            "steps": 100,
            "steps_per_dispatch": 10,
            "repeats": 3,
            "matmul_size": 8,
        },
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


def _start(setting):
    params = make_model(setting, "mlp_bn").init(
        jax.random.key(0), jnp.zeros((1, 28, 28, 1)), train=False
    )
    state = TrainState(
        jnp.int32(0), params["params"], params["batch_stats"], sgd(0.1).init(params["params"])
    )
    return Progress(start_watch(state), Metrics.zero())


def _stacked(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), tree)


def _program(name, *seconds, correct, seeds=1, **more):
    repeats = [{"seconds": value, "correct": correct} for value in seconds]
    return {"program": name, "seeds": seeds, "repeats": repeats, **more}
