"""One batch on eight devices is one batch: against float64, which knows of no devices."""

import contextlib
import itertools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from eight_devices import (
    DECAY,
    DEVICES,
    EPSILON,
    FEATURES,
    JITTED,
    MAPPED,
    ROWS,
    layer,
    make,
    mesh,
    rows_of,
    run,
)
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from marks import slow
from tolerances import PARALLEL, assert_close, assert_trees_close

import bnjax


def assert_one_batch(case, y, dx, dparams, stats=None):
    """The expectation for `case` is the result of one device."""
    x, mask, weights = rows_of(case.x), rows_of(case.mask), rows_of(case.weights)
    batch = reference.forward(x, **case.params, epsilon=EPSILON, mask=mask)
    expected = reference.backward(weights, x, case.params["scale"], epsilon=EPSILON, mask=mask)
    assert_close(rows_of(y), batch.y, PARALLEL, "y")
    assert_close(rows_of(dx), expected.dx, PARALLEL, "dx")
    if dparams is not None:
        assert_close(dparams["scale"], expected.dscale, PARALLEL, "dscale")
        assert_close(dparams["bias"], expected.dbias, PARALLEL, "dbias")
    if stats is not None:
        new = {"mean": batch.mean, "var": reference.running_variance(batch, "unbiased")}
        for key, value in new.items():
            each = np.asarray(stats[key]).reshape(-1, FEATURES)
            np.testing.assert_array_equal(each, each[:1].repeat(len(each), 0), "replicas differ")
            assert_close(each[0], reference.ema([value], case.stats[key], DECAY), PARALLEL, key)


@pytest.mark.parametrize(
    ("impl", "masked"), [("fused", False), ("fused", True), ("autodiff", True)]
)
@pytest.mark.parametrize("how", MAPPED)
def test_one_batch_over_eight_devices(how, impl, masked):
    """Red for a mean of means, a mean of variances, m of one device in m/(m-1), or one lost sum."""
    case = make(masked)
    y, stats, dx, dparams = run(how, case, axis_name="data", impl=impl)
    assert_one_batch(case, y, dx, dparams, stats)


@pytest.mark.parametrize("how", MAPPED)
def test_one_batch_for_each_device(how):
    """Without axis_name. Red if gradients of replicated parameters are not summed by their type."""
    case = make(masked=False)
    if how == "typed shard_map":
        with pytest.raises(ValueError, match="out_specs"):  # the statistics do differ
            run(how, case)
        return
    y, stats, dx, dparams = run(how, case)
    total = {"scale": 0.0, "bias": 0.0}
    for device in range(DEVICES):
        own = case._replace(x=case.x[device], weights=case.weights[device])
        own_stats = {key: value[device] for key, value in stats.items()}
        assert_one_batch(own, y[device], dx[device], None, own_stats)
        expected = reference.backward(own.weights, own.x, own.params["scale"], epsilon=EPSILON)
        total["scale"] += expected.dscale
        total["bias"] += expected.dbias
    assert_close(dparams["scale"], total["scale"], PARALLEL)
    assert_close(dparams["bias"], total["bias"], PARALLEL)


@pytest.mark.parametrize("impl", ["fused", "autodiff"])
@pytest.mark.parametrize("how", ["pmap", "shard_map"])
def test_one_batch_for_each_group_of_devices(how, impl):
    """Red if the sums of the backward pass, or the count, ignore the groups."""
    case = make(masked=True)
    groups = [[0, 2, 4, 6], [1, 3, 5, 7]]
    y, stats, dx, _ = run(how, case, axis_name="data", axis_index_groups=groups, impl=impl)
    for group in map(np.array, groups):
        own = case._replace(x=case.x[group], mask=case.mask[group], weights=case.weights[group])
        own_stats = {key: value[group] for key, value in stats.items()}
        assert_one_batch(own, y[group], dx[group], None, own_stats)


