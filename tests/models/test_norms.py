"""Any of Flax's normalizations in any network, by what makes it and by name."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnjax.linen import BatchNorm
from bnjax.models import (
    MLP,
    BNInception,
    GoogLeNet,
    InceptionV3,
    LeNet5,
    fuses_activation,
    norm_by_name,
)
from bnjax.models.layers import ConvNorm, DenseNorm, NormActivation

KEY = jax.random.key(0)


class OwnCall(nn.Module):
    """A layer of somebody's own: it takes the mode in its call alone."""

    @nn.compact
    def __call__(self, x, *, train: bool):
        return nn.BatchNorm(name="inner")(x, use_running_average=not train)


class OwnField(nn.Module):
    """Another, whose field has a mode by default."""

    use_running_average: bool = False

    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(self.use_running_average, name="inner")(x)


class Subclass(BatchNorm):
    """With another default."""

    momentum: float = 0.5


class OwnSum(BatchNorm):
    """With a call of its own."""

    @nn.compact
    def __call__(self, x, use_running_average=None):
        return x + nn.BatchNorm(self.use_running_average, name="inner")(x, use_running_average)


def asks_for_mode(use_running_average, **options):
    """What networks wanted to be given before they looked at the layer."""
    return nn.GroupNorm(num_groups=2, **options)


def hides_batch_norm(**options):
    return BatchNorm(momentum=0.5, epsilon=1e-3, **options)


WITHOUT_STATISTICS = {
    "group": partial(nn.GroupNorm, num_groups=2),
    "positional": partial(nn.GroupNorm, 2),
    "layer": nn.LayerNorm,
    "rms": nn.RMSNorm,
    "lambda": lambda: nn.GroupNorm(2),
    "lambda_name": lambda name: nn.GroupNorm(2, name=name),
    "lambda_options": lambda **options: nn.GroupNorm(2, **options),
    "asks_for_mode": asks_for_mode,
    "by_name": "group:2",
}
WITH_STATISTICS = {
    "flax": nn.BatchNorm,
    "ours": BatchNorm,
    "partial": partial(BatchNorm, momentum=0.5),
    "function": hides_batch_norm,
    "lambda": lambda: nn.BatchNorm(momentum=0.5),
    "subclass": Subclass,
    "own_call": OwnCall,
    "lambda_own_call": lambda **options: OwnCall(**options),
    "own_field": OwnField,
    "lambda_own_field": lambda: OwnField(),
    "own_sum": OwnSum,
    "remat": nn.remat(BatchNorm),
    "by_name": "batch",
    "ghost": "ghost:3",
}


def normal(*shape):
    return jnp.asarray(np.random.default_rng(1).normal(2, 3, shape), jnp.float32)


