"""The batch is a choice: each group against float64, which is given the group's examples alone.

The groups of k examples are the same on one device and on eight, however JAX is told of them.
"""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import train
from eight_devices import DECAY, EPSILON, FEATURES, JITTED, MAPPED, make, mesh, rows_of, run
from jax.sharding import PartitionSpec as P
from tolerances import PARALLEL, assert_close

import bnjax
from bnjax.linen import BatchNorm

UNTYPED = ("pmap", "shard_map")
"""The maps in which JAX knows groups of devices."""


def assert_groups(case, result, groups, running_var="unbiased"):
    """`groups` are the numbers of the rows that are normalized together."""
    y, stats, dx, dparams = result
    x, mask, weights = rows_of(case.x), rows_of(case.mask), rows_of(case.weights)
    batches, totals = [], {"scale": 0.0, "bias": 0.0}
    for rows in groups:
        of_rows = None if mask is None else mask[rows]
        batch = reference.forward(x[rows], **case.params, epsilon=EPSILON, mask=of_rows)
        gradients = reference.backward(
            weights[rows], x[rows], case.params["scale"], epsilon=EPSILON, mask=of_rows
        )
        assert_close(rows_of(y)[rows], batch.y, PARALLEL, "y")
        assert_close(rows_of(dx)[rows], gradients.dx, PARALLEL, "dx")
        batches.append(batch)
        totals["scale"] += gradients.dscale
        totals["bias"] += gradients.dbias
    for key, total in totals.items():
        assert_close(dparams[key], total, PARALLEL, key)
    for key, value in reference.pooled(batches, running_var).items():
        each = np.asarray(stats[key]).reshape(-1, FEATURES)
        np.testing.assert_array_equal(each, each[:1].repeat(len(each), 0), "replicas differ")
        assert_close(each[0], reference.ema([value], case.stats[key], DECAY), PARALLEL, key)


def consecutive(k: int, rows: int = 32) -> list[np.ndarray]:
    return np.split(np.arange(rows), range(k, rows, k))


@pytest.mark.parametrize(
    ("how", "k", "masked"),
    [
        *((how, 2, True) for how in (*MAPPED, *JITTED)),
        *((how, 4, False) for how in MAPPED),  # a device's own: nothing to split
        *((how, 8, False) for how in (*UNTYPED, *JITTED)),
        *((how, 16, True) for how in UNTYPED),
        *((how, 64, False) for how in ("pmap", "typed shard_map", "sharded jit in a mesh")),
    ],
)
def test_groups_of_k_are_the_same_on_any_number_of_devices(how, k, masked):
    """Eight devices hold 4 of 32 examples each. Of their groups, some are masked as a whole.

    Red for statistics of one device alone, m/(m-1) of all examples or of a wrong number of
    groups, and devices that count alike, however many of their groups hold a value.
    """
    case = make(masked)
    if masked:
        kept = np.array([4, 1, 2, 0, 4, 2, 1, 4]).reshape(-1, 1, 1)
        mask = jnp.asarray(np.arange(4).reshape(1, -1, 1) < kept)
        case = case._replace(mask=mask, x=jnp.where(mask, case.clean, jnp.nan))
    settings = {} if how in JITTED else {"axis_name": "data"}
    assert_groups(case, run(how, case, batch=k, **settings), consecutive(k))


@pytest.mark.parametrize("how", MAPPED)
def test_a_batch_for_each_device(how):
    """The same as without an axis name, but for the statistics, which are everyone's."""
    case = make(masked=True)
    result = run(how, case, batch="device", axis_name="data", running_var="biased")
    assert_groups(case, result, consecutive(4), "biased")


def test_a_batch_for_each_column_of_a_mesh():
    """Several axes share a group: k counts the examples of both."""
    case = make(masked=False)
    x = rows_of(case.x)

    def each(x):
        return bnjax.batch_transform(x, case.params, batch=32, axis_name=("data", "model"))

    both = P(("data", "model"))
    mapped = jax.shard_map(each, mesh=mesh(4, 2), in_specs=both, out_specs=(both, P()))
    y, moments = jax.jit(mapped)(x)
    batch = reference.forward(x, **case.params)
    assert_close(y, batch.y, PARALLEL)
    assert_close(moments.var, batch.var, PARALLEL)


@pytest.mark.parametrize("impl", ["fused", "autodiff"])
@pytest.mark.parametrize("masked", [False, True])
def test_what_k_leaves_over_is_a_smaller_group(impl, masked):
    """11 examples make 4, 4 and 3. Red if they are dropped, or join the group before."""
    whole = make(masked=False)
    x, weights = (jnp.asarray(rows_of(a)[None, :11]) for a in (whole.clean, whole.weights))
    case = whole._replace(x=x, clean=x, weights=weights, mask=None)
    if masked:
        mask = jnp.asarray(np.arange(11).reshape(1, -1, 1) % 5 != 2)
        case = case._replace(mask=mask, x=jnp.where(mask, x, jnp.inf))
    assert_groups(case, run("jit", case, batch=np.int64(4), impl=impl), consecutive(4, 11))