@pytest.mark.parametrize(
    ("spec", "impl"),
    [(P(), "fused"), (P("data"), "fused"), (P(), "autodiff"), slow(P("data"), "autodiff")],
)
def test_devices_that_hold_equal_examples(spec, impl):
    """Each counts, in the unbiased variance. Red where types deny that the results are equal."""
    case = make(masked=True)
    rows = [rows_of(a) for a in (case.x, case.weights, case.mask)]
    shared = partial(layer, axis_name=("data", "model"), impl=impl)
    each = jax.shard_map(
        shared,
        mesh=mesh(4, 2),
        in_specs=(spec, spec, spec, P(), P()),
        out_specs=(spec, P(), spec, P()),
    )
    y, stats, dx, dparams = jax.jit(each)(*rows, case.params, case.stats)
    assert_one_batch(case, y, dx, dparams)
    times = {P(): 8, P("data"): 2}[spec]
    x, mask = (np.tile(a, (times, 1)) for a in (rows[0], rows[2]))
    batch = reference.forward(x, None, None, mask=mask)
    for key, value in ("mean", batch.mean), ("var", reference.running_variance(batch, "unbiased")):
        assert_close(stats[key], reference.ema([value], case.stats[key], DECAY), PARALLEL, key)


def test_groups_on_devices_that_hold_equal_examples():
    """Groups of two, within each device; a column of the mesh has the groups of the whole batch."""
    case = make(masked=False)
    given = (rows_of(case.x), rows_of(case.weights), None, case.params, case.stats)
    expected = jax.jit(partial(layer, batch=2))(*given)
    rows = P("data")
    each = jax.shard_map(
        partial(layer, batch=2, axis_name=("data", "model")),
        mesh=mesh(4, 2),
        in_specs=(rows, rows, P(), P(), P()),
        out_specs=(rows, P(), rows, P()),
    )
    assert_trees_close(jax.jit(each)(*given), jax.tree.map(np.float64, expected), PARALLEL)


def test_parameters_gradients_of_groups_sum_to_the_whole():
    case = make(masked=False)
    groups = [[0, 1, 2, 3], [4, 5, 6, 7]]
    _, _, _, dparams = run("pmap", case, axis_name="data", axis_index_groups=groups)
    halves = [
        reference.backward(
            rows_of(case.weights[half]),
            rows_of(case.x[half]),
            case.params["scale"],
            epsilon=EPSILON,
        )
        for half in (slice(0, 4), slice(4, 8))
    ]
    assert_close(dparams["scale"], halves[0].dscale + halves[1].dscale, PARALLEL)
    assert_close(dparams["bias"], halves[0].dbias + halves[1].dbias, PARALLEL)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("how", JITTED)
def test_jit_over_a_sharded_array_is_one_batch(how, masked):
    """No axis_name: the compiler places the sums, or the mesh in sight does."""
    case = make(masked)
    y, stats, dx, dparams = run(how, case)
    assert_one_batch(case, y, dx, dparams, stats)


@pytest.mark.parametrize(("rows", "axis_type"), [(12, AxisType.Auto), (32, AxisType.Explicit)])
def test_a_mesh_that_cannot_divide_the_examples(rows, axis_type):
    """12 examples are not equal parts on 8 devices; arrays of explicit meshes divide themselves."""
    case = make(masked=False)
    x, weights = (a.reshape(-1, FEATURES)[:rows] for a in (case.x, case.weights))
    with jax.set_mesh(jax.make_mesh((DEVICES,), ("data",), (axis_type,))):
        if axis_type == AxisType.Explicit:
            x, weights = jax.device_put((x, weights), P("data"))
        y, stats, dx, dparams = jax.jit(layer)(x, weights, None, case.params, case.stats)
    assert_one_batch(case._replace(x=x, weights=weights), y, dx, dparams, stats)


