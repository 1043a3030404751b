"""Gradient accumulation against one big batch: in groups it is the same, as a whole it is not."""

from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from marks import slow

from bnjax.linen import BatchNorm
from bnjax.training.accumulation import accumulate, make_accumulating_step, split_batch
from bnjax.training.objectives import Metrics, classification_objective
from bnjax.training.optimizers import momentum_sgd
from bnjax.training.state import TrainState
from bnjax.training.steps import make_loss, make_train_step

MICRO, EXAMPLES, CLASSES = 3, 8, 4  # micro-batches, examples in each
CLOSE = {"rtol": 1e-4, "atol": 2e-6}  # float32, sums in another order; other groups: 1e-2


class Network(nn.Module):
    """Two normalizations: the second one's batch is what the first one made of it."""

    batch: str | int = "all"
    averaging: str = "ema"

    @nn.compact
    def __call__(self, x, train):
        norm = partial(
            BatchNorm,
            not train,
            momentum=0.7,
            batch=self.batch,
            averaging=self.averaging,
            running_var="unbiased",
        )
        x = nn.sigmoid(norm(name="norm1")(nn.Dense(6, use_bias=False, name="dense1")(x)))
        x = nn.sigmoid(norm(name="norm2")(nn.Dense(5, use_bias=False, name="dense2")(x)))
        return nn.Dense(CLASSES, name="logits")(x)


def loss_of(**settings):
    network = Network(**settings)

    def apply(variables, x):
        logits, updates = network.apply(variables, x, train=True, mutable=["batch_stats"])
        return logits, updates["batch_stats"]

    return make_loss(apply), apply


