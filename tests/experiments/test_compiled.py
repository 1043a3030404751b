"""The benchmark of compiled programs: what it compiles, and its table. Nothing needs a chip."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jaxprs import equations

from bnjax.compilers import topologies
from bnjax.compilers.topologies import MissingCompilerError
from experiments.benchmarks import compiled
from experiments.benchmarks.compiled import ARMS, PROGRAMS, Config, measure, table

TINY = Config(programs=("convolutions",), topologies=("cpu:2",), batch_size=2, layers=2)


@pytest.fixture(scope="module", autouse=True)
def _standard_promotion():
    """Flax's batch normalization mixes bfloat16 and float32."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def result():
    """A small run, as its file would hold it."""
    return json.loads(json.dumps(measure(TINY)))


def test_the_result_holds_configuration_provenance_and_figures(result):
    assert (result["schema"], result["benchmark"]) == (1, "compiled")
    assert result["config"]["topologies"] == ["cpu:2"]
    assert result["environment"]["versions"]["jax"] == jax.__version__
    assert result["missing"] == {}
    assert [row["arm"] for row in result["rows"]] == ["bias", "flax", "bnjax"]
    for row in result["rows"]:
        assert (row["program"], row["topology"], row["platform"]) == (
            "convolutions",
            "cpu:2",
            "cpu",
        )
        assert row["devices"] == 2
        assert row["bytes_accessed"] > 0
        assert row["peak_bytes"] > row["argument_bytes"]


def test_each_device_holds_the_parameters_and_its_own_examples(result):
    """Red where the batch is that of all devices, or of none."""
    kernels, biases = 9 * 64 * 128 + 9 * 128 * 128, 2 * 128
    images = TINY.batch_size * 56 * 56 * 64
    assert result["rows"][0]["argument_bytes"] == 4 * (kernels + biases) + 2 * images


def test_normalization_is_over_all_devices_and_costs_collectives(result):
    """Red where the batch is not split, or each device normalizes by itself."""
    bias, flax, bnjax = (row["collectives"]["all-reduce"] for row in result["rows"])
    assert bias["count"] >= 1
    assert bnjax["count"] >= bias["count"] + TINY.layers
    assert flax["count"] > bias["count"]


def test_the_work_of_all_arms_is_the_same(result):
    """Red where one arm has other widths or layers: products outweigh the rest."""
    bias, flax, bnjax = (row["flops"] for row in result["rows"])
    assert 1 < flax / bias < 1.1
    assert 1 < bnjax / bias < 1.1


def test_the_table_shows_a_measured_result(result):
    text = table(result)
    assert "**A stack of convolutions, value and gradient**" in text
    for label in ("bias alone", "Flax", "bnjax", "what it adds, bnjax / Flax"):
        assert f"| cpu:2 | {label} | " in text


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_a_training_step_is_whole_and_in_bfloat16(arm):
    """Statistics move, parameters are float32, and no convolution runs in another type."""
    config = Config(image_size=64, width=0.125)
    program = PROGRAMS["bn_inception"](config, ARMS[arm], 4)
    state, metrics = jax.eval_shape(program.function, program.shared, program.split)
    assert jax.tree.structure(state) == jax.tree.structure(program.shared)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert bool(state.batch_stats) == (arm != "bias")
    assert metrics.loss.shape == ()
    kinds = {
        equation.outvars[0].aval.dtype
        for equation in equations(jax.make_jaxpr(program.function)(program.shared, program.split))
        if equation.primitive.name == "conv_general_dilated"
    }
    assert kinds == {jnp.dtype("bfloat16")}


