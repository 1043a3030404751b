"""Population statistics (Algorithm 2) against NumPy, for functions and for Linen models."""

import contextlib
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import tolerances
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tolerances import assert_close

import bnjax
import bnjax.linen


class TwoLayers(nn.Module):
    """The second layer sees what the first one made of the same batch."""

    @nn.compact
    def __call__(self, x, *, train: bool):
        for width in (4, 3):
            x = nn.Dense(width, use_bias=False)(x)
            x = bnjax.linen.BatchNorm(use_running_average=not train)(x)
            x = nn.sigmoid(x)
        return x


def some_batches(shape=(5, 12, 6)) -> jax.Array:
    """Batches whose means and variances differ."""
    rng = np.random.default_rng(2)
    batch = np.arange(shape[0]).reshape(-1, *(1 for _ in shape[1:]))
    return jnp.asarray(batch + (1 + batch) * rng.normal(size=shape), jnp.float32)


@pytest.mark.parametrize("running_var", ["biased", "unbiased"])
def test_one_layer(running_var):
    """Red if the variance of the batches' means is added, or m/(m-1) is left out."""
    x = some_batches()
    stats = bnjax.population_stats(
        lambda batch: {"norm": bnjax.batch_moments(batch, (0,))}, x, running_var=running_var
    )
    expected = reference.algorithm_2(x, running_var=running_var)
    assert set(stats) == {"norm"}
    assert set(stats["norm"]) == {"mean", "var"}
    for key in ("mean", "var"):
        assert_close(stats["norm"][key], expected[key], {"rtol": 1e-6, "atol": 1e-6}, key)


def test_convolutional_statistics_count_positions():
    """m = examples x height x width."""
    x = some_batches((3, 2, 2, 3, 4))
    stats = bnjax.population_stats(lambda batch: bnjax.batch_moments(batch, (0, 1, 2)), x)
    expected = reference.algorithm_2(x)
    assert_close(stats["var"], expected["var"], {"rtol": 1e-6, "atol": 0})


def test_two_layers():
    """Each layer's statistics come from batches that all layers below normalized by themselves.

    Red if the model runs in inference mode meanwhile: the initial statistics are off by 1 to 5.
    """
    batches = some_batches()
    model = TwoLayers()
    variables = jax.jit(partial(model.init, train=True))(jax.random.key(0), batches[0])
    scale = {"scale": jnp.array([2.0, 1.0, -1.0, 3.0]), "bias": jnp.arange(4.0)}
    variables["params"]["BatchNorm_0"] = scale
    before = jax.tree.map(np.array, variables)

    stats = bnjax.population_stats(
        lambda batch: bnjax.linen.model_moments(model, variables, batch, train=True), batches
    )

    jax.tree.map(np.testing.assert_array_equal, variables, before)
    kernels = [np.float64(variables["params"][f"Dense_{layer}"]["kernel"]) for layer in (0, 1)]
    first = [np.float64(batch) @ kernels[0] for batch in batches]
    normalized = [reference.forward(batch, **scale).y for batch in first]
    second = [1 / (1 + np.exp(-batch)) @ kernels[1] for batch in normalized]
    assert jax.tree.structure(stats) == jax.tree.structure(variables["batch_stats"])
    for name, inputs in (("BatchNorm_0", first), ("BatchNorm_1", second)):
        expected = reference.algorithm_2(inputs)
        for key in ("mean", "var"):
            tolerance = {"rtol": 1e-5, "atol": 1e-5}
            assert_close(stats[name][key], expected[key], tolerance, f"{name} {key}")

    y = model.apply(variables | {"batch_stats": stats}, batches[0], train=False)
    population = reference.population(first[0], **scale, **reference.algorithm_2(first))
    z = 1 / (1 + np.exp(-population)) @ kernels[1]
    z = reference.population(z, None, None, **reference.algorithm_2(second))
    assert_close(y, 1 / (1 + np.exp(-z)), {"rtol": 1e-5, "atol": 1e-5}, "inference")


