"""The layer benchmark's other contestants compute the layer that bnjax computes."""

import os

os.environ["KERAS_BACKEND"] = "jax"  # read when keras is imported

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import batch_norm
from experiments.benchmarks.batch_norm_collectives import collectives
from experiments.benchmarks.batch_norm_costs import exact, residual_bytes
from experiments.benchmarks.batch_norm_layers import LayerSpec
from experiments.benchmarks.batch_norm_programs import JaxProgram, make_layer, make_program
from experiments.benchmarks.batch_norm_values import make_inputs

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("promotion")]

PEERS = ("haiku", "equinox", "keras", "torch", "torch_one_thread")
SHAPES = ((12, 5), (6, 4, 3, 5))


@pytest.fixture
def promotion():
    """They rely on implicit promotion, of dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PEERS)
def test_peers_compute_the_layer_and_its_gradients(name, shape):
    """Red for another epsilon, layout or cotangent."""
    inputs = make_inputs(shape)
    result = make_program(name, LayerSpec(shape, "float32"), inputs).result()
    for actual, desired in zip(result, exact(inputs), strict=True):
        np.testing.assert_allclose(actual, desired, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", PEERS)
def test_peers_with_relu_agree_with_flax(name, dtype, shape):
    """And in bfloat16, to its rounding; another dtype inside would be off by more."""
    inputs, spec = make_inputs(shape), LayerSpec(shape, dtype, relu=True)
    result = make_program(name, spec, inputs).result()
    flax = JaxProgram("flax_two_pass", spec, inputs).result()
    tolerance = {"float32": 1e-4, "bfloat16": 2.0**-6}[dtype]
    for actual, desired in zip(result, flax, strict=True):
        np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["haiku", "equinox", "keras"])
def test_outputs_have_the_dtype_of_the_input_and_statistics_move(name):
    shape = SHAPES[1]
    inputs = make_inputs(shape, offset=2)
    layer = make_layer(name, LayerSpec(shape, "bfloat16"), inputs)
    x = jnp.asarray(np.moveaxis(inputs.x, -1, 1) if layer.channels_first else inputs.x, "bfloat16")
    y, after = layer.apply(x, layer.params, layer.state)
    assert y.dtype == jnp.bfloat16
    assert y.shape == x.shape
    moved = [
        bool(np.any(old != new))
        for old, new in zip(jax.tree.leaves(layer.state), jax.tree.leaves(after), strict=True)
    ]
    assert sum(moved) >= 2


def test_every_peer_is_measured():
    config = batch_norm.Config(
        shapes=("6x4x3x5",),
        dtypes=("float32",),
        activations=("none",),
        repeats=1,
        turn_seconds=1e-4,
        bandwidth_bytes=4096,
        bandwidth_tries=1,
        accuracy_shape="6x4x3x5",
        measures=("time", "memory", "accuracy"),
    )
    result = batch_norm.measure(config)
    assert result["missing"] == {}
    assert set(result["peers"]) == {"haiku", "equinox", "keras", "torch"}
    (cell,) = result["cells"]
    assert set(cell["seconds"]) == set(batch_norm.CONTESTANTS)
    text = batch_norm.table(result)
    assert "not measured" not in text
    assert "x PyTorch, eager in float32: " in text


def test_a_turn_of_one_thread_leaves_the_others_theirs(monkeypatch):
    """Red where the next contestant would run with one thread, too."""
    import torch

    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    inputs = make_inputs(SHAPES[0])
    make_program("torch_one_thread", LayerSpec(SHAPES[0], "float32"), inputs).run(1)
    assert threads == [1, torch.get_num_threads()]


@pytest.mark.parametrize(("name", "kept"), [("haiku", 8), ("equinox", 16), ("keras", 8)])
def test_peers_keep_several_copies_for_the_backward_pass(name, kept):
    spec = LayerSpec(SHAPES[1], "bfloat16")
    assert residual_bytes(make_layer(name, spec, make_inputs(SHAPES[1])), spec) == kept


def test_collectives_of_peers():
    """Keras has no axis name; Equinox's two axes are refused by shard_map's types."""
    one = {"forward": 1, "backward": 1}
    assert collectives("haiku") == {"jit": one, "shard_map": one}
    assert collectives("keras")["shard_map"] == {"refused": "no axis name"}
    assert "refused" in collectives("equinox")["shard_map"]
