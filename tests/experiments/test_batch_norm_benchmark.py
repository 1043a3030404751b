"""The layer benchmark: contestants compute the same; counts and errors are right."""

import itertools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from benchmark_commands import call_without, result_in, table_in
from tolerances import EXACT

from experiments.benchmarks import batch_norm, batch_norm_collectives, batch_norm_costs, memory
from experiments.benchmarks.batch_norm_collectives import collectives
from experiments.benchmarks.batch_norm_costs import accuracy, exact, residual_bytes
from experiments.benchmarks.batch_norm_layers import Layer, LayerSpec
from experiments.benchmarks.batch_norm_programs import (
    JaxProgram,
    forward_and_backward,
    make_layer,
    to_layout,
)
from experiments.benchmarks.batch_norm_values import Outputs, make_inputs

SHAPE = (6, 4, 3, 5)
PRESENT = ("ours", "ours_autodiff", "flax", "flax_two_pass", "flax_nnx")  # the rest: tests/parity

MISSING = ("torch", "torch_one_thread", "haiku", "equinox", "keras")
TINY = (
    "--shapes 4x3x3x4 --dtypes bfloat16 --repeats 1 --turn-seconds 1e-4 --bandwidth-bytes 4096 "
    f"--bandwidth-tries 1 --accuracy-shape 4x3x3x4 --contestants ours flax bias {' '.join(MISSING)}"
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folder, output and errors of a tiny run without the parity extra."""
    folder = tmp_path_factory.mktemp("benchmark")
    hidden = ("torch", "haiku", "equinox", "keras")
    shown, errors = call_without(folder, hidden, f"batch_norm {TINY}")
    return folder / "runs" / "benchmarks", shown, errors


@pytest.mark.slow
def test_json_holds_every_measure_of_every_contestant(written):
    result = result_in(written[0], batch_norm)
    assert result["config"]["shapes"] == ["4x3x3x4"]
    assert result["environment"]["device_count"] == 1  # the eight are in another process
    assert result["bytes_per_second"] > 0
    assert [cell["activation"] for cell in result["cells"]] == ["none", "relu"]
    names = {"ours", "flax", "bias"}
    for cell in result["cells"]:
        assert set(cell["seconds"]) == set(cell["page_faults"]) == names
        assert all(len(turns) == 1 and turns[0] > 0 for turns in cell["seconds"].values())
        assert set(cell["temporary_bytes"]) == names
    assert [set(entry["per_value"]) for entry in result["residual_bytes"]] == [names, names]
    assert [entry["offset"] for entry in result["accuracy"]] == [0, 1e3, 1e5]
    assert set(result["accuracy"][0]["errors"]) == names - {"bias"}
    assert set(result["collectives"]) == names


@pytest.mark.slow
def test_a_run_starts_again_with_memory_kept_and_says_so(written):
    folder, _, errors = written
    result = result_in(folder, batch_norm)
    assert errors.count("Starting again with ") == 1
    assert memory.KEEP.items() <= result["allocation"].items()


@pytest.mark.slow
def test_a_run_writes_its_table_and_names_missing_peers(written):
    folder, shown, _ = written
    assert "| Haiku | not measured: hidden by the test; " in table_in(folder, shown, batch_norm)
    assert set(result_in(folder, batch_norm)["missing"]) == set(MISSING)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("name", PRESENT)
def test_contestants_compute_the_layer_and_its_gradients(name, relu):
    """Red for another epsilon, layout, dtype or cotangent, and for a ReLU forgotten."""
    inputs = make_inputs(SHAPE)
    truth = reference.forward(inputs.x, inputs.scale, inputs.bias)
    dy = np.where(truth.y > 0, inputs.dy, 0) if relu else inputs.dy
    y = np.maximum(truth.y, 0) if relu else truth.y
    gradients = reference.backward(dy, inputs.x, inputs.scale)
    outputs = JaxProgram(name, LayerSpec(SHAPE, "float32", relu), inputs).result()
    for actual, desired in zip(outputs, (y, *gradients), strict=True):
        # float32, summed in each library's own order; another epsilon is off by 1e-3 and more.
        np.testing.assert_allclose(actual, desired, rtol=1e-5, atol=1e-5)


def test_bias_alone_adds_a_bias():
    inputs = make_inputs(SHAPE)
    y, dx, dscale, dbias = JaxProgram("bias", LayerSpec(SHAPE, "float32"), inputs).result()
    np.testing.assert_allclose(y, inputs.x + inputs.bias, rtol=0, atol=1e-6)
    np.testing.assert_allclose(dx, inputs.dy, rtol=0, atol=1e-6)
    np.testing.assert_allclose(dbias, inputs.dy.sum((0, 1, 2)), rtol=0, atol=1e-5)
    assert dscale is None


@pytest.mark.parametrize("name", PRESENT)
def test_contestants_move_their_statistics_by_a_tenth(name):
    inputs = make_inputs(SHAPE, offset=2)
    layer = make_layer(name, LayerSpec(SHAPE, "float32"), inputs)
    before = jax.tree.leaves(layer.state)
    _, after = layer.apply(jnp.asarray(inputs.x, jnp.float32), layer.params, layer.state)
    means, variances = inputs.x.mean((0, 1, 2)), inputs.x.var((0, 1, 2))
    for old, new, value in zip(before, jax.tree.leaves(after), (means, variances), strict=True):
        # Some roundings of float32, a mean over the batch among them.
        np.testing.assert_allclose(new, 0.9 * np.asarray(old) + 0.1 * value, rtol=1e-6)


@pytest.mark.usefixtures("promotion")
@pytest.mark.parametrize("name", [*PRESENT, "bias"])
def test_outputs_have_the_dtype_of_the_input(name):
    layer = make_layer(name, LayerSpec(SHAPE, "bfloat16", relu=True), make_inputs(SHAPE))
    x = jax.ShapeDtypeStruct(SHAPE, jnp.bfloat16)
    y, _, dx, dparams = jax.eval_shape(forward_and_backward(layer), x, x, layer.params, layer.state)
    assert y.dtype == dx.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(dparams)} == {jnp.dtype("float32")}


def test_the_cotangent_waits_for_the_output():
    """Red without the barrier: XLA could then read `x` once for both passes."""
    layer = make_layer("bias", LayerSpec(SHAPE, "float32"), make_inputs(SHAPE))
    x = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    text = jax.jit(forward_and_backward(layer)).lower(x, x, layer.params, layer.state).as_text()
    assert "optimization_barrier" in text


def test_the_float64_truth_is_that_of_the_tests():
    inputs = make_inputs(SHAPE, offset=3)
    y, dx, dscale, dbias = exact(inputs)
    truth = reference.forward(inputs.x, inputs.scale, inputs.bias)
    gradients = reference.backward(inputs.dy, inputs.x, inputs.scale)
    for actual, desired in zip((y, dx, dscale, dbias), (truth.y, *gradients), strict=True):
        np.testing.assert_allclose(actual, desired, **EXACT)


def test_errors_are_absolute_for_y_and_relative_for_gradients(monkeypatch):
    """They are None where there is a NaN: JSON has no other word for it."""

    def off(name, spec, inputs):
        y, dx, dscale, dbias = exact(inputs)
        outputs = Outputs(y + 0.25, 1.5 * dx, dscale * math.nan, dbias)
        return SimpleNamespace(result=lambda: outputs)

    monkeypatch.setattr(batch_norm_costs, "make_program", off)
    for entry in accuracy(SHAPE, ["one"]):
        errors = entry["errors"]["one"]
        assert errors["y"] == pytest.approx(0.25)
        assert errors["dx"] == pytest.approx(0.5)
        assert errors["dscale"] is None
        assert errors["dbias"] == 0


def test_the_variance_of_one_pass_loses_its_digits():
    """The measure sees what it is for."""
    entries = accuracy(SHAPE, ["flax", "flax_two_pass"])
    at_1e3 = {name: errors["y"] for name, errors in entries[1]["errors"].items()}
    assert at_1e3["flax"] > 0.1 > 1e-2 > at_1e3["flax_two_pass"]


@pytest.mark.usefixtures("promotion")
@pytest.mark.parametrize(
    ("name", "dtype", "relu", "kept"),
    [
        ("flax", "bfloat16", True, 11),
        ("flax", "float32", False, 8),
        ("bias", "float32", False, 0),
        ("bias", "bfloat16", True, 3),
        ("ours", "bfloat16", False, 2),
        ("ours", "bfloat16", True, 2),
    ],
)
def test_bytes_kept_for_the_backward_pass(name, dtype, relu, kept):
    spec = LayerSpec(SHAPE, dtype, relu)
    assert residual_bytes(make_layer(name, spec, make_inputs(SHAPE)), spec) == kept


def test_the_output_does_not_count_as_kept_and_nothing_counts_twice():
    @jax.custom_vjp
    def doubled(x):
        return 2 * x

    doubled.defvjp(lambda x: (2 * x, (x, x, x[0])), lambda kept, dy: (2 * dy,))

    for function, kept in ((jnp.square, 4), (jnp.exp, 0), (doubled, 4)):  # exp' is its output

        def apply(x, params, state, function=function):
            return function(x), state

        layer = Layer(apply, {}, {}, tuple)
        assert residual_bytes(layer, LayerSpec(SHAPE, "float32")) == kept


NONE = {"forward": 0, "backward": 1}  # the gradient of the parameters
ONE = {"forward": 1, "backward": 1}


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("bias", {"jit": NONE, "shard_map": NONE}),
        ("flax", {"jit": ONE, "shard_map": ONE}),
        ("flax_two_pass", {"shard_map": {"forward": 2, "backward": 2}}),
        ("ours", {"jit": ONE, "shard_map": ONE}),
    ],
)
def test_collectives_of_the_compiled_layer(name, counts):
    assert counts.items() <= collectives(name).items()


def test_a_layer_that_cannot_be_spread_is_named_as_such(monkeypatch):
    def refuse(name, backward):
        raise ValueError("no axis name\nand a second line")

    monkeypatch.setattr(batch_norm_collectives, "_under_shard_map", refuse)
    assert collectives("bias") == {"jit": NONE, "shard_map": {"refused": "no axis name"}}


def test_programs_wait_for_each_call_on_cpus(monkeypatch):
    """Red where calls overlap: XLA runs several at once on CPUs, and their times are none."""
    waited = []

    class Output:
        def block_until_ready(self):
            waited.append(self)

    program = JaxProgram("bias", LayerSpec(SHAPE, "float32"), make_inputs(SHAPE))
    monkeypatch.setattr(program, "_step", lambda *_: (Output(),))
    program.run(3)
    assert len(set(waited)) == 3


def test_each_cell_keeps_its_own_programs_and_times(monkeypatch):
    """Red where shapes, dtypes or activations change places."""
    asked = []

    class Fake:
        def __init__(self, name, spec, inputs):
            asked.append((name, spec.shape, spec.dtype, spec.relu))

        def run(self, calls):
            pass

        def temporary_bytes(self):
            return len(asked)

    monkeypatch.setattr(batch_norm, "make_program", Fake)
    config = batch_norm.Config(
        shapes=("2x3", "4x3"), contestants=("ours", "bias"), measures=("memory",), repeats=1
    )
    monkeypatch.setattr(batch_norm, "_residuals", lambda *_: [])
    result = batch_norm.measure(config)
    cells = [(c["shape"], c["dtype"], c["activation"] == "relu") for c in result["cells"]]
    wanted = itertools.product((False, True), ("float32", "bfloat16"), ((2, 3), (4, 3)))
    assert cells == [(shape, dtype, relu) for relu, dtype, shape in wanted]
    assert asked[2:] == [(name, *cell) for cell in cells for name in ("ours", "bias")]
    assert [c["temporary_bytes"]["ours"] for c in result["cells"]] == list(range(4, 20, 2))


def test_inputs_are_the_same_at_every_call_and_rounded_by_the_contestant():
    first, second = make_inputs(SHAPE), make_inputs(SHAPE)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert make_inputs(SHAPE, offset=1e3).x.mean() == pytest.approx(1e3, abs=1)
    layer = make_layer("ours", LayerSpec(SHAPE, "bfloat16"), first)
    rounded = to_layout(first.x, layer, "bfloat16")
    assert rounded.dtype == jnp.bfloat16
    assert rounded.shape == SHAPE


def test_the_table_compares_medians_and_names_targets():
    """Every number here can be checked by hand."""
    lines = batch_norm.table(_made_result()).splitlines()
    assert lines[:4] == [
        "| input | bnjax, ms | x Flax Linen | target | x PyTorch, eager | target | of the floor |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| 4x10, float32 | 2.00 (1.50 to 2.50) | 0.50 | 0.7 | 2.00 | 1.1 | 64 % |",
        "| 4x10, bfloat16 + ReLU | 2.00 (1.50 to 2.50) | 0.50 |  | 2.00 |  | 32 % |",
    ]
    for line in (
        "| Haiku | not measured: gone |",
        "| bnjax | 2 |  |",
        "| Flax Linen | 11 | 3.00 |",
        "| bnjax | 1.0e-03 | 1.0e-03 | 1.0e-03 |",
        "| Flax Linen, use_fast_variance=False | not finite | 1.0e-03 | 1.0e-03 |",
        "| bnjax | 1 | 1 | 1 | 2 |",
        "| Flax Linen | 1 | 1 | no | no |",
        "- Target: at most 0.7 x Flax Linen in float32: 0.50 at 4x10: reached.",
        "- Target: at most 1.1 x PyTorch, eager in float32: 2.00 at 4x10: missed.",
        "- Target: bnjax keeps at most 2 bytes a value in bfloat16 with ReLU: 2: reached.",
        "- Target: one collective forward and one backward under jit: 1 forward, 1 backward: "
        "reached.",
        "- Target: one collective forward and one backward under shard_map: 1 forward, 2 backward: "
        "missed.",
    ):
        assert line in lines, line
    assert not any("bfloat16" in line and line.startswith("- Target: at most") for line in lines)


def test_on_an_accelerator_the_target_is_a_share_of_the_floor():
    result = _made_result()
    result["environment"] |= {"backend": "gpu", "device_kind": "G"}
    targets = [line for line in batch_norm.table(result).splitlines() if "Target: " in line]
    assert targets[0] == "- Target: 80 % of the floor, float32, 4x10: 64 %: missed."
    assert not any("x Flax" in line for line in targets)


def _made_result():
    """1,000 bytes a ms: 4 x 10 float32 values, eight times, need 1.28 ms."""
    times = {
        "ours": [1e-3, 2e-3, 3e-3],
        "flax": [4e-3] * 3,
        "torch": [1e-3] * 3,
        "torch_one_thread": [8e-3] * 3,
    }
    cell = {
        "shape": [4, 10],
        "seconds": times,
        "page_faults": {name: [0.0] * 3 for name in times},
        "temporary_bytes": {"ours": None, "flax": 3_000_000},
    }
    error = {"y": 1e-3, "dx": 1e-3, "dscale": 1e-3}
    return {
        "config": {
            "shapes": ["4x10"],
            "repeats": 3,
            "turn_seconds": 0.1,
            "accuracy_shape": "4x10",
        },
        "environment": {"backend": "cpu", "processor": "P", "python": "3", "versions": {}},
        "peers": {},
        "allocation": {},
        "missing": {"haiku": "gone"},
        "bytes_per_second": 1e6,
        "cells": [
            {**cell, "dtype": "float32", "activation": "none"},
            {**cell, "dtype": "bfloat16", "activation": "relu"},
        ],
        "residual_bytes": [
            {"dtype": "bfloat16", "activation": "relu", "per_value": {"ours": 2.0, "flax": 11.0}}
        ],
        "accuracy": [
            {"offset": 0.0, "errors": {"ours": error, "flax_two_pass": {**error, "y": None}}}
        ],
        "collectives": {
            "ours": {
                "jit": {"forward": 1, "backward": 1},
                "shard_map": {"forward": 1, "backward": 2},
            },
            "flax": {"jit": {"forward": 1, "backward": 1}, "shard_map": {"refused": "no"}},
        },
    }
