"""Recalibration of models as Flax's are written: lifted layers, lists as fields, `axis_name`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tolerances import PARALLEL, assert_close

from bnjax.linen import BatchNorm, model_moments
from bnjax.recalibration import recalibrate

CALLS = 3


class Block(nn.Module):
    train: bool
    norm: Callable[..., Any] = BatchNorm

    @nn.compact
    def __call__(self, x, _=None):
        x = nn.Dense(x.shape[-1], use_bias=False, name="dense")(x)
        return nn.sigmoid(self.norm(not self.train, name="norm")(x)), None


class Lifted(nn.Module):
    """`CALLS` blocks, one after the other or side by side."""

    how: str

    @nn.compact
    def __call__(self, x, *, train: bool):
        axes = {"params": 0, "batch_stats": 0}
        lift = {"variable_axes": axes, "split_rngs": {"params": True}}
        if self.how == "vmap":
            block = nn.vmap(Block, in_axes=None, out_axes=0, axis_size=CALLS, **lift)
            return block(train, name="blocks")(x)[0].sum(0)
        block = {"scan": Block, "remat": nn.remat(Block), "jit": nn.jit(Block)}[self.how]
        return nn.scan(block, length=CALLS, **lift)(train, name="blocks")(x)[0]


def make(model, x):
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), x)
    return jax.tree.map(np.asarray, variables)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["scan", "vmap", "remat", "jit"])
def test_lifted_layers(how):
    """Against float64; red if they keep mean 0 and variance 1, also once training is compiled."""
    model = Lifted(how)
    batches = np.float32(np.random.default_rng(0).normal(3, 2, (2, 16, 4)))
    variables = make(model, batches[0])
    model.apply(variables, batches[0], train=True, mutable=["batch_stats"])
    kernels = np.float64(variables["params"]["blocks"]["dense"]["kernel"])
    seen = np.zeros((2, 2, CALLS, 4))
    for index, batch in enumerate(np.float64(batches)):
        x = batch
        for call in range(CALLS):
            values = reference.forward((batch if how == "vmap" else x) @ kernels[call], None, None)
            seen[:, index, call] = values.mean, reference.running_variance(values, "unbiased")
            x = 1 / (1 + np.exp(-values.y))
    new = recalibrate(model, variables, list(batches), train=True)["batch_stats"]["blocks"]["norm"]
    for key, expected in zip(("mean", "var"), seen.mean(1), strict=True):
        assert_close(new[key], expected, PARALLEL, key)


class ResNet(nn.Module):
    """Written like Flax's example: a list, modules in partials, statistics over all devices."""

    stage_sizes: Sequence[int]
    norm: Callable[..., Any] = BatchNorm
    axis_name: Any = "batch"
    axis_index_groups: Any = None
    freeze: Sequence[str] = ()

    @nn.compact
    def __call__(self, x, *, train: bool = True):
        conv = partial(nn.Conv, kernel_size=(3, 3), use_bias=False)
        groups = {} if self.norm is nn.BatchNorm else {"axis_index_groups": self.axis_index_groups}

        def norm(name, **kwargs):
            running = not train or name in self.freeze
            layer = partial(self.norm, axis_name=self.axis_name, **groups, **kwargs)
            return layer(use_running_average=running, name=name)

        x = nn.relu(norm("stem")(conv(4, name="conv")(x)))
        for stage, size in enumerate(self.stage_sizes):
            for block in range(size):
                at = f"{stage}_{block}"
                y = nn.relu(norm(f"a{at}")(conv(4, name=f"conv_a{at}")(x)))
                y = norm(f"b{at}", scale_init=nn.initializers.zeros)(conv(4)(y))
                x = nn.relu(x + y)
        return x.mean((1, 2))


