"""The MLP: its variables, its forward pass against NumPy float64, and what it keeps."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnjax.linen import BatchNorm
from bnjax.models import MLP

NORM = partial(BatchNorm, momentum=0.9, epsilon=1e-3)
SMALL = {"hidden": (5, 4), "classes": 3}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32 sums of up to 12 terms of size one


def abstract(model, image_shape):
    """The variables' shapes, nothing computed."""
    images = jnp.zeros(image_shape)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))


def shapes(tree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf.shape for p, leaf in leaves}


def make_variables(model):
    """Variables of a 2x3x2 image's network, none of them at its initial zero or one."""
    rng = np.random.default_rng(0)
    low = {"params": -0.5, "batch_stats": 0.5}
    return {
        name: jax.tree.map(
            lambda leaf, low=low[name]: jnp.asarray(rng.uniform(low, 1.5, leaf.shape), leaf.dtype),
            tree,
        )
        for name, tree in abstract(model, (1, 2, 3, 2)).items()
    }


def make_images():
    return jnp.asarray(np.random.default_rng(1).normal(size=(7, 2, 3, 2)), jnp.float32)


def reference(variables, images, *, train, epsilon=1e-3):
    """Logits and preactivations in float64, term by term."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    x = np.asarray(images, np.float64).reshape(len(images), -1)
    preactivations = []
    for i in (1, 2):
        x = x @ params[f"dense{i}"]["kernel"]
        if "batch_stats" in variables:
            norm = params[f"hidden{i}"]["norm"]
            stats = variables["batch_stats"][f"hidden{i}"]["norm"]
            mean, var = (np.asarray(stats[key], np.float64) for key in ("mean", "var"))
            if train:
                mean, var = x.mean(0), x.var(0)
            x = (x - mean) / np.sqrt(var + epsilon) * norm["scale"] + norm["bias"]
        else:
            x = x + params[f"dense{i}"]["bias"]
        preactivations.append(x)
        x = 1 / (1 + np.exp(-x))
    return x @ params["logits"]["kernel"] + params["logits"]["bias"], preactivations


@pytest.mark.parametrize(("norm", "parameters"), [(None, 99_710), (BatchNorm, 100_010)])
def test_parameter_counts_of_the_paper_network(norm, parameters):
    variables = abstract(MLP(norm=norm), (1, 28, 28, 1))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == parameters


def test_variables_without_normalization():
    assert shapes(abstract(MLP(**SMALL), (1, 2, 3, 2))) == {
        "params/dense1/kernel": (12, 5),
        "params/dense1/bias": (5,),
        "params/dense2/kernel": (5, 4),
        "params/dense2/bias": (4,),
        "params/logits/kernel": (4, 3),
        "params/logits/bias": (3,),
    }


def test_variables_with_normalization():
    """Also that no layer before a normalization has a bias, which its mean would cancel."""
    norms = {
        f"{collection}/hidden{i}/norm/{name}": (units,)
        for i, units in ((1, 5), (2, 4))
        for collection, names in (("params", ("scale", "bias")), ("batch_stats", ("mean", "var")))
        for name in names
    }
    assert shapes(abstract(MLP(**SMALL, norm=BatchNorm), (1, 2, 3, 2))) == norms | {
        "params/dense1/kernel": (12, 5),
        "params/dense2/kernel": (5, 4),
        "params/logits/kernel": (4, 3),
        "params/logits/bias": (3,),
    }


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("norm", [None, NORM], ids=["plain", "norm"])
def test_forward_equals_float64(norm, train):
    """Red if the norm comes after the nonlinearity, or `train` does not reach the norm."""
    model = MLP(**SMALL, norm=norm)
    variables = make_variables(model)
    images = make_images()
    apply = partial(model.apply, train=train, mutable=["batch_stats", "intermediates"])
    logits, kept = jax.jit(apply)(variables, images)
    expected, preactivations = reference(variables, images, train=train)
    np.testing.assert_allclose(logits, expected, **CLOSE)
    for i, preactivation in enumerate(preactivations, start=1):
        (seen,) = kept["intermediates"][f"hidden{i}"]["preactivation"]
        np.testing.assert_allclose(seen, preactivation, **CLOSE)


def test_training_moves_every_statistic_by_momentum():
    model = MLP(**SMALL, norm=NORM)
    variables = make_variables(model)
    images = make_images()
    apply = partial(model.apply, train=True, mutable=["batch_stats"])
    _, updates = jax.jit(apply)(variables, images)
    x = np.asarray(images, np.float64).reshape(7, -1)
    u = x @ np.asarray(variables["params"]["dense1"]["kernel"], np.float64)
    old = variables["batch_stats"]["hidden1"]["norm"]
    new = updates["batch_stats"]["hidden1"]["norm"]
    np.testing.assert_allclose(new["mean"], 0.9 * old["mean"] + 0.1 * u.mean(0), **CLOSE)
    np.testing.assert_allclose(new["var"], 0.9 * old["var"] + 0.1 * u.var(0), **CLOSE)


def test_inference_does_not_depend_on_the_batch():
    model = MLP(**SMALL, norm=NORM)
    variables = make_variables(model)
    images = make_images()
    apply = jax.jit(partial(model.apply, train=False))
    alone = np.concatenate([apply(variables, images[i : i + 1]) for i in range(7)])
    np.testing.assert_allclose(apply(variables, images), alone, **CLOSE)


def test_activation_and_initializer_are_arguments():
    model = MLP(**SMALL, activation=nn.relu, kernel_init=nn.initializers.constant(0.5))
    variables = model.init(jax.random.key(0), jnp.zeros((1, 2, 3, 2)), train=False)
    logits = model.apply(variables, -jnp.ones((2, 2, 3, 2)), train=False)
    np.testing.assert_array_equal(logits, jnp.zeros((2, 3)))  # relu(-6) is 0, sigmoid is not
    kernels = [variables["params"][name]["kernel"] for name in ("dense1", "dense2", "logits")]
    assert all((kernel == 0.5).all() for kernel in kernels)


def test_a_batch_of_one_is_refused_in_training_naming_the_layer():
    model = MLP(**SMALL, norm=NORM)
    with pytest.raises(ValueError, match=r"hidden1/norm.*one value per feature"):
        model.apply(
            make_variables(model), jnp.zeros((1, 2, 3, 2)), train=True, mutable=["batch_stats"]
        )


def test_images_of_no_pixels_have_the_logits_of_the_biases():
    """Red where the size of nothing is -1's quotient: ZeroDivisionError."""
    model, images = MLP((3,)), jnp.zeros((0, 2, 2, 1))
    variables = model.init(jax.random.key(0), jnp.zeros((2, 2, 2, 1)), train=False)
    assert model.apply(variables, images, train=False).shape == (0, 10)
    empty = model.init(jax.random.key(0), jnp.zeros((4, 0)), train=False)
    assert model.apply(empty, jnp.zeros((4, 0)), train=False).shape == (4, 10)
