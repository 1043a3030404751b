"""Roles read off the paths of Linen and NNX parameters."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from bnjax.linen import BatchNorm
from bnjax.models import BNInception, GoogLeNet, InceptionV3
from bnjax.training.roles import parameter_roles, role_mask


class Network(nn.Module):
    """One of each: biased and bare kernels, normalizations with and without a scale."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(2, (3, 3))(x)
        x = BatchNorm(use_running_average=True, name="hidden")(x)
        x = nn.Conv(2, (1, 1), use_bias=False, name="bare")(x)
        x = BatchNorm(use_running_average=True, use_scale=False, axis=(1, 2, 3), name="norm")(x)
        x = nn.BatchNorm(use_running_average=True, use_scale=False, name="bn1")(x)
        return nn.Dense(3, name="logits")(x)


EXPECTED = {
    "Conv_0": {"kernel": "kernel", "bias": "bias"},
    "hidden": {"scale": "scale", "bias": "normalization bias"},
    "bare": {"kernel": "kernel"},
    "norm": {"bias": "normalization bias"},
    "bn1": {"bias": "normalization bias"},
    "logits": {"kernel": "kernel", "bias": "bias"},
}


def network_params():
    variables = jax.eval_shape(lambda: Network().init(jax.random.key(0), jnp.zeros((2, 4, 4, 1))))
    return variables["params"]


def test_linen():
    assert parameter_roles(network_params()) == EXPECTED


def test_nnx():
    """Red where its paths, which end in `value`, are taken by their last key."""

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(2, 3, rngs=rngs)
            self.norm = nnx.BatchNorm(3, use_scale=False, rngs=rngs)
            self.layers = nnx.Sequential(nnx.BatchNorm(3, rngs=rngs))

    roles = parameter_roles(nnx.state(Model(nnx.Rngs(0)), nnx.Param))
    found = {
        jax.tree_util.keystr(path[:-1], simple=True, separator="/"): role
        for path, role in jax.tree_util.tree_leaves_with_path(roles)
    }
    assert found == {
        "dense/kernel": "kernel",
        "dense/bias": "bias",
        "norm/bias": "normalization bias",
        "layers/layers/0/scale": "scale",
        "layers/layers/0/bias": "normalization bias",
    }


@pytest.mark.slow
@pytest.mark.parametrize("model", [BNInception, GoogLeNet, InceptionV3])
@pytest.mark.parametrize("norm", [None, BatchNorm, partial(BatchNorm, use_scale=False)])
def test_the_inception_family_has_known_roles(model, norm):
    """Kernels are all that have rank 2 or more; without a norm nothing is a normalization's."""
    network = model(classes=3, width=0.05, norm=norm)
    size = 299 if model is InceptionV3 else 224
    variables = jax.eval_shape(
        lambda: network.init(jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False)
    )
    params = variables["params"]
    roles = parameter_roles(params)
    kernels = jax.tree.map(lambda leaf: leaf.ndim >= 2, params)
    assert jax.tree.map(lambda role: role == "kernel", roles) == kernels
    found = set(jax.tree.leaves(roles)) - {"kernel", "bias"}
    scale = {"scale"} if norm is BatchNorm else set()
    assert found == (scale | {"normalization bias"} if norm else set())


@pytest.mark.parametrize(
    ("params", "path"),
    [
        ({"embed": {"embedding": jnp.zeros((4, 2))}}, r"params\['embed'\]\['embedding'\]"),
        (
            {"dense": {"kernel": jnp.zeros(4), "bias": jnp.zeros(4)}},
            r"\['kernel'\] of shape \(4,\)",
        ),
        ({"offset": {"bias": jnp.zeros(4)}}, r"\['offset'\]\['bias'\]"),
        ({"bias": jnp.zeros(4)}, r"params\['bias'\]"),
    ],
    ids=["name", "rank", "bias alone", "bias at the top"],
)
def test_an_unknown_parameter_is_named(params, path):
    with pytest.raises(ValueError, match=path + r".* is unknown.*give it by name"):
        parameter_roles({**network_params(), **params})


def test_roles_by_name():
    params = {"pool": {"coefficient": jnp.zeros(4), "bias": jnp.zeros(4)}}
    roles = parameter_roles(params, named={"coefficient": "kernel"})
    assert roles == {"pool": {"coefficient": "kernel", "bias": "bias"}}
    with pytest.raises(ValueError, match=r"named must hold roles .*, got 'weight'"):
        parameter_roles(params, named={"coefficient": "weight"})


def test_masks():
    mask = role_mask(["scale", "normalization bias"])(network_params())
    assert mask == jax.tree.map(lambda role: role in ("scale", "normalization bias"), EXPECTED)


@pytest.mark.parametrize("chosen", ["kernel", ["kernels"]])
def test_a_role_that_is_none_is_refused(chosen):
    """A string would be read letter by letter."""
    with pytest.raises(ValueError, match=r"chosen must hold roles out of .*, got 'kernels?'"):
        role_mask(chosen)
