"""One run on one device and on eight, by jit, shard_map and pmap: the same steps in float64."""

import itertools
import re
from functools import lru_cache

import eight_devices
import host_memory
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from marks import slow, slow_but
from small_runs import (
    EXAMPLES,
    RATE,
    STEPS,
    batch_of,
    float64_steps,
    make_apply,
    make_batches,
    make_model,
    make_state,
    make_step,
)
from tolerances import PARALLEL, assert_bitwise, assert_trees_close

from bnjax.compilers.hlo import parse
from bnjax.compilers.hlo_counts import collectives
from bnjax.training.accumulation import make_accumulating_step, split_batch
from bnjax.training.averaging import start_average, update_average
from bnjax.training.objectives import classification_metrics
from bnjax.training.optimizers import sgd
from bnjax.training.parallel import DataParallel
from bnjax.training.steps import make_loss, make_train_step, scan_steps

HOWS = ["jit", "shard_map", "pmap"]
# What steps compute is tested in all ways; what a step is made of in one, and by `-m slow` in all.
PARTS = slow_but(["jit"], HOWS)


@lru_cache
def over(how, devices=8):
    return DataParallel(how, devices=jax.devices()[:devices])


@lru_cache
def compiled(how, devices=8, **settings):
    """A step with the settings of `small_runs.make_model`."""
    parallel = over(how, devices)
    if settings.get("batch") == "device" and how == "jit":  # where a layer sees no devices
        settings["batch"] = EXAMPLES // devices
    return parallel.compile_train(make_step(parallel.axis_name, **settings))


def steps(parallel, step, state, batches):
    """The state on the host after a step for each batch, and the metrics' sums."""
    state, total = parallel.replicate(state), None
    for i in range(len(batches[0])):
        old = state
        state, metrics = step(old, parallel.split(batch_of(batches, i)))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old)), "not donated"
        metrics = parallel.fetch(metrics)
        total = metrics if total is None else jax.tree.map(np.add, total, metrics)
    return parallel.fetch(state), total


@lru_cache
def run(how, devices=8, *, key=None, count=STEPS, **settings):
    state = make_state(None if key is None else jax.random.key(key))
    step = compiled(how, devices, **settings)
    return steps(over(how, devices), step, state, make_batches(count))


def assert_expected(result, expected):
    state, metrics = result
    assert_trees_close(state.params, expected.params, PARALLEL)
    assert_trees_close(state.batch_stats, expected.batch_stats, PARALLEL)
    np.testing.assert_allclose(metrics.loss, expected.loss, rtol=1e-5)
    assert (metrics.correct, metrics.examples) == (expected.correct, expected.examples)


FAST = [("jit", 1, 4), ("jit", 8, 16), ("shard_map", 8, "all"), ("pmap", 8, "device")]