def trained(model, x):
    """Variables of a model, none at its initial zero or one."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: model.init(KEY, x, train=False))
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype), shapes
    )


def in_training(model, variables, x):
    return model.apply(variables, x, train=True, mutable=["batch_stats"])


@pytest.mark.parametrize("kind", WITHOUT_STATISTICS)
def test_a_norm_without_statistics_fits_as_it_is(kind):
    """Its scale and bias lie at the same place whoever makes it, and no layer has a bias before."""
    x = normal(3, 4, 4, 2)
    layer = ConvNorm(4, (1, 1), norm=WITHOUT_STATISTICS[kind])
    variables = trained(layer, x)
    assert set(variables) == {"params"}
    assert set(variables["params"]) == {"conv", "norm"}
    assert set(variables["params"]["conv"]) == {"kernel"}
    assert set(variables["params"]["norm"]) == {"scale", "bias"} - (
        {"bias"} if kind == "rms" else set()
    )
    y, updates = in_training(layer, variables, x)
    assert not updates
    np.testing.assert_array_equal(y, layer.apply(variables, x, train=False))


@pytest.mark.parametrize("kind", WITH_STATISTICS)
def test_the_mode_reaches_a_norm_with_statistics(kind):
    """In training the batch's moments normalize, and the statistics move; not so in inference."""
    x = normal(6, 2)
    layer = NormActivation(WITH_STATISTICS[kind], lambda x: x)
    variables = trained(layer, x)
    assert set(variables["params"]) == set(variables["batch_stats"]) == {"norm"}
    _, updates = in_training(layer, variables, x)
    before, after = (jax.tree.leaves(each["batch_stats"]) for each in (variables, updates))
    assert all(np.any(old != new) for old, new in zip(before, after, strict=True))
    _, updates = layer.apply(variables, x, train=False, mutable=["batch_stats"])
    for old, new in zip(before, jax.tree.leaves(updates["batch_stats"]), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_function_keeps_the_arguments_it_sets():
    x = normal(6, 2)
    moved = {}
    for name, norm in (("function", hides_batch_norm), ("subclass", Subclass)):
        layer = NormActivation(norm, nn.relu)
        _, updates = in_training(layer, layer.init(KEY, x, train=False), x)
        moved[name] = updates["batch_stats"]["norm"]["mean"]
    for mean in moved.values():
        np.testing.assert_allclose(mean, 0.5 * np.asarray(x).mean(0), rtol=1e-6)


@pytest.mark.parametrize(
    "norm",
    [
        partial(BatchNorm, use_running_average=True),
        lambda **options: BatchNorm(use_running_average=True, **options),
        partial(nn.BatchNorm, True),
    ],
    ids=["partial", "function", "positional"],
)
def test_a_norm_that_is_frozen_stays_so_in_training(norm):
    x = normal(6, 2)
    layer = NormActivation(norm, nn.relu)
    variables = trained(layer, x)
    y, _ = in_training(layer, variables, x)
    np.testing.assert_array_equal(y, layer.apply(variables, x, train=False))


@pytest.mark.parametrize("kind", ["group", "lambda", "lambda_options", "asks_for_mode", "by_name"])
def test_the_dtype_of_a_network_reaches_its_norm(kind):
    layer = ConvNorm(4, (1, 1), norm=WITHOUT_STATISTICS[kind], dtype=jnp.bfloat16)
    assert output_dtype(layer, normal(3, 2, 2, 2)) == jnp.bfloat16


def test_a_dtype_of_the_norms_own_stays():
    layer = DenseNorm(4, norm=partial(nn.LayerNorm, dtype=jnp.float32), dtype=jnp.bfloat16)
    assert output_dtype(layer, normal(3, 2)) == jnp.float32


def output_dtype(layer, x):
    with jax.numpy_dtype_promotion("standard"):  # Flax's layers widen what they sum
        return jax.eval_shape(lambda: layer.init_with_output(KEY, x, train=True))[0].dtype


def test_two_places_have_a_norm_each():
    """Red if a function that returns one and the same layer shares its variables."""
    one = nn.GroupNorm(2)
    variables = MLP(hidden=(4, 6), norm=lambda: one).init(KEY, normal(2, 3), train=False)
    scales = [variables["params"][f"hidden{i}"]["norm"]["scale"].shape for i in (1, 2)]
    assert scales == [(4,), (6,)]


# Values, against NumPy in float64 that shares no code with Flax.


def group_norm(x, groups, epsilon=1e-6):
    """Over an example's positions and the channels of a group."""
    shape = x.shape
    x = x.reshape(shape[0], -1, groups, shape[-1] // groups)
    mean, var = x.mean((1, 3), keepdims=True), x.var((1, 3), keepdims=True)
    return ((x - mean) / np.sqrt(var + epsilon)).reshape(shape)


def layer_norm(x, epsilon=1e-6):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)


def instance_norm(x):
    return group_norm(x, x.shape[-1])


def rms_norm(x, epsilon=1e-6):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)


def ghost_norm(x, examples, epsilon=1e-5):
    axes = (1, *range(2, x.ndim))
    shape = x.shape
    x = x.reshape(-1, examples, *shape[1:])
    mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return ((x - mean) / np.sqrt(var + epsilon)).reshape(shape)


REFERENCES = {
    "group:2": partial(group_norm, groups=2),
    "group:1": partial(group_norm, groups=1),
    "layer": layer_norm,
    "instance": instance_norm,
    "rms": rms_norm,
    "batch": lambda x: ghost_norm(x, len(x)),
    "ghost:2": partial(ghost_norm, examples=2),
    "none": lambda x: x,
}


@pytest.mark.parametrize("name", REFERENCES)
def test_convolutions_by_name_against_float64(name):
    """ConvNorm with a 1x1 kernel, in training: the product, the normalization, scale and bias."""
    x = normal(4, 3, 5, 3)
    layer = ConvNorm(4, (1, 1), norm=name)
    variables = trained(layer, x)
    y, _ = in_training(layer, variables, x)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    kernel = params["conv"]["kernel"][0, 0]
    expected = REFERENCES[name](np.asarray(x, np.float64) @ kernel)
    affine = params["conv"] if name == "none" else params["norm"]
    expected = expected * affine.get("scale", 1) + affine.get("bias", 0)
    np.testing.assert_allclose(y, np.maximum(expected, 0), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["group:2", "layer", "rms", "batch"])
