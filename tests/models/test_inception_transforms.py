"""Each network of the Inception family under what JAX and bnjax do to networks.

In float64, where another order of summation costs 1e-12, and a layer that sees other examples, an
update that happens twice, or a bias too many costs 1e-3.
"""

from functools import cache, partial

import eight_devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnjax.inference import fold_model
from bnjax.linen import BatchNorm
from bnjax.models import BNInception, GoogLeNet, InceptionV3

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.slow]

NORM = partial(BatchNorm, momentum=0.75, param_dtype=jnp.float64)
TINY = {"classes": 3, "width": 1 / 32, "stem_stride": 1, "dropout": 0.0, "param_dtype": jnp.float64}
NETWORKS = {  # and the side of its images
    "googlenet": (GoogLeNet(**TINY, norm=NORM, auxiliary_dropout=0.0), 9),
    "bn_inception": (BNInception(**TINY, norm=NORM, per_activation=("5b",)), 6),
    "inception_v3": (InceptionV3(**TINY, norm=NORM), 17),
}
EXAMPLES, GROUP = 16, 4
CLOSE = {"rtol": 1e-8, "atol": 1e-9}
FAST_COMPILATION = {"xla_backend_optimization_level": 0}  # each program runs a few times

each_network = pytest.mark.parametrize("name", NETWORKS)


@cache
def made(name):
    """Variables none of which is zero or one, and images."""
    model, side = NETWORKS[name]
    rng = np.random.default_rng(0)
    images = rng.normal(size=(EXAMPLES, side, side, 3))
    abstract = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape)
        spread = np.sqrt(2 / np.prod(leaf.shape[:-1])) if path[-1].key == "kernel" else 0.3
        return rng.normal(size=leaf.shape) * spread

    return jax.tree_util.tree_map_with_path(draw, abstract), images


def compiled(function):
    return jax.jit(function, compiler_options=FAST_COMPILATION)


@cache
def training(model):
    """Variables and images to logits and new statistics."""
    return compiled(partial(model.apply, train=True, mutable=["batch_stats"]))


@cache
def inferred(name):
    """What the network makes of its images."""
    return compiled(partial(NETWORKS[name][0].apply, train=False))(*made(name))


def gradient(model):
    """Variables and images to the gradient of a loss over all heads, logits, new statistics."""

    def loss(params, stats, images):
        variables = {"params": params, "batch_stats": stats}
        logits, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return sum(jnp.sin(head).sum() for head in jax.tree.leaves(logits)), (logits, updates)

    def call(variables, images):
        return jax.grad(loss, has_aux=True)(variables["params"], variables["batch_stats"], images)

    return compiled(call)


def assert_close(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, leaf), wanted in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(np.asarray(leaf), wanted, **CLOSE, err_msg=name)


@cache
def plain_gradient(name):
    return gradient(NETWORKS[name][0])(*made(name))


@each_network
def test_rematerialized_on_eight_devices_it_is_the_network_on_one(name):
    """A training pass: gradients, logits, and statistics, which move once and by all examples."""
    model, _ = NETWORKS[name]
    variables, images = made(name)
    mesh = eight_devices.mesh(8)
    everywhere, by_example = (jax.NamedSharding(mesh, spec) for spec in (jax.P(), jax.P("data")))
    arguments = jax.device_put(variables, everywhere), jax.device_put(images, by_example)
    assert_close(gradient(model.clone(remat=True))(*arguments), plain_gradient(name))


@each_network
def test_ghost_batches_are_batches_of_their_own(name):
    """Logits of each group as if it were alone; statistics are the mean of the groups'."""
    model, _ = NETWORKS[name]
    variables, images = made(name)
    logits, updates = training(model.clone(norm=partial(NORM, batch=GROUP)))(variables, images)
    groups = [
        training(model)(variables, images[start : start + GROUP])
        for start in range(0, EXAMPLES, GROUP)
    ]
    assert_close(
        logits, jax.tree.map(lambda *parts: np.concatenate(parts), *(y for y, _ in groups))
    )
    assert_close(updates, jax.tree.map(lambda *parts: np.mean(parts, 0), *(u for _, u in groups)))


@each_network
def test_folded_it_is_the_same_network(name):
    """All normalizations go but the side heads', which inference does not call, and those of
    single activations, which no convolution can take."""
    model, _ = NETWORKS[name]
    variables, images = made(name)
    folded = fold_model(model, variables, images, train=False)
    assert_close(
        compiled(partial(folded.apply, train=False))(folded.variables, images), inferred(name)
    )
    kept = {path.split("/")[0] for path in folded.kept}
    assert (
        kept
        == {
            "googlenet": {"auxiliary_4a", "auxiliary_4d"},
            "bn_inception": {"inception_5b"},
            "inception_v3": {"auxiliary"},
        }[name]
    )
    assert len(folded.folded) > 50


@each_network
def test_in_bfloat16_training_is_close(name):
    """Logits to half their spread over the examples, after 20 to 50 layers that round to 8 bits
    each; statistics stay in their own type."""
    model, _ = NETWORKS[name]
    narrow, updates = training(model.clone(dtype=jnp.bfloat16))(*made(name))
    _, (wide, _) = plain_gradient(name)
    for logits, expected in zip(jax.tree.leaves(narrow), jax.tree.leaves(wide), strict=True):
        assert logits.dtype == jnp.bfloat16
        error = np.asarray(logits, np.float64) - expected
        assert np.sqrt((error**2).mean()) < expected.std(0).mean() / 2
    assert {leaf.dtype.name for leaf in jax.tree.leaves(updates)} == {"float64"}