@pytest.mark.parametrize(
    ("how", "devices", "batch"),
    [
        place if place in FAST else slow(*place)
        for place in itertools.product(HOWS, (1, 8), ("all", "device", 4, 16))
    ],
)
def test_steps_equal_float64(how, devices, batch):
    """Groups of a device's examples, and of four devices'; masks that leave devices unequal.

    Red for a mean of devices' means, a gradient that is not summed or summed twice, moments of
    other groups, and examples out of order.
    """
    size = {"all": EXAMPLES, "device": EXAMPLES // devices}.get(batch, batch)
    expected = float64_steps(make_state(), make_batches(), size)
    state, metrics = run(how, devices, batch=batch)
    assert_expected((state, metrics), expected)
    assert state.step == STEPS


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("how", PARTS)
def test_dropout_does_not_depend_on_devices(how, devices):
    """Red if devices draw the same mask, if it depends on `how`, or does not on the step or key."""
    state, _ = run(how, devices, dropout=0.5, key=3)
    alone, _ = run("jit", 1, dropout=0.5, key=3)
    assert_trees_close(state.params, alone.params, PARALLEL)
    one_mask, _ = run("jit", 1, dropout=0.5, key=4)
    assert (
        np.abs(one_mask.params["dense1"]["kernel"] - alone.params["dense1"]["kernel"]).max() > 1e-3
    )
    assert jax.random.key_data(state.key).tolist() == [0, 3]


def test_each_step_drops_others():
    """From the same state but for the step: red if the key of a step is the run's."""
    step = jax.jit(make_step(dropout=0.5))
    start = make_state(jax.random.key(0))
    batch = batch_of(make_batches(), 0)
    first, later = (step(start._replace(step=np.int32(i)), batch)[0] for i in (0, 1))
    change = first.params["logits"]["kernel"] - later.params["logits"]["kernel"]
    assert np.abs(change).max() > 1e-3


@pytest.mark.parametrize("how", PARTS)
def test_many_steps_in_one_dispatch(how):
    parallel = over(how)
    many = parallel.compile_train(scan_steps(make_step(parallel.axis_name)), axis=1)
    batches = parallel.split(make_batches(), axis=1)
    state, metrics = parallel.fetch(many(parallel.replicate(make_state()), batches))
    assert_expected((state, metrics), float64_steps(make_state(), make_batches(), EXAMPLES))
    assert state.step == STEPS


@pytest.mark.parametrize("how", PARTS)
def test_bfloat16_computes_and_float32_keeps(how):
    """Three steps move the weights by 0.1; bfloat16 has 2^-8 of each activation."""
    state, _ = run(how, dtype=jnp.bfloat16)
    kept = jax.tree.leaves((state.params, state.batch_stats))
    assert {leaf.dtype for leaf in kept} == {np.dtype(np.float32)}
    expected = float64_steps(make_state(), make_batches(), EXAMPLES)
    assert_trees_close(state.params, expected.params, {"rtol": 0, "atol": 0.01})
    assert_trees_close(state.batch_stats, expected.batch_stats, {"rtol": 0, "atol": 0.01})
    first = state.params["dense1"]["kernel"]
    assert np.abs(first - np.float32(jnp.asarray(first, jnp.bfloat16))).max() > 1e-5


@pytest.mark.parametrize("statistics", ["once", "each"])
@pytest.mark.parametrize("how", PARTS)
def test_accumulation_over_devices(how, statistics):
    """Two micro-batches over eight devices are one batch in two groups.

    Red if devices weight their statistics by their own examples, or the sums are not all summed.
    """
    parallel = over(how)
    loss = make_loss(make_apply(make_model(parallel.axis_name)))
    step = make_accumulating_step(
        loss, sgd(RATE), statistics=statistics, axis_name=parallel.axis_name
    )
    step = parallel.compile_train(step, axis=1)
    state = parallel.replicate(make_state())
    for i in range(2):
        micro = split_batch(batch_of(make_batches(), i), 2)
        state, metrics = step(state, parallel.split(micro, axis=1))
    state = parallel.fetch(state)
    two = make_batches(2)
    expected = float64_steps(make_state(), two, EXAMPLES // 2, weighted=True)
    assert_trees_close(state.params, expected.params, PARALLEL)
    assert parallel.fetch(metrics).examples == two[2][1].sum()
    if statistics == "once":
        assert_trees_close(state.batch_stats, expected.batch_stats, PARALLEL)


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("statistics", [None, "once", "each"])
def test_steps_in_a_shard_map_of_ones_own(statistics, typed):
    """With types, which are JAX's default, JAX itself sums a gradient by what devices share.

    Seen red with types: eight times the gradient, and accumulation refused by its scan.
    """
    groups, apply = 1, make_apply(make_model("data"))
    step = make_train_step(apply, sgd(RATE), axis_name="data")
    if statistics is not None:
        groups = 2
        micro = make_accumulating_step(
            make_loss(apply), sgd(RATE), statistics=statistics, axis_name="data"
        )

        def step(state, batch):
            return micro(state, split_batch(batch, groups))

    devices = eight_devices.mesh(8)
    spec = {"in_specs": (P(), P("data")), "out_specs": P(), "check_vma": typed}
    step = jax.jit(jax.shard_map(step, mesh=devices, **spec))
    state = make_state()
    for i in range(2):
        batch = batch_of(make_batches(), i)
        if groups == 2:  # each device has its share of both
            batch = jax.tree.map(interleaved, batch)
        state, metrics = step(state, batch)
    two = make_batches(2)
    expected = float64_steps(make_state(), two, EXAMPLES // groups, weighted=groups > 1)
    assert_trees_close(state.params, expected.params, PARALLEL)
    assert metrics.examples == two[2][1].sum()
    if statistics != "each":
        assert_trees_close(state.batch_stats, expected.batch_stats, PARALLEL)


def interleaved(leaf):
    """Examples in the order in which eight devices hold halves of two micro-batches."""
    return leaf.reshape(2, 8, -1, *leaf.shape[1:]).swapaxes(0, 1).reshape(leaf.shape)


@pytest.mark.parametrize("how", PARTS)
def test_remat_changes_nothing(how):
    parallel = over(how)
    apply = jax.checkpoint(make_apply(make_model(parallel.axis_name, dropout=0.5)))
    step = make_train_step(apply, sgd(RATE), axis_name=parallel.axis_name)
    step = parallel.compile_train(step)
    state, metrics = steps(parallel, step, make_state(jax.random.key(3)), make_batches())
    plain, plain_metrics = run("jit", 1, dropout=0.5, key=3)
    assert_trees_close(state.params, plain.params, PARALLEL)
    assert_trees_close(metrics, plain_metrics, PARALLEL)


@pytest.mark.parametrize("how", PARTS)
def test_parameter_averages_compose(how):
    """An average beside the state: the mean of the parameters after each step."""
    parallel = over(how)
    train = make_step(parallel.axis_name)

    def step(both, batch):
        state, average = both
        state, metrics = train(state, batch)
        average = update_average(average, state.params, averaging="cumulative")
        return (state, average), metrics

    step = parallel.compile_train(step)
    state = make_state()
    start = state, start_average(state.params)  # no buffer of which is given up with the state's
    (state, average), _ = steps(parallel, step, start, make_batches())
    after = [float64_steps(make_state(), make_batches(n), EXAMPLES).params for n in (1, 2)]
    last = float64_steps(make_state(), make_batches(), EXAMPLES).params
    assert_trees_close(state.params, last, PARALLEL)
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, 0), *after, last)
    assert_trees_close(average.values, mean, PARALLEL)


@pytest.mark.parametrize("how", PARTS)
def test_a_run_goes_on_bitwise_and_on_other_devices(how):
    """From host arrays after two steps: the third on eight devices again, and on one."""
    straight, _ = run(how, 8)
    half, _ = run(how, 8, count=2)
    third = jax.tree.map(lambda leaf: leaf[2:], make_batches())
    again, _ = steps(over(how, 8), compiled(how, 8), half, third)
    assert_bitwise(again, straight)
    alone, _ = steps(over(how, 1), compiled(how, 1), half, third)
    assert_trees_close(alone.params, straight.params, PARALLEL)


def test_what_is_fetched_outlives_donation():
    parallel = over("jit")
    state = parallel.replicate({"key": jax.random.key(3), "weight": jnp.ones(4)})
    fetched = parallel.fetch(state)
    step = parallel.compile_train(lambda state, batch: (state, jnp.sum(batch)))
    step(state, parallel.split(np.ones(8)))
    assert jax.random.key_data(fetched["key"]).tolist() == [0, 3]
    assert fetched["weight"].tolist() == [1] * 4


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("put", ["replicate", "split"])
def test_host_arrays_may_be_changed_once_they_are_put(how, put):
    """Seen red: devices read the host's memory, and saw what became of it."""
    host = host_memory.aligned((64, 32))
    placed = getattr(over(how, 1), put)({"a": host})["a"]
    jax.block_until_ready(placed)
    host[:] = 1
    assert not np.any(placed)


APART = [("shard_map", "step"), ("pmap", "layers")]


@pytest.mark.parametrize(
    ("how", "alone"),
    [
        each if each in APART else slow(*each)
        for each in itertools.product(["shard_map", "pmap"], ["step", "layers"])
    ],
)
def test_devices_that_train_apart_are_refused(how, alone):
    """Without `axis_name` they did in silence, and `fetch` returned one device's state."""
    parallel = over(how)
    step_axis, layer_axis = (None, "data") if alone == "step" else ("data", None)
    apply = make_apply(make_model(layer_axis))
    step = parallel.compile_train(make_train_step(apply, sgd(RATE), axis_name=step_axis))
    batch = parallel.split(batch_of(make_batches(), 0))
    first = "params['dense1']['kernel']" if alone == "step" else "batch_stats['norm1']['mean']"
    named = re.escape(f"state.{first}, ") + ".* more .*axis_name='data'.* make_train_step.* layers"
    with pytest.raises(ValueError, match=named):
        step(parallel.replicate(make_state()), batch)


@pytest.mark.parametrize("how", ["shard_map", "pmap"])
def test_a_copy_that_differs_is_named(how):
    """On the last device alone; keys among them, and the metrics. Three leaves go in, one is split.

    JAX's 0.10.2 pmap took the three leaves for the three arguments, and split another one.
    """
    parallel = over(how)

    def step(state, batch):
        last = jax.lax.axis_index("data") // 7
        weight, key = state
        return (weight + 1, jax.random.fold_in(key, last)), {
            "examples": jnp.int32(batch.size) + last,
            "loss": batch.sum(),
        }

    step = parallel.compile_train(step)
    state = parallel.replicate((np.ones(2, np.float32), jax.random.key(3)))
    with pytest.raises(ValueError, match=r"^state\[1\], metrics\['examples'\] differ"):
        step(state, parallel.split(np.ones(8, np.float32)))


@pytest.mark.parametrize("how", HOWS)
def test_a_state_that_was_given_up_is_refused(how):
    """JAX speaks of buffers; its 0.10.2 ended the process under shard_map."""
    parallel = over(how)
    step = parallel.compile_train(lambda state, batch: (state + 1, state))
    batch = parallel.split(np.ones(8))
    state = parallel.replicate(np.float32(1))
    new, _ = step(state, batch)
    with pytest.raises(ValueError, match=r"state was given up .* returned"):
        step(state, batch)
    assert parallel.fetch(step(new, batch)[0]) == 3


@pytest.mark.parametrize("axis", [0, 1])
def test_shardings_are_those_of_the_arrays(axis):
    """Red where the other axis is split, or a copy is: for devices that hold no arrays."""
    parallel = over("jit")
    whole, rows = parallel.shardings(axis=axis)
    array = np.ones((8, 8))
    assert parallel.replicate(array).sharding == whole
    assert parallel.split(array, axis=axis).sharding == rows
    assert whole.shard_shape((8, 8)) == (8, 8)
    assert rows.shard_shape((8, 8)) == ((1, 8), (8, 1))[axis]


COLLECTIVES = {  # of one step: forward and backward of two layers, the gradient, the counts
    ("all", "mapped"): {"all-gather": 2, "all-reduce": 2 + 1 + 1},
    ("all", "jit"): {"all-gather": 2, "all-reduce": 2 + 1 + 1},
    ("device", "mapped"): {"all-reduce": 2 + 1 + 1},  # of two layers' statistics; no backward
    ("device", "jit"): {"all-reduce": 1 + 1},  # the compiler adds the statistics to the gradient
    (4, "mapped"): {"all-reduce": 2 + 1 + 1},
    (4, "jit"): {"all-reduce": 1 + 1},
}


@pytest.mark.parametrize("batch", ["all", "device", 4])
@pytest.mark.parametrize("how", HOWS)
def test_collectives_are_counted(how, batch):
    """At most one each way for a layer; all gradients in one. Red for one for each parameter."""
    given = make_state(), batch_of(make_batches(), 0)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), given)
    text = compiled(how, 8, batch=batch).lower(*shapes).compile().as_text()
    found = {each.kind: each.count for each in collectives(parse(text))}
    allowed = COLLECTIVES[batch, "jit" if how == "jit" else "mapped"]
    assert set(found) == set(allowed)
    assert all(found[kind] <= allowed[kind] for kind in found), found