@pytest.mark.parametrize("how", ["pmap", "sharded jit in a mesh"])
@pytest.mark.parametrize("masked", [False, True])
def test_devices_whose_means_differ_far_from_zero(how, masked):
    """1e5 from zero the means of devices, rounded, would spoil the variance by 1e-3.

    And the first device's mean, from which they are merged, is that of nothing under the mask.
    """
    case = make(masked)
    x = case.clean + 1e5
    mask = None if case.mask is None else case.mask[::-1].at[0].set(False)
    settings = {} if how in JITTED else {"axis_name": "data"}
    _, stats, _, _ = run(how, case._replace(x=x, mask=mask), **settings)
    batch = reference.forward(rows_of(x), None, None, mask=rows_of(mask))
    for key, value, tolerance in (
        ("mean", batch.mean, 0.016),  # its rounding, and that of the average
        ("var", reference.running_variance(batch, "unbiased"), 1e-5),
    ):
        new = np.float64(np.asarray(stats[key]).reshape(-1, FEATURES)[0])
        moved = (new - DECAY * np.float64(case.stats[key])) / (1 - DECAY)
        assert_close(moved, value, {"rtol": 0, "atol": tolerance}, key)


MESHES = {
    # where x and the parameters live, and what shares a batch
    "batch over both axes": (P(("data", "model")), P(), ("data", "model")),
    "a batch for each column": (P(("data", "model")), P(), "data"),
    "a batch for each device": (P(("data", "model")), P(), None),
    "features over the second axis": (P("data", "model"), P("model"), "data"),
    "features over the second axis, a batch for each device": (
        P("data", "model"),
        P("model"),
        None,
    ),
}


@pytest.mark.parametrize(
    ("where", "impl", "check_vma"),
    [
        *itertools.product(MESHES, ["fused"], [True, False]),
        *itertools.product(
            ["a batch for each column", "features over the second axis"], ["autodiff"], [True]
        ),
    ],
)
def test_gradients_through_a_mesh_of_two_axes(where, impl, check_vma):
    """The gradient of the whole shard_map, from outside: all sums are JAX's and ours together.

    Red if cotangents are summed over too few or too many axes.
    """
    case = make(masked=False)
    x, weights = (a.reshape(-1, FEATURES) for a in (case.x, case.weights))
    spec, params_spec, axis_name = MESHES[where]

    def loss(x, params):
        def each(x, params, weights):
            y, _ = bnjax.batch_transform(x, params, epsilon=EPSILON, axis_name=axis_name, impl=impl)
            return jax.lax.psum(jnp.sum(weights * y), ("data", "model"))

        sharded = jax.shard_map(
            each,
            mesh=mesh(4, 2),
            in_specs=(spec, params_spec, spec),
            out_specs=P(),
            check_vma=check_vma,
        )
        return sharded(x, params, weights)

    dx, dparams = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, case.params)

    parts = {  # rows by the batch they belong to
        ("data", "model"): [slice(None)],
        "data": [slice(None)],
        None: [slice(i, i + 8) for i in range(0, 32, 8)],
    }[axis_name]
    if where == "a batch for each column":  # of devices; a device holds four rows
        parts = [np.arange(32).reshape(4, 2, 4)[:, column].ravel() for column in (0, 1)]
    if where == "a batch for each device":
        parts = [slice(i, i + 4) for i in range(0, 32, 4)]
    expected = [
        reference.backward(weights[part], x[part], case.params["scale"], epsilon=EPSILON)
        for part in parts
    ]
    for part, of_part in zip(parts, expected, strict=True):
        assert_close(dx[part], of_part.dx, PARALLEL, "dx")
    assert_close(dparams["scale"], sum(of_part.dscale for of_part in expected), PARALLEL, "dscale")
    assert_close(dparams["bias"], sum(of_part.dbias for of_part in expected), PARALLEL, "dbias")


def test_an_input_that_is_shared_by_devices_of_different_parameters():
    """Each column of the mesh scales the same x its own way: dx is the sum over the columns."""
    case = make(masked=False)
    x, weights = (a.reshape(-1, FEATURES) for a in (case.x, case.weights))
    scales = jnp.stack([case.params["scale"], case.params["bias"]])

    def each(x, scale, weights):
        def loss(x):
            y, _ = bnjax.batch_transform(x, {"scale": scale[0]}, epsilon=EPSILON, axis_name="data")
            return jax.lax.psum(jnp.sum(weights * y), "model")

        return jax.grad(loss)(x)

    rows = P("data")
    specs = (rows, P("model"), rows)
    mapped = jax.shard_map(each, mesh=mesh(4, 2), in_specs=specs, out_specs=rows)
    expected = reference.backward(weights, x, scales.sum(0), epsilon=EPSILON).dx
    assert_close(jax.jit(mapped)(x, scales, weights), expected, PARALLEL)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("how", MAPPED)