LAYOUTS = {
    "channels_last": ((8, 3, 2, 4), -1, 0),
    "channels_first": ((8, 4, 3, 2), 1, 0),
    "per_activation": ((8, 2, 3), (1, 2), 0),
    "features first": ((4, 8, 3), 0, 1),
    "examples between features": ((2, 8, 3), (0, 2), 1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_groups_are_of_examples_in_every_layout(layout):
    """Groups of 3, 3 and 2. Red if positions are grouped, or the groups come back mixed."""
    shape, axis, examples = LAYOUTS[layout]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    axes = (axis,) if isinstance(axis, int) else axis
    features = tuple(shape[a] for a in axes)
    params, stats = bnjax.init_params(features), bnjax.init_stats(features)
    y, stats = train(x, params, stats, axis=axis, batch=3, decay=0.0)
    parts = np.split(np.asarray(x), [3, 6], axis=examples)
    batches = [reference.forward(part, None, None, axis=axis) for part in parts]
    assert_close(y, np.concatenate([batch.y for batch in batches], examples), PARALLEL)
    for key, value in reference.pooled(batches, "unbiased").items():
        assert_close(stats[key], value, PARALLEL, key)


def test_a_group_of_all_examples_or_more_is_all():
    case = cases.make("dense")
    whole = train(case.x, case.params, case.stats)
    for k in (16, 17, 1000):
        grouped = train(case.x, case.params, case.stats, batch=k)
        jax.tree.map(np.testing.assert_array_equal, grouped, whole)


def test_a_group_may_be_one_image():
    """It has positions: that is instance normalization."""
    case = cases.make("channels_last")
    y, _ = train(case.x, {}, case.stats, batch=1)
    for image, normalized in zip(case.x, y, strict=True):
        assert_close(normalized, reference.forward(image, None, None).y, PARALLEL)


@pytest.mark.parametrize("averaging", ["ema_debiased", "cumulative"])
def test_groups_count_as_one_update(averaging):
    case = cases.make("dense")
    stats = bnjax.init_stats(5, averaging=averaging)
    _, new = train(case.x, {}, stats, averaging=averaging, batch=4)
    np.testing.assert_array_equal(new["count"], np.ones(5))


def test_the_module_has_groups_in_training_alone():
    """Initialization and inference take any batch: groups play no part in them."""
    x = make(masked=False).x
    layer = BatchNorm(momentum=0.0, batch=2, axis_name="data")
    variables = layer.init(jax.random.key(0), x[0, :1], False)

    def each(x):
        return layer.apply(variables, x, False, mutable=["batch_stats"])

    y, updates = jax.pmap(each, axis_name="data")(x)
    batches = [reference.forward(rows_of(x)[rows], None, None) for rows in consecutive(2)]
    assert_close(rows_of(y), np.concatenate([batch.y for batch in batches]), PARALLEL)
    stats = jax.tree.map(lambda leaf: leaf[0], updates["batch_stats"])
    expected = reference.pooled(batches, "biased")
    for key, value in expected.items():
        assert_close(stats[key], value, PARALLEL, key)
    inferred = layer.apply(variables | {"batch_stats": stats}, x[0, :1], True)
    assert_close(inferred, reference.population(x[0, :1], None, None, **expected), PARALLEL)


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("batch", ["ghost", "", 0, -2, 2.0, True, None])
def test_an_unknown_choice(batch):
    case = cases.make("dense")
    with pytest.raises(ValueError, match=f"batch must be 'all', 'device' or .*, got {batch!r}"):
        bnjax.batch_transform(case.x, {}, batch=batch)


def test_device_without_its_axis():
    """Under jit no device can be seen: silently, all examples would be one batch."""
    case = cases.make("dense")
    with pytest.raises(ValueError, match=r"batch='device' needs axis_name.* batch=k"):
        bnjax.batch_transform(case.x, {}, batch="device")


@pytest.mark.parametrize("batch", ["device", 2])
def test_two_choices_of_a_batch(batch):
    x = cases.make("dense").x
    message = f"batch={batch!r} and axis_index_groups both choose the batch"
    with pytest.raises(ValueError, match=message):
        bnjax.batch_transform(
            x, {}, batch=batch, axis_name="data", axis_index_groups=[[0, 1], [2, 3]]
        )


@pytest.mark.parametrize("k", [3, 6, 12, 20])
def test_groups_that_do_not_fit_the_devices(k):
    """3 leaves over on each device; 6 and 20 end within one; 12 does not divide all 8."""
    x = make(masked=False).x
    message = f"batch={k} does not fit 8 devices of 4 examples: it must divide"
    with pytest.raises(ValueError, match=message):
        jax.vmap(
            lambda x: bnjax.batch_transform(x, {}, batch=k, axis_name="data"), axis_name="data"
        )(x)


def test_groups_over_devices_where_jax_has_none():
    """Types of what varies cannot say it: JAX's own error is empty."""
    case = make(masked=False)
    with pytest.raises(ValueError, match=r"groups of devices .*batch=k.*check_vma=False"):
        run("typed shard_map", case, batch=8, axis_name="data")


@pytest.mark.parametrize("k", [1, 3, 5])
def test_a_group_of_one_value(k):
    """16 examples leave one over: its output would be `bias`, whatever x."""
    case = cases.make("dense")
    message = f"one value per feature in the group of 1 that batch={k} makes"
    with pytest.raises(ValueError, match=message):
        bnjax.batch_transform(case.x, {}, batch=k)