def draw():
    """Micro-batches of other means and spreads each, which other groups would mix."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(MICRO, EXAMPLES, 5)) * np.array([1, 2, 3])[:, None, None]
    x = x + rng.normal(size=(MICRO, 1, 5))
    labels = rng.integers(0, CLASSES, MICRO * EXAMPLES)
    images = jnp.asarray(x.reshape(MICRO * EXAMPLES, 5), jnp.float32)
    return images, jnp.asarray(labels, jnp.int32)


def variables_of(averaging="ema"):
    network = Network(averaging=averaging)
    variables = jax.eval_shape(
        lambda: network.init(jax.random.key(0), jnp.zeros((2, 5)), train=False)
    )
    rng = np.random.default_rng(1)

    def value(leaf):
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return jnp.full(leaf.shape, 2, leaf.dtype)
        return jnp.asarray(rng.uniform(0.5, 2, leaf.shape), leaf.dtype)

    return jax.tree.map(value, variables)


def big_batch(batch, averaging="ema"):
    """Gradient and statistics of all examples at once, normalized in groups or as a whole."""
    variables = variables_of(averaging)
    loss, _ = loss_of(batch=batch, averaging=averaging)

    def mean(params):
        total, (stats, _) = loss(params, variables["batch_stats"], draw())
        return total / (MICRO * EXAMPLES), stats

    return jax.jit(jax.grad(mean, has_aux=True))(variables["params"])


@cache
def compiled(statistics, averaging):
    return jax.jit(partial(accumulate, loss_of(averaging=averaging)[0], statistics=statistics))


def accumulated(batches=None, *, statistics="once", averaging="ema"):
    variables = variables_of(averaging)
    batches = split_batch(draw(), MICRO) if batches is None else batches
    run = compiled(statistics, averaging)
    return run(variables["params"], variables["batch_stats"], batches)


def assert_trees_close(actual, desired, **tolerance):
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    leaves = jax.tree_util.tree_leaves_with_path(actual)
    for (path, leaf), wanted in zip(leaves, jax.tree.leaves(desired), strict=True):
        name = jax.tree_util.keystr(path)
        assert leaf.dtype == wanted.dtype, name
        np.testing.assert_allclose(leaf, wanted, **(tolerance or CLOSE), err_msg=name)


def largest_difference(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(jnp.abs(x - y).max()) for x, y in pairs)


@pytest.mark.parametrize("averaging", ["ema", slow("ema_debiased"), slow("cumulative")])
def test_it_is_one_batch_normalized_in_groups(averaging):
    """Gradient and statistics. Red for a sum in place of a mean, or counts that are averaged."""
    result = accumulated(averaging=averaging)
    gradient, stats = big_batch(EXAMPLES, averaging)
    assert_trees_close(result.gradient, gradient)
    assert_trees_close(result.batch_stats, stats)


def test_it_is_not_one_batch_normalized_as_a_whole():
    """What accumulation cannot do, and how far off it is here."""
    result = accumulated()
    gradient, stats = big_batch("all")
    assert largest_difference(result.gradient, gradient) > 1e-2
    assert largest_difference(result.batch_stats, stats) > 1e-2


def test_metrics_are_sums():
    loss, _ = loss_of(batch=EXAMPLES)
    variables = variables_of()
    _, (_, metrics) = jax.jit(loss)(variables["params"], variables["batch_stats"], draw())
    assert_trees_close(accumulated().metrics, metrics)


def test_statistics_may_move_with_each_micro_batch():
    """As in as many steps that leave the parameters alone; the gradient is the same."""
    once, each = accumulated(), accumulated(statistics="each")
    variables, loss = variables_of(), jax.jit(loss_of()[0])
    stats = variables["batch_stats"]
    for batch in zip(*split_batch(draw(), MICRO), strict=True):
        _, (stats, _) = loss(variables["params"], stats, batch)
    assert_trees_close(each.batch_stats, stats)
    assert_trees_close(each.gradient, once.gradient, rtol=0, atol=0)
    assert largest_difference(each.batch_stats, once.batch_stats) > 1e-2


def linear_loss(params, batch_stats, batch):
    """Of a mean of masked examples: normalization with statistics that are its mean."""
    x, mask = batch
    count = mask.sum(dtype=jnp.int32)
    total = jnp.where(mask, x * params["w"], 0).sum()
    mean = jnp.where(mask, x, 0).sum() / jnp.maximum(count, 1).astype(x.dtype)
    stats = {"mean": jnp.where(count > 0, 0.5 * batch_stats["mean"] + 0.5 * mean, jnp.nan)}
    return total, (stats, Metrics(total, jnp.int32(0), count))


def accumulate_linear(mask, dtype=jnp.float32, old=8.0):
    x = jnp.arange(12, dtype=jnp.float32).reshape(3, 4)
    params, stats = {"w": jnp.asarray(2, dtype)}, {"mean": jnp.float32(old)}
    loss = linear_loss
    if dtype != jnp.float32:

        def loss(params, stats, batch):
            return linear_loss({"w": params["w"].astype(jnp.float32)}, stats, batch)

    run = jax.jit(partial(accumulate, loss, statistics="once"))
    return run(params, stats, (x, jnp.asarray(mask)))


def test_micro_batches_count_by_their_examples():
    """4, 1 and 0 of them; the last one's statistics are NaN. Red for a mean of means."""
    mask = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
    result = accumulate_linear(mask)
    np.testing.assert_allclose(result.gradient["w"], (0 + 1 + 2 + 3 + 4) / 5, rtol=1e-6)
    expected = 0.5 * 8 + 0.5 * (4 * 1.5 + 1 * 4) / 5
    np.testing.assert_allclose(result.batch_stats["mean"], expected, rtol=1e-6)
    assert result.metrics.examples == 5


def test_complex_means_are_averaged():
    """By their examples; red for the largest of them. One that begins as a real one is refused."""
    mask = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
    x = jnp.arange(12, dtype=jnp.float32).reshape(3, 4)

    def loss(params, stats, batch):
        total, (new, metrics) = linear_loss(params, {"mean": stats["mean"].real}, batch)
        return total, ({"mean": jax.lax.complex(new["mean"], -new["mean"])}, metrics)

    def result_from(mean):
        run = jax.jit(partial(accumulate, loss, statistics="once"))
        return run({"w": jnp.float32(2)}, {"mean": mean}, (x, jnp.asarray(mask)))

    expected = 0.5 * 8 + 0.5 * (4 * 1.5 + 1 * 4) / 5
    result = result_from(jnp.complex64(8 - 8j)).batch_stats["mean"]
    np.testing.assert_allclose(result, expected * (1 - 1j), rtol=1e-6)
    with pytest.raises(ValueError, match=r"batch_stats has mean of float32, .* complex64: conver"):
        result_from(jnp.float32(8))


def test_no_example_at_all_moves_nothing():
    result = accumulate_linear(np.zeros((3, 4), bool))
    assert (result.gradient["w"], result.batch_stats["mean"]) == (0, 8)


