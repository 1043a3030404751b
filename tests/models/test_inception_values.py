"""Each network of the Inception family against NumPy float64, at a tiny width: every layer counts.

Logits, side heads and all moments must agree to 1e-9, so another order of branches, a layer too
many, another border or stride is red.
"""

from functools import partial

import flax.linen as nn
import inception_reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnjax.linen import BatchNorm
from bnjax.models import BNInception, GoogLeNet, InceptionV3

pytestmark = pytest.mark.usefixtures("x64")

NORM = partial(
    BatchNorm, momentum=0.75, epsilon=inception_reference.EPSILON, param_dtype=jnp.float64
)
CLOSE = {"rtol": 1e-8, "atol": 1e-9}
TINY = {"classes": 3, "width": 1 / 32, "param_dtype": jnp.float64}
FAST_COMPILATION = {"xla_backend_optimization_level": 0}  # the program runs once


def make(model, size, batch=4):
    """Variables none of which is zero or one, and images; no draw through JAX, which is slow."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch, size, size, 3))
    abstract = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))

    def draw(path, leaf):
        name = path[-1].key
        if name in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape)
        spread = 1 / np.sqrt(np.prod(leaf.shape[:-1])) if name == "kernel" else 0.3
        return rng.normal(size=leaf.shape) * spread

    return jax.tree_util.tree_map_with_path(draw, abstract), images


def run(model, variables, images, *, train):
    apply = partial(model.apply, train=train, mutable=["batch_stats"] if train else [])
    return jax.jit(apply, compiler_options=FAST_COMPILATION)(variables, images)


def assert_moments(updates, old, moments):
    """Every normalization moved by its momentum towards what the reference saw."""
    paths = {
        tuple(key.key for key in path[:-2])
        for path, _ in jax.tree_util.tree_leaves_with_path(updates["batch_stats"])
    }
    assert {"/".join(path) for path in paths} == set(moments)
    for path, (mean, var) in moments.items():
        before = inception_reference.find(old, path)["norm"]
        after = inception_reference.find(updates["batch_stats"], path)["norm"]
        for name, seen in (("mean", mean), ("var", var)):
            expected = 0.75 * before[name] + 0.25 * seen
            np.testing.assert_allclose(after[name], expected, **CLOSE, err_msg=f"{path}/{name}")


def assert_logits(actual, expected):
    assert jax.tree.structure(tuple(actual)) == jax.tree.structure(tuple(expected))
    for ours, wanted in zip(jax.tree.leaves(tuple(actual)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, wanted, **CLOSE)


@pytest.mark.slow
def test_bn_inception_in_training():
    """A separable stem with both pools, sigmoids, and activations normalized by themselves."""
    model = BNInception(
        **TINY,
        norm=NORM,
        activation=nn.sigmoid,
        stem_stride=4,
        stem="separable",
        per_activation=("5b",),
        padding="SAME",
        local_response_norm=True,
    )
    variables, images = make(model, 20)
    network = inception_reference.Network(
        variables,
        train=True,
        activation=lambda x: 1 / (1 + np.exp(-x)),
        padding="SAME",
        local_response_norm=True,
    )
    expected = network.bn_inception(images, 4)
    logits, updates = run(model, variables, images, train=True)
    np.testing.assert_allclose(logits, expected, **CLOSE)
    assert_moments(updates, variables["batch_stats"], network.moments)


@pytest.mark.slow
def test_bn_inception_without_norm():
    """Biases, the full stem, symmetric padding, padding counted at the border."""
    model = BNInception(**TINY, count_include_pad=True)
    variables, images = make(model, 40, batch=2)
    network = inception_reference.Network(variables, train=False, count_include_pad=True)
    logits, _ = run(model, variables, images, train=False)
    np.testing.assert_allclose(logits, network.bn_inception(images, 8), **CLOSE)


@pytest.mark.slow
def test_googlenet_in_training():
    model = GoogLeNet(**TINY, norm=NORM, stem_stride=2, dropout=0.0, auxiliary_dropout=0.0)
    variables, images = make(model, 20)
    network = inception_reference.Network(variables, train=True, local_response_norm=True)
    expected = network.googlenet(images, 2)
    logits, updates = run(model, variables, images, train=True)
    assert_logits(logits, expected)
    assert_moments(updates, variables["batch_stats"], network.moments)


def test_googlenet_of_torchvision():
    """Without its heads: the last pool is 2x2."""
    model = GoogLeNet(
        **TINY, stem_stride=4, variant="torchvision", auxiliary=False, local_response_norm=False
    )
    variables, images = make(model, 24, batch=2)
    network = inception_reference.Network(variables, train=False)
    logits, _ = run(model, variables, images, train=False)
    assert_logits(logits, network.googlenet(images, 4, last_pool=2))


@pytest.mark.slow
def test_inception_v3_in_training():
    model = InceptionV3(**TINY, norm=NORM, stem_stride=1, dropout=0.0)
    variables, images = make(model, 18)
    network = inception_reference.Network(variables, train=True)
    expected = network.inception_v3(images, 1)
    logits, updates = run(model, variables, images, train=True)
    assert_logits(logits, expected)
    assert_moments(updates, variables["batch_stats"], network.moments)


@pytest.mark.slow
def test_inception_v3_in_inference():
    """The running statistics, no side head, and the stem of the largest images."""
    model = InceptionV3(**TINY, norm=NORM, auxiliary="none")
    variables, images = make(model, 75, batch=1)
    network = inception_reference.Network(variables, train=False)
    logits, _ = run(model, variables, images, train=False)
    assert_logits(logits, network.inception_v3(images, 8))
