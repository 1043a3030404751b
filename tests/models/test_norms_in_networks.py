"""Every kind of normalization in every family of networks."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import drawn
from marks import slow, slow_but
from norm_layers import INCEPTION, KEY, normal

from bnjax.models import (
    MLP,
    BNInception,
    GoogLeNet,
    InceptionV3,
    LeNet5,
)

NETWORKS = {
    "mlp": (partial(MLP, hidden=(6, 4)), (4, 3, 3, 1)),
    "lenet5": (LeNet5, (4, 28, 28, 1)),
    "googlenet": (partial(GoogLeNet, **INCEPTION, auxiliary=False), (4, 24, 24, 3)),
    "bn_inception": (partial(BNInception, **INCEPTION), (4, 24, 24, 3)),
    "inception_v3": (partial(InceptionV3, **INCEPTION, auxiliary="none"), (4, 24, 24, 3)),
    "inception_v2": (
        partial(InceptionV3, **INCEPTION, auxiliary="none", outline="table_1"),
        (4, 24, 24, 3),
    ),
}
NORMS = {
    "batch": "batch",
    "ghost": "ghost:2",
    "group": "group:1",
    "layer": nn.LayerNorm,
    "instance": nn.InstanceNorm,
    "rms": "rms",
    "flax": lambda: nn.BatchNorm(),
}
STATISTICS = ("batch", "ghost", "flax")
DENSE = ("mlp", "lenet5")  # whose dense layers leave one value to a mean of instance normalization
PLACES = [(n, k) for n in NETWORKS for k in NORMS if (n in DENSE, k) != (True, "instance")]


def logits_of(model, variables, x, *, train):
    outputs, _ = model.apply(
        variables, x, train=train, mutable=["batch_stats"], rngs={"dropout": KEY}
    )
    return jax.tree.leaves(outputs)[0]


@pytest.mark.parametrize(
    ("network", "kind"), [place if place[0] in DENSE else slow(*place) for place in PLACES]
)
def test_every_norm_fits_into_every_network(network, kind):
    """Traced: which variables there are, and the shapes of outputs in both modes."""
    make, shape = NETWORKS[network]
    model, x = make(norm=NORMS[kind]), jnp.zeros(shape)

    def run():
        variables = model.init(KEY, x, train=False)
        return variables, [logits_of(model, variables, x, train=train) for train in (True, False)]

    variables, logits = jax.eval_shape(run)
    assert [leaf.shape for leaf in logits] == [(4, 10), (4, 10)]
    assert ("batch_stats" in variables) == (kind in STATISTICS)
    leaves = jax.tree_util.tree_leaves_with_path(variables["params"])
    paths = {tuple(key.key for key in path) for path, _ in leaves}
    layers = {path[:-2] for path in paths if path[-2] == "norm"}
    assert len(layers) >= 2
    assert all("norm" in path or path[0] == "logits" for path in paths if path[-1] == "bias")
    if network not in DENSE:  # each convolution has its own
        assert layers == {path[:-2] for path in paths if path[-2] == "conv"}


def check_gradients(network, kind):
    """All finite, and none zero everywhere; whether both modes give the same outputs."""
    make, shape = NETWORKS[network]
    model, x = make(norm=NORMS[kind]), normal(*shape)

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # it runs once
    def run(variables):
        rest = {name: variables[name] for name in variables if name != "params"}

        def loss(params):
            logits = logits_of(model, {"params": params, **rest}, x, train=True)
            return jnp.sum(logits * jnp.cos(jnp.arange(40.0)).reshape(4, 10)), logits

        (_, logits), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return logits, logits_of(model, variables, x, train=False), gradient

    trained, evaluated, gradient = run(drawn(model, x))
    assert np.allclose(trained, evaluated, rtol=1e-4, atol=1e-5) == (kind not in STATISTICS)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        assert np.any(leaf), path


@pytest.mark.parametrize("kind", slow_but(["batch", "group"], sorted({*NORMS} - {"instance"})))
def test_gradients_of_an_mlp(kind):
    check_gradients("mlp", kind)


@pytest.mark.slow
def test_gradients_of_lenet():
    check_gradients("lenet5", "layer")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "kind"),
    [
        ("googlenet", "group"),
        ("bn_inception", "layer"),
        ("inception_v3", "flax"),
        ("inception_v2", "group"),
    ],
)
def test_gradients_of_inception_networks(network, kind):
    """Each network and each kind; that every pair fits is tested above."""
    check_gradients(network, kind)