@pytest.mark.parametrize(("how", "devices"), [("jit", 1), *((how, 8) for how in HOWS)])
def test_evaluation_sums_over_all(how, devices):
    """Each example once, those under the mask not at all."""
    parallel, state = over(how, devices), make_state()
    variables = state.variables
    images, labels, mask = batch_of(make_batches(), 0)
    model = make_model(parallel.axis_name)

    def evaluate(variables, batch):
        images, labels, mask = batch
        return classification_metrics(model.apply(variables, images, train=False), labels, mask)

    on_all = parallel.compile_eval(evaluate)
    metrics = on_all(parallel.replicate(variables), parallel.split((images, labels, mask)))
    logits = np.float64(make_model().apply(variables, images, train=False))
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(EXAMPLES), labels]
    found = parallel.fetch(metrics)
    np.testing.assert_allclose(found.loss, losses[mask].sum(), rtol=1e-5)
    assert (found.correct, found.examples) == (
        (logits.argmax(1) == labels)[mask].sum(),
        mask.sum(),
    )


@pytest.mark.parametrize("how", HOWS)
def test_what_lies_where(how):
    """Copies of a state on all devices; of a batch, each its own examples, in order."""
    parallel = over(how)
    made = parallel.compile_init(lambda key: {"w": jax.random.normal(key, (3,)), "key": key})
    tree = made(jax.random.key(7))
    assert len(tree["w"].addressable_shards) == 8
    host = parallel.fetch(tree)
    assert isinstance(host["w"], np.ndarray)
    assert host["w"].flags.owndata
    assert_bitwise(host["w"], jax.random.normal(jax.random.key(7), (3,)))
    assert jax.random.key_data(parallel.replicate(host)["key"]).tolist() == [0, 7]
    for axis in (0, 1):
        rows = np.arange(32).reshape((16, 2) if axis == 0 else (2, 16))
        placed = parallel.split(rows, axis=axis)
        for i, shard in enumerate(placed.addressable_shards):
            assert shard.device == parallel.devices[i]
            own = np.asarray(shard.data).reshape((2, 2))
            np.testing.assert_array_equal(
                own, rows[2 * i : 2 * i + 2] if axis == 0 else rows[:, 2 * i : 2 * i + 2]
            )


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("how", HOWS)
def test_what_is_mapped_lies_as_the_batch(how, axis):
    """Red if devices exchange results, or have them all."""
    parallel = over(how)
    rows = np.arange(32.0, dtype=np.float32).reshape((16, 2) if axis == 0 else (2, 16))
    multiply = parallel.compile_map(lambda factor, rows: factor * rows, axis=axis)
    got = multiply(parallel.replicate(np.float32(3)), parallel.split(rows, axis=axis))
    expected = parallel.split(3 * rows, axis=axis)
    assert got.shape == expected.shape
    for shard, other in zip(got.addressable_shards, expected.addressable_shards, strict=True):
        assert shard.device == other.device
        np.testing.assert_array_equal(shard.data, other.data)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: DataParallel("map"), "how must be one of .*, got 'map'"),
        (lambda: DataParallel(devices=[]), "devices must be one or more"),
        (lambda: over("jit").check_batch(20), "batch_size=20 .* 8 devices: use 16 or 24"),
        (lambda: over("jit").check_batch(5), "batch_size=5 .* 8 devices: use 8"),
        (lambda: over("jit").check_batch(0), "batch_size=0 .* use 8"),
        (lambda: over("pmap").split(np.zeros((12, 2))), r"shape \(12, 2\), whose axis 0"),
        (lambda: over("jit").split(np.zeros((12, 3)), axis=1), r"\(12, 3\), whose axis 1"),
        (lambda: over("jit").split(np.zeros(()), axis=0), r"\(\), whose axis 0"),
        (
            lambda: over("jit").split({"image": np.zeros((64, 2)), "label": np.zeros(32)}),
            r"batch\['image'\] has 64 examples .* batch\['label'\] 32",
        ),
    ],
)
def test_bad_input(act, message):
    with pytest.raises(ValueError, match=message):
        act()


@pytest.mark.parametrize("how", ["jit", "shard_map", "pmap"])
def test_examples_of_nothing_are_split(how):
    """Red under pmap where -1 stands for the size of each part."""
    parts = over(how).split({"x": np.ones((16, 0)), "y": np.ones((16, 3))})
    shape = (8, 2) if how == "pmap" else (16,)
    assert jax.tree.map(np.shape, parts) == {"x": (*shape, 0), "y": (*shape, 3)}


def test_what_is_on_the_host_is_fetched_as_it_is():
    parallel, host = over("jit"), np.arange(2.0)
    fetched = parallel.fetch({"a": host, "b": parallel.replicate(host), "c": 3})
    assert_trees_close(fetched, {"a": host, "b": host, "c": 3}, {"rtol": 0, "atol": 0})
    assert fetched["a"] is not host