def test_a_scale_of_each_device(how, masked):
    """Red if the sums over devices are scaled after them: by a device's own, not by each one's."""
    case = make(masked)
    scales = jnp.asarray(np.random.default_rng(6).uniform(0.5, 2, (DEVICES, FEATURES)), jnp.float32)

    def each(x, weights, mask, scale):
        stats = layer(x, weights, mask, {"scale": scale}, case.stats, axis_name="data")
        return stats[2], stats[3]["scale"]

    def of_blocks(*blocks):
        own = jax.tree.map(lambda block: block[0], blocks)
        return jax.tree.map(lambda result: result[None], each(*own))

    if how == "vmap":
        mapped = jax.jit(jax.vmap(each, axis_name="data"))
    elif how == "pmap":
        mapped = jax.pmap(each, axis_name="data")
    else:
        specs = {"in_specs": P("data"), "out_specs": P("data"), "check_vma": how != "shard_map"}
        mapped = jax.jit(jax.shard_map(of_blocks, mesh=mesh(DEVICES), **specs))
    dx, dscale = mapped(case.x, case.weights, case.mask, scales)

    x, mask, weights = rows_of(case.x), rows_of(case.mask), np.float64(rows_of(case.weights))
    one, zero = np.ones(FEATURES), np.zeros(FEATURES)
    scaled = weights * np.float64(scales).repeat(ROWS, axis=0)
    expected = reference.backward(scaled, x, one, epsilon=EPSILON, mask=mask)
    assert_close(rows_of(dx), expected.dx, PARALLEL, "dx")
    xhat = reference.forward(x, one, zero, epsilon=EPSILON, mask=mask).y
    own = (weights * xhat).reshape(DEVICES, ROWS, FEATURES).sum(1)
    assert_close(dscale, own, PARALLEL, "dscale")


def test_a_gradient_outside_of_vmap_names_what_helps():
    """There JAX runs a custom rule without the axis."""
    x = make(masked=False).x

    def loss(x, impl):
        one = partial(bnjax.batch_transform, params={}, axis_name="data", impl=impl)
        return jnp.sum(jax.vmap(one, axis_name="data")(x)[0] ** 3)

    with pytest.raises(NameError) as raised:
        jax.grad(loss)(x, "fused")
    assert "impl='autodiff'" in raised.value.__notes__[0]
    assert np.isfinite(jax.grad(loss)(x, "autodiff")).all()


def test_second_derivatives_through_a_shared_batch():
    """Sums over devices have derivatives as well: both ways of computing them agree."""
    case = make(masked=True)
    x = jnp.nan_to_num(case.x)

    def hessian_vector(impl):
        def gradient(x):
            def loss(x):
                y, _ = bnjax.batch_transform(
                    x, case.params, mask=case.mask[0], axis_name="data", impl=impl
                )
                return jnp.sum(case.weights[0] * y**2)

            return jax.grad(loss)(x)

        product = jax.vmap(
            lambda x, v: jax.jvp(gradient, (x,), (v,))[1], axis_name="data", axis_size=DEVICES
        )
        return jax.jit(product)(x, case.weights)

    fused, autodiff = hessian_vector("fused"), hessian_vector("autodiff")
    assert np.abs(autodiff).max() > 0.01
    assert_close(fused, np.float64(autodiff), {"rtol": 1e-4, "atol": 1e-4})


KINDS = ("all-gather", "all-reduce", "all-to-all", "reduce-scatter", "collective-permute")


def collectives(f, *arguments) -> list[int]:
    """How many of the first two kinds; there must be none of the others."""
    program = jax.jit(f).lower(*arguments).compile().as_text()
    counts = [len(re.findall(rf" {kind}(?:-start)?\(", program)) for kind in KINDS]
    assert not any(counts[2:]), counts
    return counts[:2]