def test_an_mlp_by_name_against_float64(name):
    """Two hidden layers inside the network."""
    x = normal(5, 2, 3)
    model = MLP(hidden=(6, 4), classes=3, norm=name)
    variables = trained(model, x)
    logits, _ = in_training(model, variables, x)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    y = np.asarray(x, np.float64).reshape(5, -1)
    for i in (1, 2):
        y = REFERENCES[name](y @ params[f"dense{i}"]["kernel"])
        norm = params[f"hidden{i}"]["norm"]
        y = 1 / (1 + np.exp(-(y * norm["scale"] + norm.get("bias", 0))))
    expected = y @ params["logits"]["kernel"] + params["logits"]["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


# Every kind in every family of networks.

INCEPTION = {"classes": 10, "width": 0.1, "stem_stride": 1, "dropout": 0.0}  # two channels at least
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
SLOW = [pytest.mark.slow]
DENSE = ("mlp", "lenet5")  # whose dense layers leave one value to a mean of instance normalization
PLACES = [(n, k) for n in NETWORKS for k in NORMS if (n in DENSE, k) != (True, "instance")]


def logits_of(model, variables, x, *, train):
    outputs, _ = model.apply(
        variables, x, train=train, mutable=["batch_stats"], rngs={"dropout": KEY}
    )
    return jax.tree.leaves(outputs)[0]


FAST = ("mlp", "lenet5", "bn_inception")  # the other Inceptions are of the same layers


@pytest.mark.parametrize(
    ("network", "kind"),
    [
        pytest.param(*place, marks=[] if place[0] in FAST or place[1] == "group" else SLOW)
        for place in PLACES
    ],
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

    def run():
        params, rest = model.init(KEY, x, train=False), {}
        if "batch_stats" in params:
            rest = {"batch_stats": params["batch_stats"]}
        params = params["params"]

        def loss(params):
            logits = logits_of(model, {"params": params, **rest}, x, train=True)
            return jnp.sum(logits * jnp.cos(jnp.arange(40.0)).reshape(4, 10)), logits

        (_, logits), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return logits, logits_of(model, {"params": params, **rest}, x, train=False), gradient

    trained, evaluated, gradient = jax.jit(run)()
    assert np.allclose(trained, evaluated, rtol=1e-4, atol=1e-5) == (kind not in STATISTICS)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        assert np.any(leaf), path


@pytest.mark.parametrize("kind", [kind for kind in NORMS if kind != "instance"])
def test_gradients_of_an_mlp(kind):
    check_gradients("mlp", kind)


def test_gradients_of_lenet():
    check_gradients("lenet5", "layer")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["group", "layer", "flax"])
@pytest.mark.parametrize("network", ["googlenet", "bn_inception", "inception_v3", "inception_v2"])
def test_gradients_of_inception_networks(network, kind):
    check_gradients(network, kind)


# Which nonlinearities a normalization applies itself.


FUSED = {
    "class": BatchNorm,
    "partial": partial(BatchNorm, momentum=0.5),
    "partial_of_partial": partial(partial(BatchNorm, momentum=0.5), epsilon=1e-3),
    "function": hides_batch_norm,
    "lambda": lambda: BatchNorm(),
    "subclass": Subclass,
    "by_name": "batch",
    "ghost": "ghost:3",
}


@pytest.mark.parametrize("norm", FUSED.values(), ids=FUSED)
@pytest.mark.parametrize("activation", [nn.relu, nn.sigmoid], ids=["relu", "sigmoid"])
def test_the_activation_is_fused_however_batch_norm_is_made(norm, activation):
    """The layer is told to apply it, and nothing else does."""
    assert fuses_activation(norm, activation)
    seen = []

    def watch(next_call, args, kwargs, context):
        if context.method_name == "__call__" and isinstance(context.module, BatchNorm):
            seen.append((context.module.path, context.module.activation))
        return next_call(*args, **kwargs)

    layer, x = NormActivation(norm, activation), normal(6, 2)
    with nn.intercept_methods(watch):
        y = jax.eval_shape(lambda: layer.init_with_output(KEY, x, train=False))[0]
    assert seen == [(("norm",), "relu" if activation is nn.relu else "sigmoid")]
    assert y.shape == x.shape


APART = {
    "no_norm": (None, nn.relu),
    "none": ("none", nn.relu),
    "group": ("group:1", nn.relu),
    "flax": (nn.BatchNorm, nn.relu),
    "tanh": (BatchNorm, nn.tanh),
    "relu_in_a_function": (BatchNorm, lambda x: nn.relu(x)),
    "activation_of_its_own": (partial(BatchNorm, activation="relu"), nn.sigmoid),
    "call_of_its_own": (OwnSum, nn.relu),
    "remat": (nn.remat(BatchNorm), nn.relu),
}


@pytest.mark.parametrize(("norm", "activation"), APART.values(), ids=APART)
def test_what_is_not_fused_is_said_and_applied_afterwards(norm, activation):
    assert not fuses_activation(norm, activation)
    layer, x = NormActivation(norm, activation), normal(6, 2)
    variables = trained(layer, x)
    y, _ = in_training(layer, variables, x)
    before, _ = in_training(NormActivation(norm, lambda x: x), variables, x)
    np.testing.assert_allclose(y, activation(before), rtol=1e-6)


def test_fusing_saves_memory_however_batch_norm_is_made():
    """As much as the class itself does: red if the activation's input is kept beside its output."""
    x = normal(8, 5)

    def kept(norm, activation):
        layer = NormActivation(norm, activation)
        variables = layer.init(KEY, x, train=False)
        residuals = jax.eval_shape(
            lambda x: jax.vjp(lambda x: in_training(layer, variables, x)[0], x)[1], x
        )
        return sum(leaf.size for leaf in jax.tree.leaves(residuals))

    for norm in (hides_batch_norm, Subclass):
        fused, apart = kept(norm, nn.sigmoid), kept(norm, lambda x: nn.sigmoid(x))
        assert fused == kept(BatchNorm, nn.sigmoid) < apart


# Names, and errors.


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
    model = BNInception(norm="group:1", per_activation=("5b",), **INCEPTION)
    with pytest.raises(ValueError, match="needs a norm with an argument `axis`"):
        model.init(KEY, normal(2, 24, 24, 3), train=False)
