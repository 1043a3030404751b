"""Normalizations by name, and what is refused."""

from functools import partial

import flax.linen as nn
import jax
import pytest
from norm_layers import INCEPTION, KEY, normal

from bnjax.linen import BatchNorm
from bnjax.models import (
    MLP,
    BNInception,
    GoogLeNet,
    InceptionV3,
    LeNet5,
    norm_by_name,
)
from bnjax.models.layers import ConvNorm, DenseNorm


def test_names_take_the_options_of_their_layer():
    made = norm_by_name("ghost:32", momentum=0.5, use_scale=False)()
    assert (type(made), made.batch, made.momentum, made.use_scale) == (BatchNorm, 32, 0.5, False)
    made = norm_by_name("group:8", epsilon=1e-3)()
    assert (type(made), made.num_groups, made.epsilon) == (nn.GroupNorm, 8, 1e-3)
    assert norm_by_name("none") is None


def test_networks_by_the_same_name_are_equal():
    """So that what is compiled for one serves the other."""
    assert MLP(norm="group:2") == MLP(norm="group:2") != MLP(norm="group:4")
    assert hash(MLP(norm="group:2")) == hash(MLP(norm="group:2"))
    assert MLP(norm="none") == MLP()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("grup:8", "no norm 'grup:8'.*batch, ghost:N, group:N, layer, instance, rms.*'none'"),
        ("", "no norm ''"),
        ("none:2", "no norm 'none:2'"),
        ("group", "'group' needs a positive number, as in 'group:8', got 'group'"),
        ("group:0", "needs a positive number.*got 'group:0'"),
        ("group:-1", "needs a positive number"),
        ("ghost:x", "'ghost' needs a positive number.*got 'ghost:x'"),
        ("layer:2", "'layer' takes no number, got 'layer:2'"),
        ("batch:", "'batch' takes no number"),
    ],
)
def test_bad_names_are_refused_where_the_network_is_made(name, message):
    for make in (MLP, LeNet5, GoogLeNet, BNInception, InceptionV3, partial(ConvNorm, 4, (1, 1))):
        with pytest.raises(ValueError, match=message):
            make(norm=name)


def test_bad_options_are_refused():
    with pytest.raises(TypeError, match=r"'group:8' has no option 'momentum'; it has .*epsilon"):
        norm_by_name("group:8", momentum=0.9)
    with pytest.raises(TypeError, match="no option 'num_groups'"):
        norm_by_name("group:8", num_groups=4)
    with pytest.raises(ValueError, match="no norm 'none' with such options"):
        norm_by_name("none", epsilon=1e-3)


def test_what_makes_no_layer_is_refused():
    with pytest.raises(TypeError, match=r"norm is one GroupNorm layer.*functools\.partial"):
        MLP(norm=nn.GroupNorm(8))
    with pytest.raises(TypeError, match=r"norm must be a name, None, or make a layer.*got 8"):
        MLP(norm=8)
    with pytest.raises(TypeError, match=r"must make a flax\.linen\.Module, got 3 of type int"):
        MLP(norm=lambda: 3).init(KEY, normal(2, 3), train=False)


@pytest.mark.parametrize(
    ("norm", "message"),
    [
        ("group:4", r"GroupNorm at conv/norm: num_groups=4.*the 6 channels.*\(here 1, 2, 3, 6\)"),
        ("group:32", "num_groups=32 does not divide the 6 channels"),
        (nn.GroupNorm, "num_groups=32 does not divide the 6 channels"),
        (partial(nn.GroupNorm, num_groups=None, group_size=5), "group_size=5 does not divide"),
        (partial(nn.GroupNorm, group_size=3), "conv/norm: give num_groups, or num_groups=None"),
    ],
)
def test_groups_that_do_not_fit_name_the_layer(norm, message):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return ConvNorm(6, (1, 1), norm=norm, name="conv")(x, train=True)

    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: Network().init(KEY, normal(2, 3, 3, 2)))


@pytest.mark.parametrize("norm", ["instance", "group:4", nn.InstanceNorm])
def test_a_mean_of_one_value_is_refused(norm):
    """Its output would be zero whatever comes in: red without the check, for Flax returns that."""
    with pytest.raises(ValueError, match=r"at hidden1/norm: .*\(2, 4\).*one value for each mean"):
        MLP(hidden=(4,), norm=norm).init(KEY, normal(2, 3), train=False)
    with pytest.raises(ValueError, match=r"LayerNorm at norm: .*one value"):
        DenseNorm(1, norm="layer").init(KEY, normal(2, 3), train=False)


def test_instance_norm_in_a_network_with_a_dense_layer_is_refused():
    with pytest.raises(ValueError, match="InstanceNorm at C5_activation/norm"):
        jax.eval_shape(lambda: LeNet5(norm="instance").init(KEY, normal(2, 28, 28, 1), train=False))


def test_per_activation_needs_a_norm_with_axes():
    with pytest.raises(ValueError, match="needs a norm with an argument `axis`"):
        BNInception(norm="group:1", per_activation=("5b",), **INCEPTION)