@pytest.mark.parametrize("lift", ["scan", "vmap"])
def test_layers_under_a_lifted_transform(lift):
    """Their moments are stacked, sizes included. Three layers of four channels: 3 is not 4."""

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _=None):
            x = nn.Dense(4, use_bias=False)(x)
            return bnjax.linen.BatchNorm(use_running_average=False)(x), None

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            stacked = dict.fromkeys(("params", "batch_stats", "batch_moments"), 0)
            if lift == "scan":
                layers = nn.scan(Block, stacked, split_rngs={"params": True}, length=3)
            else:
                layers = nn.vmap(
                    Block, stacked, split_rngs={"params": True}, in_axes=None, axis_size=3
                )
            return layers(name="layers")(x)[0]

    batches = some_batches((2, 8, 4))
    model = Stack()
    variables = jax.jit(model.init)(jax.random.key(0), batches[0])
    stats = bnjax.population_stats(
        lambda batch: bnjax.linen.model_moments(model, variables, batch), batches
    )["layers"]["BatchNorm_0"]

    kernels = np.float64(variables["params"]["layers"]["Dense_0"]["kernel"])
    x = np.float64(batches)
    for layer, kernel in enumerate(kernels):
        inputs = [batch @ kernel for batch in x]
        expected = reference.algorithm_2(inputs)
        assert_close(stats["mean"][layer], expected["mean"], tolerances.PARALLEL)
        assert_close(stats["var"][layer], expected["var"], tolerances.PARALLEL)
        if lift == "scan":
            x = [reference.forward(batch, None, None).y for batch in inputs]


def test_masked_batches_count_what_they_hold():
    """A batch that is masked as a whole is left out; m is each batch's own."""
    x = some_batches((3, 8, 2))
    mask = jnp.asarray(np.arange(8)[None, :, None] < np.array([8, 0, 5])[:, None, None])
    stats = bnjax.population_stats(
        lambda batch: bnjax.batch_transform(batch["x"], {}, mask=batch["mask"])[1],
        {"x": x, "mask": mask},
    )
    kept = [np.float64(x[0]), np.float64(x[2, :5])]
    expected_var = np.mean([np.var(batch, axis=0, ddof=1) for batch in kept], axis=0)
    expected_mean = np.mean([batch.mean(0) for batch in kept], axis=0)
    assert_close(stats["mean"], expected_mean, {"rtol": 1e-6, "atol": 1e-6})
    assert_close(stats["var"], expected_var, {"rtol": 1e-6, "atol": 0})


ESTIMATORS = ("batchwise", "weighted", "pooled")
RUNNING_VARS = ("biased", "unbiased")
KEPT = [12, 5, 0, 9, 1, 12, 7, 3]  # values that each batch holds: one none, one a single one


def uneven_batches() -> dict[str, jax.Array]:
    """Batches of KEPT examples, sorted by their mean; NaN where there are none."""
    x = some_batches((8, 12, 3))
    mask = np.arange(12)[None, :, None] < np.reshape(KEPT, (8, 1, 1))
    return {"x": jnp.where(mask, x, jnp.nan), "mask": jnp.asarray(mask)}


def masked_moments(batch) -> bnjax.Moments:
    return bnjax.batch_transform(batch["x"], {}, mask=batch["mask"])[1]


def expected_estimate(estimator, running_var) -> dict[str, np.ndarray]:
    """The expectation for uneven batches, by the definitions: no recursion, no merging."""
    x = [np.float64(b[:n]) for b, n in zip(uneven_batches()["x"], KEPT, strict=True) if n]
    if estimator == "pooled":
        values = np.concatenate(x)
        return {"mean": values.mean(0), "var": values.var(0, ddof=int(running_var == "unbiased"))}
    seen = [reference.forward(batch, None, None) for batch in x]
    weights = [len(batch) if estimator == "weighted" else 1 for batch in x]
    variances = [reference.running_variance(batch, running_var) for batch in seen]
    return {
        "mean": np.average([batch.mean for batch in seen], axis=0, weights=weights),
        "var": np.average(variances, axis=0, weights=weights),
    }


def assert_estimate(stats, estimator, running_var):
    for key, value in expected_estimate(estimator, running_var).items():
        assert_close(stats[key], value, tolerances.PARALLEL, key)


def test_the_estimators_differ():
    """Otherwise the tests below could not see which one is used."""
    found = [expected_estimate(e, r)["var"] for e in ESTIMATORS for r in RUNNING_VARS]
    for i, one in enumerate(found):
        assert all(np.abs(one - other).min() > 0.01 for other in found[:i])