def images(count=16):
    return np.float32(np.random.default_rng(1).normal(1, 2, (count, 4, 4, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("axis_name", ["batch", ("a", "b")])
def test_a_resnet_with_a_list_and_an_axis(axis_name):
    """The same numbers without axis_name, on one device and on eight."""
    x = images()
    variables = make(ResNet([1, 1]), x)
    plain = recalibrate(ResNet((1, 1), axis_name=None), variables, [x, x + 1], train=True)
    model = ResNet([1, 1], axis_name=axis_name)
    one = recalibrate(model, variables, [x, x + 1], train=True)
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    placed = [jax.device_put(batch, NamedSharding(mesh, P("data"))) for batch in (x, x + 1)]
    everywhere = jax.device_put(variables, NamedSharding(mesh, P()))
    eight = recalibrate(model, everywhere, placed, train=True)
    for new, tolerance in ((one, PARALLEL), (eight, PARALLEL)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(new):
            where = jax.tree_util.keystr(path)
            expected = plain
            for key in path:
                expected = expected[key.key]
            assert_close(leaf, expected, tolerance, where)


@pytest.mark.slow
def test_a_mapped_axis_is_still_shared():
    """Moments of eight devices in a mapped axis are those of the whole batch."""
    x = images()
    model = ResNet([1])
    variables = make(model, x)
    moments = jax.vmap(
        lambda part: model_moments(model, variables, part), axis_name="batch", out_axes=0
    )(x.reshape(8, 2, *x.shape[1:]))
    whole = model_moments(model, variables, x)
    for name, node in whole.items():
        for got, expected in zip(moments[name], node, strict=True):
            assert_close(got, np.broadcast_to(expected, got.shape), PARALLEL, name)


@pytest.mark.slow
def test_layers_of_each_device():
    """Where nothing maps their axes, the batch is that of one device."""
    x = np.float32(np.random.default_rng(2).normal(3, 2, (8, 3)))
    layers = {
        batch: BatchNorm(False, batch=batch, axis_name=("a", "b")) for batch in ("device", "all")
    }
    variables = layers["device"].init(jax.random.key(0), x)
    device, whole = (
        recalibrate(layer, variables, [x, x[:6]])["batch_stats"] for layer in layers.values()
    )
    jax.tree.map(np.testing.assert_array_equal, device, whole)
    assert_close(device["mean"], (x.mean(0) + x[:6].mean(0)) / 2, PARALLEL)

    moments = jax.vmap(partial(model_moments, layers["device"], variables), axis_name="a")
    devices = np.float64(x).reshape(2, 4, 3)
    for key, expected in (("mean", devices.mean((0, 1))), ("var", devices.var(1).mean(0))):
        found = getattr(moments(x.reshape(2, 4, 3)), key)
        assert_close(found, np.broadcast_to(expected, (2, 3)), PARALLEL, key)

    alone = BatchNorm(False, batch="device")  # training refuses it, too
    with pytest.raises(ValueError, match="batch='device' needs axis_name"):
        recalibrate(alone, variables, [x])


def test_one_step_for_equal_models_with_lists():
    traces = []

    class Counting(nn.Module):
        widths: list[int]

        @nn.compact
        def __call__(self, x):
            traces.append(list(self.widths))
            for width in self.widths:
                x = BatchNorm(False)(nn.Dense(width)(x))
            return x

    x = np.float32(np.random.default_rng(0).normal(size=(4, 3)))
    variables = jax.jit(Counting([2, 3]).init)(jax.random.key(0), x)
    other = jax.jit(Counting([2, 2]).init)(jax.random.key(0), x)
    traces.clear()
    for _ in range(2):
        recalibrate(Counting([2, 3]), variables, [x, x])
    assert traces == [[2, 3]]
    recalibrate(Counting([2, 2]), other, [x])
    assert traces == [[2, 3], [2, 2]]


def test_one_step_for_equal_models_with_arrays():
    """Fails where each call compiles anew, and where another array is taken for the same."""
    traces = []

    class Scaled(nn.Module):
        scale: np.ndarray | jax.Array

        @nn.compact
        def __call__(self, x):
            traces.append(self.scale.tolist())
            return BatchNorm(False)(x * self.scale[None])

    x = np.float32(np.random.default_rng(0).normal(size=(4, 2)))
    variables = jax.jit(Scaled(np.ones(2, np.float32)).init)(jax.random.key(0), x)
    traces.clear()
    means = []
    for make in (np.float32, jnp.float32):
        for values in ([1, 2], [1, 2], [1, 3]):
            new = recalibrate(Scaled(make(values)), variables, [x])["batch_stats"]
            means.append(new["BatchNorm_0"]["mean"])
    assert traces == [[1, 2], [1, 3]] * 2
    for mean, values in zip(means, 2 * ([1, 2], [1, 2], [1, 3]), strict=True):
        assert_close(mean, np.float64(x).mean(0) * values, PARALLEL)


class Shared(nn.Module):
    """One layer's statistics carried through a loop."""

    how: str

    @nn.compact
    def __call__(self, x, *, train: bool):
        if self.how == "while":
            block = Block(train, name="blocks")
            start = (jnp.int32(0), x)
            return nn.while_loop(
                lambda _, carry: carry[0] < CALLS,
                lambda block, carry: (carry[0] + 1, block(carry[1])[0]),
                block,
                start,
                carry_variables="batch_stats",
            )[1]
        block = nn.scan(
            Block,
            variable_broadcast="params",
            variable_carry="batch_stats",
            split_rngs={"params": False},
            length=CALLS,
        )
        return block(train, name="blocks")(x)[0]


def test_layers_that_cannot_be_recalibrated_are_named():
    x = images()
    variables = make(ResNet([1], norm=nn.BatchNorm, axis_name=None), x)
    mixed = ResNet([1], norm=nn.BatchNorm, axis_name=None)
    with pytest.raises(ValueError, match=r"3 of 3 layers .* recalibrated: a0_0, b0_0, stem\."):
        recalibrate(mixed, variables, [x], train=True)
    uncalled = {**variables, "batch_stats": {**variables["batch_stats"]}}
    uncalled["batch_stats"]["head"] = {"norm": {"mean": np.zeros(2), "var": np.ones(2)}}
    with pytest.raises(ValueError, match=r"1 of 4 layers .* recalibrated: head/norm\."):
        recalibrate(ResNet([1]), uncalled, [x], train=True)
    with pytest.raises(ValueError, match=r"in training mode \(all layers use their statistics\)"):
        recalibrate(ResNet([1]), variables, [x], train=False)
    with pytest.raises(ValueError, match=r"in training mode \(the model has no BatchNorm\)"):
        recalibrate(nn.Dense(2), nn.Dense(2).init(jax.random.key(0), x), [x])
    groups = ResNet([1], axis_index_groups=[[0], [1]])
    with pytest.raises(ValueError, match=r"BatchNorm at stem: axis_index_groups .*'batch'"):
        recalibrate(groups, variables, [x], train=True)


@pytest.mark.slow
def test_frozen_layers_stay_whatever_their_library():
    x = images()
    model = ResNet([1], freeze=["stem"])
    variables = make(model, x)
    new = recalibrate(model, variables, [x], train=True)["batch_stats"]
    np.testing.assert_array_equal(new["stem"]["mean"], variables["batch_stats"]["stem"]["mean"])
    assert np.abs(new["a0_0"]["mean"]).min() > 0

    class Mixed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return BatchNorm(False, name="ours")(nn.BatchNorm(True, name="frozen")(x))

    variables = Mixed().init(jax.random.key(0), x)
    new = recalibrate(Mixed(), variables, [x])["batch_stats"]
    np.testing.assert_array_equal(new["frozen"]["mean"], np.zeros(3))
    assert np.abs(new["ours"]["mean"]).min() > 0.1


@pytest.mark.parametrize("how", ["scan", "while"])
def test_one_layer_in_a_loop_is_refused(how):
    """Though it trains."""
    x = np.ones((4, 3), np.float32)
    block = Block(True).init(jax.random.key(0), x)
    variables = {name: {"blocks": tree} for name, tree in block.items()}
    Shared(how).apply(variables, x, train=True, mutable=["batch_stats"])
    with pytest.raises(ValueError, match="BatchNorm at blocks/norm is called twice"):
        recalibrate(Shared(how), variables, [x], train=True)
