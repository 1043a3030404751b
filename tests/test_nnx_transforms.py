"""The NNX module under jit, grad, vmap, pmap, scan, remat and eval_shape, and with an optimizer."""

from functools import partial

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax_layers import CLOSE, GRADIENTS, batches, weights
from nnx_views import pure, stats_of, view
from tolerances import PARALLEL, assert_trees_close, assert_trees_equal

from bnjax.nnx import BatchNorm


@nnx.jit
def call(layer, x):
    return layer(x)


class Net(nnx.Module):
    """A dense layer on each side."""

    def __init__(self, layer=BatchNorm, *, rngs, **settings):
        self.dense = nnx.Linear(5, 4, rngs=rngs)
        self.norm = layer(4, rngs=rngs, **settings)
        self.out = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        return self.out(jnp.tanh(self.norm(self.dense(x))))


def test_a_training_step_with_an_optimizer():
    """Parity with Flax through nnx.jit, nnx.value_and_grad and nnx.Optimizer; then evaluation."""

    @nnx.jit
    def train(model, optimizer, x):
        loss, grads = nnx.value_and_grad(lambda model: jnp.mean((model(x) - 1) ** 2))(model)
        optimizer.update(model, grads)
        return loss

    models = [
        Net(layer, rngs=nnx.Rngs(0), momentum=0.7, **settings)
        for layer, settings in ((BatchNorm, {}), (nnx.BatchNorm, {"use_fast_variance": False}))
    ]
    for model in models:
        optimizer = nnx.Optimizer(model, optax.sgd(0.5), wrt=nnx.Param)
        losses = [train(model, optimizer, x) for x in batches((6, 5), 4)]
        assert losses[-1] < losses[0]
        model.eval()
    assert_trees_close(*(pure(nnx.state(model)) for model in models), GRADIENTS)
    assert_trees_close(*(model(batches((6, 5))[0]) for model in models), GRADIENTS)


def test_ensembles_by_vmap():
    """Each member has its own parameters and statistics, as if it were alone."""

    @nnx.jit
    @nnx.vmap(in_axes=0)
    def create(key):
        return Net(rngs=nnx.Rngs(key))

    @nnx.jit
    @nnx.vmap(in_axes=(0, None))
    def each(model, x):
        return model(x)

    keys, x = jax.random.split(jax.random.key(0), 3), batches((16, 5))[0]
    ensemble = create(keys)
    ys = each(ensemble, x)
    for i, key in enumerate(keys):
        alone = Net(rngs=nnx.Rngs(key))
        assert_trees_close(ys[i], call(alone, x), CLOSE)
        members = jax.tree.map(lambda leaf, i=i: leaf[i], pure(nnx.state(ensemble, nnx.BatchStat)))
        assert_trees_close(members, stats_of(alone), CLOSE)


@pytest.mark.slow
def test_one_batch_by_vmap_with_an_axis_name():
    x = batches((4, 6, 5))[0]
    layer = BatchNorm(5, axis_name="data", rngs=nnx.Rngs(0))
    whole = BatchNorm(5, rngs=nnx.Rngs(0))

    @nnx.vmap(in_axes=(None, 0), out_axes=0, axis_name="data")
    def each(layer, x):
        return layer(x)

    assert_trees_close(each(layer, x).reshape(24, 5), whole(x.reshape(24, 5)), PARALLEL)
    assert_trees_close(stats_of(layer), stats_of(whole), PARALLEL)


@pytest.mark.parametrize("groups", [None, [[0, 1, 2, 3], [4, 5, 6, 7]]])
def test_axis_name_under_pmap(groups):
    x = batches((8, 4, 5), 1)[0]
    results = []
    settings = {"axis_name": "data", "axis_index_groups": groups, "rngs": nnx.Rngs(0)}
    for layer in (BatchNorm(5, **settings), nnx.BatchNorm(5, use_fast_variance=False, **settings)):
        graph, state = nnx.split(layer)

        def each(state, x, graph=graph):
            layer = nnx.merge(graph, state)
            return layer(x), stats_of(layer)

        results.append(jax.pmap(each, axis_name="data", in_axes=(None, 0))(state, x))
    assert_trees_close(*results, PARALLEL)


def test_scan_over_steps_carries_the_statistics():
    """The result of a loop of compiled steps."""
    xs = jnp.stack(batches((16, 5), 4))
    loop, scanned = (BatchNorm(5, averaging="cumulative", rngs=nnx.Rngs(0)) for _ in range(2))
    for x in xs:
        call(loop, x)

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def scan(layer, x):
        return layer, layer(x)

    scan(scanned, xs)
    assert_trees_close(stats_of(scanned), stats_of(loop), CLOSE)
    np.testing.assert_array_equal(stats_of(scanned)["count"], 4)


def test_scan_over_layers_stacks_them():
    @nnx.vmap(in_axes=0)
    def create(key):
        return BatchNorm(5, rngs=nnx.Rngs(key))

    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    def deep(layer, x):
        return 2 * layer(x) + 1

    layers, x = create(jax.random.split(jax.random.key(0), 3)), batches((16, 5))[0]
    y = deep(layers, x)
    for i in range(3):
        alone = BatchNorm(5, rngs=nnx.Rngs(0))
        x = 2 * alone(x) + 1
        assert_trees_close(
            jax.tree.map(lambda a, i=i: a[i], stats_of(layers)), stats_of(alone), CLOSE
        )
    assert_trees_close(y, x, CLOSE)


def test_remat_moves_the_statistics_once():
    x = batches((16, 5))[0]
    plain, remat = (BatchNorm(5, averaging="cumulative", rngs=nnx.Rngs(0)) for _ in range(2))

    @partial(nnx.jit, static_argnums=2)
    def gradient(layer, x, transform):
        call = transform(lambda layer, x: layer(x))
        return nnx.grad(lambda layer: jnp.sum(weights(x) * call(layer, x) ** 2))(layer)

    grads = [
        pure(gradient(layer, x, transform))
        for layer, transform in ((plain, lambda f: f), (remat, nnx.remat))
    ]
    assert_trees_close(*grads, CLOSE)
    assert_trees_equal(stats_of(remat), stats_of(plain))


def test_eval_shape():
    """The layer is an argument, or frozen; Flax's cannot take the second way (google/flax#4734)."""
    layer = BatchNorm(5, rngs=nnx.Rngs(0))
    before = stats_of(layer)
    x = jax.ShapeDtypeStruct((16, 5), jnp.float32)
    abstract = nnx.eval_shape(lambda: Net(rngs=nnx.Rngs(0)))
    ys = [
        nnx.eval_shape(lambda layer, x: layer(x), layer, x),
        nnx.eval_shape(view(layer, update_statistics=False), x),
        nnx.eval_shape(lambda x: BatchNorm(5, rngs=nnx.Rngs(0))(x), x),
    ]
    assert {(y.shape, y.dtype) for y in ys} == {((16, 5), jnp.dtype("float32"))}
    assert nnx.eval_shape(lambda net, x: net(x), abstract, x).shape == (16, 4)
    assert_trees_equal(stats_of(layer), before)
    with pytest.raises(flax.errors.TraceContextError, match="update_statistics=False"):
        nnx.eval_shape(layer, x)
