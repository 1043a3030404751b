"""Population statistics (Algorithm 2) against NumPy, for functions and for Linen models."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import tolerances
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
        lambda batch: bnjax.linen.batch_moments(model, variables, batch, train=True), batches
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
        lambda batch: bnjax.linen.batch_moments(model, variables, batch), batches
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


def test_no_batches_are_refused():
    with pytest.raises(ValueError, match=r"one or more batches, got lengths \{0\}"):
        bnjax.population_stats(lambda x: bnjax.batch_moments(x, (0,)), jnp.zeros((0, 4, 2)))
    with pytest.raises(ValueError, match=r"share a leading axis .* got lengths"):
        bnjax.population_stats(
            lambda batch: bnjax.batch_moments(batch["a"], (0,)),
            {"a": jnp.zeros((2, 4, 2)), "b": jnp.zeros((3, 4))},
        )


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
            lambda batch: bnjax.linen.batch_moments(model, variables, batch, train=False), x
        )