@pytest.mark.parametrize("running_var", RUNNING_VARS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimators_of_uneven_batches(estimator, running_var):
    """Red for another weight of a batch, m/(m-1) of the wrong m, or the variance of means."""
    stats = bnjax.population_stats(
        masked_moments, uneven_batches(), running_var=running_var, estimator=estimator
    )
    assert_estimate(stats, estimator, running_var)


@pytest.mark.parametrize("running_var", RUNNING_VARS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("how", ["pmap", "vmap", "shard_map", "typed shard_map"])
def test_batches_divided_over_devices(how, estimator, running_var):
    """Every device ends with the statistics of one device that has seen all batches.

    Eight devices have one batch each, four have two. Red if each device counts the same although
    one has seen nothing, or if the variance between devices is left out of "pooled".
    """
    devices = 4 if how == "typed shard_map" else 8
    batches = jax.tree.map(lambda a: a.reshape(devices, -1, *a.shape[1:]), uneven_batches())
    population = partial(
        bnjax.population_stats,
        masked_moments,
        running_var=running_var,
        estimator=estimator,
        axis_name="data",
    )
    if how in ("pmap", "vmap"):
        mapped = {"pmap": jax.pmap, "vmap": lambda *a, **k: jax.jit(jax.vmap(*a, **k))}[how]
        stats = mapped(population, axis_name="data")(batches)
    else:
        typed = how == "typed shard_map"  # P() is granted to what is the same on all devices only
        each = jax.shard_map(
            lambda b: jax.tree.map(
                lambda leaf: leaf if typed else leaf[None],
                population(jax.tree.map(lambda leaf: leaf[0], b)),
            ),
            mesh=jax.make_mesh((devices,), ("data",), (AxisType.Auto,)),
            in_specs=P("data"),
            out_specs=P() if typed else P("data"),
            check_vma=typed,
        )
        stats = jax.jit(each)(batches)
    for key, value in expected_estimate(estimator, running_var).items():
        replicas = np.asarray(stats[key]).reshape(-1, 3)
        assert len(replicas) == (1 if how == "typed shard_map" else devices)
        np.testing.assert_array_equal(replicas, replicas[:1].repeat(len(replicas), 0))
        assert_close(replicas[0], value, tolerances.PARALLEL, key)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_batches_shared_by_devices(estimator):
    """Under jit the compiler does it all; in shard_map the layers do, and no axis_name is given.

    Red if the scan's start has another type than what it carries, or lies on another mesh.
    """
    x = some_batches((3, 16, 4))
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    population = partial(bnjax.population_stats, estimator=estimator)
    expected = population(lambda batch: bnjax.batch_moments(batch, (0,)), x)

    placed = jax.device_put(x, NamedSharding(mesh, P(None, "data")))
    whole = jax.jit(lambda x: population(lambda batch: bnjax.batch_moments(batch, (0,)), x))
    shared = jax.shard_map(
        lambda x: population(lambda b: bnjax.batch_moments(b, (0,), axis_name="data"), x),
        mesh=mesh,
        in_specs=P(None, "data"),
        out_specs=P(),
    )
    own = jax.shard_map(  # a batch for each device, and statistics of its own
        lambda x: jax.tree.map(
            lambda leaf: leaf[None], population(lambda b: bnjax.batch_moments(b, (0,)), x)
        ),
        mesh=mesh,
        in_specs=P(None, "data"),
        out_specs=P("data"),
    )
    for key in ("mean", "var"):
        assert_close(whole(placed)[key], expected[key], tolerances.PARALLEL, key)
        assert_close(jax.jit(shared)(placed)[key], expected[key], tolerances.PARALLEL, key)
    explicit = jax.make_mesh((4, 2), ("data", "model"), (AxisType.Explicit,) * 2)
    divided = jax.device_put(x, NamedSharding(explicit, P(None, "data", "model")))
    # JAX 0.7 makes no zeros of a mesh that is not in sight; 0.8 and 0.9 have not been asked.
    old = jax.__version_info__[:2] < (0, 10)
    with jax.set_mesh(explicit) if old else contextlib.nullcontext():  # without `jit`
        found = population(lambda batch: bnjax.batch_moments(batch, (0,)), divided)
    for key in ("mean", "var"):
        assert jax.typeof(found[key]).sharding.spec == P("model")
        assert_close(found[key], expected[key], tolerances.PARALLEL, key)
    last = population(lambda batch: bnjax.batch_moments(batch, (0,)), x[:, -2:])
    assert_close(jax.jit(own)(placed)["var"][-1], last["var"], tolerances.PARALLEL, "own")


def pooled(moments, batches, axis_name, **settings):
    """Of all batches one after another, or each on a device of its own."""
    population = partial(
        bnjax.population_stats, moments, estimator="pooled", axis_name=axis_name, **settings
    )
    if axis_name is None:
        return population(batches)
    return jax.vmap(population, axis_name=axis_name, out_axes=None)(batches[:, None])


@pytest.mark.parametrize("axis_name", [None, "data"])
def test_pooled_far_from_zero(axis_name):
    """At 1e4 standard deviations; red for E[x^2] - E[x]^2, which is off by 10 there."""
    x = 1e4 + some_batches((8, 16, 3))
    stats = pooled(lambda batch: bnjax.batch_moments(batch, (0,)), x, axis_name)
    values = np.float64(x).reshape(-1, 3)
    assert_close(stats["mean"], values.mean(0), tolerances.mean(1e4))
    assert_close(stats["var"], values.var(0, ddof=1), {"rtol": 1e-4, "atol": 0})


@pytest.mark.parametrize("axis_name", [None, "data"])
def test_complex_means(axis_name):
    """Two batches of variance 1, around 0 and 2j: 2 around 1j. Red, 0, for the square of 1j."""

    def moments(mean):
        return bnjax.Moments(mean, jnp.ones_like(mean.real), jnp.float32(4))

    means = jnp.array([[0], [2j]])
    stats = pooled(moments, means, axis_name, running_var="biased")
    assert stats["mean"].tolist() == [1j]
    assert stats["var"].tolist() == [2]


def test_bad_choices_are_refused():
    population = partial(bnjax.population_stats, lambda x: bnjax.batch_moments(x, (0,)))
    with pytest.raises(ValueError, match=r"estimator must be one of .*'pooled', got 'mean'"):
        population(jnp.ones((2, 4, 2)), estimator="mean")
    with pytest.raises(ValueError, match=r"running_var must be one of .*, got 'pooled'"):
        population(jnp.ones((2, 4, 2)), running_var="pooled", estimator="pooled")


def test_no_batches_are_refused():
    with pytest.raises(ValueError, match=r"batches must share a leading axis .* \{'scalar'\}"):
        bnjax.population_stats(lambda x: bnjax.batch_moments(x, (0,)), jnp.float32(3))
    with pytest.raises(ValueError, match=r"one or more batches, got lengths \{0\}"):
        bnjax.population_stats(lambda x: bnjax.batch_moments(x, (0,)), jnp.zeros((0, 4, 2)))
    with pytest.raises(ValueError, match=r"share a leading axis .* got lengths"):
        bnjax.population_stats(
            lambda batch: bnjax.batch_moments(batch["a"], (0,)),
            {"a": jnp.zeros((2, 4, 2)), "b": jnp.zeros((3, 4))},
        )


def test_batches_that_a_mesh_divides_are_refused():
    """The scan takes them one after another."""
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Explicit,))
    batches = jax.device_put(some_batches((2, 4, 2)), NamedSharding(mesh, P("data")))
    with pytest.raises(ValueError, match="batches are divided over devices along their leading"):
        bnjax.population_stats(lambda x: bnjax.batch_moments(x, (0,)), batches)


@pytest.mark.parametrize("result", [{}, {"mean": jnp.zeros(2)}])
def test_a_function_without_moments_is_refused(result):
    """A model in inference mode, or one without batch normalization, gives {}."""
    with pytest.raises(ValueError, match=r"must return a tree of Moments.*got PyTreeDef"):
        bnjax.population_stats(lambda batch: result, jnp.ones((2, 4, 2)))


def test_a_model_in_inference_mode_is_refused():
    model = TwoLayers()
    x = some_batches()
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), x[0])
    with pytest.raises(ValueError, match="must return a tree of Moments"):
        bnjax.population_stats(
            lambda batch: bnjax.linen.model_moments(model, variables, batch, train=False), x
        )