def test_the_arms_differ_in_normalization_alone():
    """As many parameters each: a bias stands where a norm's would, a scale comes with the norm."""
    sizes = {}
    for arm, norm in ARMS.items():
        program = PROGRAMS["bn_inception"](Config(image_size=64, width=0.125), norm, 4)
        leaves = jax.tree_util.tree_leaves_with_path(program.shared.params)
        sizes[arm] = {}
        for path, leaf in leaves:
            kind = path[-1].key
            sizes[arm][kind] = sizes[arm].get(kind, 0) + leaf.size
    assert sizes["flax"] == sizes["bnjax"]
    assert sizes["bias"] == {kind: n for kind, n in sizes["bnjax"].items() if kind != "scale"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"programs": ("resnet",)}, "programs: unknown 'resnet'; choose from bn_inception, conv"),
        ({"programs": ()}, "programs must be different names, one at least"),
        ({"topologies": ("cpu:1", "cpu:1")}, "topologies must be different names"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"layers": -1}, "layers must be >= 1, got -1"),
        ({"width": 0.0}, "width must be > 0, got 0.0"),
    ],
)
def test_wrong_settings_say_what_is_wrong(given, said):
    with pytest.raises(ValueError, match=said):
        Config(**given)


@pytest.fixture
def no_compilers(monkeypatch):
    """JAX as it is without libtpu and without its CUDA plugin."""

    def describe(*, platform, **_):
        if platform == "tpu":
            raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology.")
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr(topologies.jax_topologies, "get_topology_desc", describe)


def test_a_missing_compiler_leaves_the_others(no_compilers, monkeypatch):
    cost = {"platform": "cpu"}
    monkeypatch.setattr(compiled, "_compile", lambda *_: cost)
    monkeypatch.setattr(compiled, "_json", lambda cost: cost)
    config = Config(programs=("convolutions",), topologies=("v5e:1x1", "cpu:2", "h100:1"))
    result = measure(config)
    assert len(result["rows"]) == len(ARMS)
    assert set(result["missing"]) == {"v5e:1x1", "h100:1"}
    assert "bnjax[gpu-aot]" in result["missing"]["h100:1"]
    assert "- Not compiled: v5e:1x1: " in table({**result, "rows": []})


def test_a_run_that_was_cut_short_goes_on(tmp_path, monkeypatch):
    """Red if a row is compiled twice, lost, or taken over under other sizes."""
    asked = []

    def stop_at(row):
        def compile_one(make, config, norm, topology):
            if len(asked) == row:
                raise KeyboardInterrupt
            asked.append(norm)
            return {"bytes_accessed": len(asked)}

        monkeypatch.setattr(compiled, "_compile", compile_one)

    monkeypatch.setattr(compiled, "_json", lambda cost: cost)
    monkeypatch.setattr(compiled, "environment", lambda: {"git": {"commit": "a", "dirty": False}})
    config, keep = Config(programs=("convolutions",), topologies=("cpu:1",)), tmp_path / "rows"
    stop_at(2)
    with pytest.raises(KeyboardInterrupt):
        measure(config, keep)
    stop_at(None)
    rows = measure(config, keep)["rows"]
    assert asked == list(ARMS.values())
    assert [(row["arm"], row["bytes_accessed"]) for row in rows] == [
        *zip(ARMS, (1, 2, 3), strict=True)
    ]
    assert not keep.exists()

    asked.clear()
    stop_at(2)
    with pytest.raises(KeyboardInterrupt):
        measure(config, keep)
    stop_at(None)
    measure(dataclasses.replace(config, batch_size=2), keep)
    assert len(asked) == 2 + len(ARMS)


def test_nothing_to_compile_with_is_an_error(no_compilers):
    with pytest.raises(MissingCompilerError, match="gpu-aot"):
        measure(Config(topologies=("v5e:1x1", "h100:1")))


def test_a_wrong_topology_is_found_before_anything_is_compiled(monkeypatch):
    monkeypatch.setattr(compiled, "_compile", None)
    with pytest.raises(ValueError, match="unknown chip 'v9'"):
        measure(Config(topologies=("cpu:1", "v9:1")))