def test_bfloat16_gradients_are_summed_in_float32():
    """Red where 256 + 1 is: bfloat16 has eight significant bits."""
    x = jnp.array([[256.0], [1.0], [1.0], [1.0], [1.0]])
    params, stats = {"w": jnp.bfloat16(1)}, {"mean": jnp.float32(0)}

    def loss(params, stats, batch):
        return linear_loss({"w": params["w"].astype(jnp.float32)}, stats, batch)

    run = jax.jit(partial(accumulate, loss, statistics="once"))
    result = run(params, stats, (x, np.ones((5, 1), bool)))
    assert result.gradient["w"].dtype == jnp.bfloat16
    assert result.gradient["w"] == 52  # 260 / 5; 256 / 5 rounds to 51.25


def test_a_step_equals_one_of_a_batch_in_groups():
    """Through momentum, three times; and it is one step, traced once."""
    tx = momentum_sgd(0.5)
    variables = variables_of()
    params = variables["params"]
    start = TrainState(jnp.int32(0), params, variables["batch_stats"], tx.init(params))
    traces = []

    def counted(params, stats, batch):
        traces.append(1)
        return loss_of()[0](params, stats, batch)

    step = jax.jit(make_accumulating_step(counted, tx, statistics="once"))
    whole = jax.jit(make_train_step(loss_of(batch=EXAMPLES)[1], tx))
    state, wanted = start, start
    traced = []
    for _ in range(3):
        state, metrics = step(state, split_batch(draw(), MICRO))
        wanted, expected = whole(wanted, draw())
        assert_trees_close(metrics, expected)
        traced.append(len(traces))
    assert state.step == 3
    assert len(set(traced)) == 1
    assert_trees_close(state, wanted, rtol=5e-4, atol=1e-5)


def test_examples_divided_over_devices_give_the_same():
    """Each micro-batch over all devices: its batch is all of its examples."""
    mesh = Mesh(np.array(jax.devices()), ("data",))
    batches = jax.device_put(split_batch(draw(), MICRO), NamedSharding(mesh, P(None, "data")))
    result, wanted = accumulated(batches), accumulated()
    assert_trees_close(result.gradient, wanted.gradient)
    assert_trees_close(result.batch_stats, wanted.batch_stats)


def test_keys_among_the_batches_are_one_for_each_micro_batch():
    seen = jax.random.split(jax.random.key(0), MICRO)

    def loss(params, stats, batch):
        total = params["w"] * jax.random.normal(batch["key"])
        return total, (stats, Metrics(total, jnp.int32(0), jnp.int32(1)))

    run = jax.jit(partial(accumulate, loss, statistics="each"))
    result = run({"w": jnp.float32(1)}, {}, {"key": seen})
    expected = np.mean(jax.vmap(jax.random.normal)(seen))
    np.testing.assert_allclose(result.gradient["w"], expected, rtol=1e-5)


def test_a_mask_and_another_objective_reach_the_loss():
    """`make_loss`: the third array of a batch is what counts."""
    images, labels = map(np.asarray, draw())
    mask = np.arange(len(labels)) % 3 > 0
    objective = classification_objective(label_smoothing=0.1)
    logits = images[:, :CLASSES]
    loss = make_loss(lambda variables, images: (images[:, :CLASSES], {}), objective)
    total, (_, metrics) = jax.jit(loss)({}, {}, (images, labels, mask))
    expected, _ = jax.jit(objective)(logits[mask], labels[mask])
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert metrics.examples == mask.sum()


def test_consecutive_examples_form_a_micro_batch():
    batch = {"x": np.arange(12).reshape(6, 2), "y": np.arange(6)}
    split = split_batch(batch, 3)
    assert split["x"].tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]]]
    assert split["y"].tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: split_batch(draw(), 5), r"micro_batches=5 must be >= 1 and divide the 24"),
        (lambda: split_batch(draw(), 0), r"micro_batches=0 must be"),
        (lambda: split_batch(draw(), 2.0), r"micro_batches must be an integer, got 2.0"),
        (lambda: split_batch((np.zeros(4), np.zeros(6)), 2), r"batch must .* \[\(4,\), \(6,\)\]"),
        (lambda: accumulated(statistics="mean"), r"statistics must be .*, got 'mean'"),
        (lambda: accumulated((jnp.zeros((0, 4, 5)),)), r"batches must .* one or more, got shapes"),
        (lambda: accumulated((jnp.float32(0),)), r"batches must .* got shapes \[\(\)\]"),
        (
            lambda: make_accumulating_step(linear_loss, momentum_sgd(0.1), statistics="all"),
            r"statistics must be one of 'once', 'each', got 'all'",
        ),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