@pytest.mark.parametrize("masked", [False, True])
def test_one_collective_forward_and_one_backward(masked):
    """One of moments (all-reduced in JAX 0.8 and 0.9, which gather no type), and one of sums.

    Those are the gradients of scale and bias as well: red if they are summed once more.
    """
    case = make(masked)
    rows = P("data")

    def on_devices(f, *arguments, specs, out_specs):
        each = jax.shard_map(f, mesh=mesh(DEVICES), in_specs=specs, out_specs=out_specs)
        compiled = collectives(each, *arguments)
        written = jax.jit(each).lower(*arguments).as_text()  # where XLA has combined nothing yet
        assert written.count("stablehlo.all_reduce") == compiled[1]
        return compiled

    def forward(x, mask, params):
        return bnjax.batch_transform(x, params, mask=mask, axis_name="data")[0]

    def backward(x, mask, params, weights):
        return jax.vjp(lambda x, params: forward(x, mask, params), x, params)[1](weights)

    x, mask, weights = (
        None if a is None else a.reshape(-1, a.shape[-1]) for a in (case.x, case.mask, case.weights)
    )
    placed = (rows, rows, P())
    moments = on_devices(forward, x, mask, case.params, specs=placed, out_specs=rows)
    assert moments == ([0, 1] if jax.__version_info__[:2] in ((0, 8), (0, 9)) else [1, 0])
    given, both = (x, mask, case.params, weights), (rows, P())
    sums = on_devices(backward, *given, specs=(*placed, rows), out_specs=both)
    assert sums == [moments[0], moments[1] + 1]


IN_A_MESH = {"forward": ([1, 0],), "backward": ([1, 1],)}
SEEN_BY_THE_COMPILER_ALONE = {  # the mean of a sample, then the moments, may be two
    "forward": ([0, 1], [0, 2]),
    "backward": ([0, 2], [0, 3]),
}
GHOSTS = {"forward": ([0, 0],), "statistics": ([0, 1],), "dx": ([0, 0],)}


@pytest.mark.parametrize(
    ("in_sight", "settings", "allowed"),
    [
        (True, {}, IN_A_MESH),
        (True, {"activation": "relu"}, IN_A_MESH),
        (False, {}, SEEN_BY_THE_COMPILER_ALONE),
        (True, {"batch": 2}, GHOSTS),
        (False, {"batch": 2}, GHOSTS),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_collectives_that_jit_places(dtype, in_sight, settings, allowed):
    """Over images of 16 examples, two on each device."""
    shape = (16, 4, 2, 3)
    spread = NamedSharding(mesh(DEVICES), P("data"))
    x = jax.ShapeDtypeStruct(shape, dtype, sharding=spread)
    params, stats = bnjax.init_params(3), bnjax.init_stats(3)

    def forward(x):
        return bnjax.normalize_batch(x, params, stats, **settings)

    def both(x, weights):
        y, pullback, stats = jax.vjp(forward, x, has_aux=True)
        return pullback(weights), y, stats

    programs = {
        "forward": (lambda x: forward(x)[0], x),
        "statistics": (forward, x),
        "dx": (lambda x, weights: both(x, weights)[0], x, x),
        "backward": (both, x, x),
    }
    with jax.set_mesh(mesh(DEVICES)) if in_sight else contextlib.nullcontext():
        for name, counts in allowed.items():
            assert collectives(*programs[name]) in counts, name


def test_one_example_on_each_device_is_a_batch_of_eight():
    """The check for a batch of one counts all devices that share it, and those only."""
    x = make(masked=False).x[:, :1]
    stats = bnjax.init_stats(FEATURES)

    def train(x, **settings):
        return bnjax.normalize_batch(x, {}, stats, epsilon=EPSILON, **settings)[0]

    y = jax.pmap(partial(train, axis_name="data"), axis_name="data")(x)
    expected = reference.forward(rows_of(x), None, None, epsilon=EPSILON).y
    assert_close(rows_of(y), expected, PARALLEL)
    with pytest.raises(ValueError, match="one value per feature"):
        jax.pmap(train, axis_name="data")(x)
    with pytest.raises(ValueError, match="one value per feature"):
        jax.pmap(
            partial(train, axis_name="data", axis_index_groups=[[i] for i in range(8)]),
            axis_name="data",
        )(x)
