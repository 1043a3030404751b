"""The steps that tell what normalization adds. Nothing needs a chip."""

import json

import jax
import jax.numpy as jnp
import pytest
from jaxprs import equations

from experiments.compiled.normalization import ARMS, PROGRAMS, Config
from experiments.compiled.rows import measure
from experiments.compiled.tables import normalization_table

TINY = Config(programs=("convolutions",), topologies=("cpu:2",), batch_size=2, layers=2)


@pytest.fixture(scope="module", autouse=True)
def _standard_promotion():
    """Flax's batch normalization mixes bfloat16 and float32."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def result():
    """A small run, as its file would hold it."""
    return json.loads(json.dumps(measure("normalization", TINY)))


@pytest.mark.slow
def test_the_result_holds_configuration_provenance_and_figures(result):
    assert (result["schema"], result["benchmark"]) == (1, "normalization")
    assert result["config"]["topologies"] == ["cpu:2"]
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
    text = normalization_table(result)
    assert "**A stack of convolutions, value and gradient**" in text
    for label in ("bias alone", "Flax", "bnjax", "what it adds, bnjax / Flax"):
        assert f"| cpu:2 | {label} | " in text


@pytest.mark.usefixtures("short_network")
@pytest.mark.parametrize("arm", ARMS)
def test_a_training_step_is_whole_and_in_bfloat16(arm):
    """Statistics move, parameters are float32, and no convolution runs in another type."""
    config = Config(image_size=64, width=0.125)
    step = PROGRAMS["bn_inception"](config, ARMS[arm], 4)
    state, metrics = jax.eval_shape(step.function, step.replicated, step.batch)
    assert jax.tree.structure(state) == jax.tree.structure(step.replicated)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert bool(state.batch_stats) == (arm != "bias")
    assert metrics.loss.shape == ()
    kinds = {
        equation.outvars[0].aval.dtype
        for equation in equations(jax.make_jaxpr(step.function)(step.replicated, step.batch))
        if equation.primitive.name == "conv_general_dilated"
    }
    assert kinds == {jnp.dtype("bfloat16")}


@pytest.mark.usefixtures("short_network")
def test_the_arms_differ_in_normalization_alone():
    """Equal parameters: a bias stands where a norm's would, a scale comes with the norm."""
    sizes = {}
    for arm, norm in ARMS.items():
        step = PROGRAMS["bn_inception"](Config(image_size=64, width=0.125), norm, 4)
        leaves = jax.tree_util.tree_leaves_with_path(step.replicated.params)
        sizes[arm] = {}
        for path, leaf in leaves:
            kind = path[-1].key
            sizes[arm][kind] = sizes[arm].get(kind, 0) + leaf.size
    assert sizes["flax"] == sizes["bnjax"]
    assert sizes["bias"] == {kind: n for kind, n in sizes["bnjax"].items() if kind != "scale"}