def test_importing_the_benchmark_starts_no_backend_and_loads_no_compiler():
    """With a platform's package installed, nothing else changes."""
    lines = [
        "import os, sys",
        "before = dict(os.environ)",
        "import jax",
        "with_jax = dict(os.environ)",
        "import experiments.benchmarks.compiled",
        "import jax._src.xla_bridge as bridge",
        "assert not bridge._backends, 'importing starts a backend'",
        "assert dict(os.environ) == with_jax",
    ]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "\n".join(lines)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def row(topology, arm, gigabytes, milliseconds, megabytes, collectives, kernels):
    return {
        "program": "bn_inception",
        "arm": arm,
        "platform": "cuda" if topology.startswith("h") else "tpu",
        "topology": topology,
        "bytes_accessed": gigabytes * 1e9,
        "seconds": None if milliseconds is None else milliseconds / 1e3,
        "peak_bytes": megabytes * 10**6,
        "collectives": {
            kind: {"count": count, "bytes": 1_000 * count} for kind, count in collectives.items()
        },
        "kernels": kernels,
    }


MADE = {
    "config": {
        "programs": ["bn_inception"],
        "topologies": ["v5e:1x1", "h100:8", "v4:2x2x1"],
        "batch_size": 128,
        "image_size": 224,
        "width": 1.0,
        "layers": 6,
    },
    "environment": {"processor": "P", "python": "3", "versions": {"jax": "1"}},
    "compilers": {"libtpu": "2"},
    "missing": {"v4:2x2x1": "v4:2x2x1: no libtpu."},
    "rows": [
        row("v5e:1x1", "bias", 4.0, 9.0, 600, {}, 50),
        row("v5e:1x1", "flax", 5.0, 10.0, 700, {}, 100),
        row("v5e:1x1", "bnjax", 4.5, 10.5, 700.5, {}, 75),
        row("h100:8", "bias", 6.0, None, 1_200, {"all-reduce": 1}, 50),
        row("h100:8", "flax", 9.0, None, 1_300, {"all-reduce": 7, "all-gather": 2}, 100),
        row("h100:8", "bnjax", 7.5, None, 1_320, {"all-reduce": 5}, 90),
    ],
}


def test_table_compares_what_normalization_adds():
    lines = table(MADE).splitlines()
    assert lines[4:14] == [
        "| v5e:1x1 | bias alone | 4.000 | 9.00 | 600.0 | 0 (0) | 50 |",
        "| v5e:1x1 | Flax | 5.000 | 10.00 | 700.0 | 0 (0) | 100 |",
        "| v5e:1x1 | bnjax | 4.500 | 10.50 | 700.5 | 0 (0) | 75 |",
        "| v5e:1x1 | bnjax / Flax | 0.900 | 1.050 | 1.001 |  | 0.750 |",
        "| v5e:1x1 | what it adds, bnjax / Flax | 0.50 | 1.50 |  |  | 0.50 |",
        "| h100:8 | bias alone | 6.000 |  | 1,200.0 | 1 (1) | 50 |",
        "| h100:8 | Flax | 9.000 |  | 1,300.0 | 9 (9) | 100 |",
        "| h100:8 | bnjax | 7.500 |  | 1,320.0 | 5 (5) | 90 |",
        "| h100:8 | bnjax / Flax | 0.833 |  | 1.015 | 0.556 | 0.900 |",
        "| h100:8 | what it adds, bnjax / Flax | 0.50 |  |  | 0.50 | 0.80 |",
    ]


def test_targets_name_what_is_above_flax():
    """Within a thousandth (700.5 MB against 700) counts as equal; 1.05 times the time does not."""
    notes = [line for line in table(MADE).splitlines() if line.startswith("- ")]
    where = "BN-Inception, a training step"
    assert notes[:4] == [
        "- Not compiled: v4:2x2x1: no libtpu.",
        f"- Target, {where}, v5e:1x1: not above Flax in bytes, time, peak memory, collectives, "
        "bytes of collectives: missed (time).",
        f"- Target, {where}, h100:8: adds at most 0.6 of the bytes that Flax adds: reached (0.50).",
        f"- Target, {where}, h100:8: not above Flax in peak memory: missed (peak memory).",
    ]
    assert "libtpu 2" in notes[-1]
