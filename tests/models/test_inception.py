"""What the networks of the Inception family share: modes, types, rematerialization, refusals."""

import re
from collections import Counter
from functools import cache, partial
from typing import Any, NamedTuple

import eight_devices
import flax.errors
import flax.linen as nn
import inception_reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow, slow_but

from bnjax.linen import BatchNorm
from bnjax.models import BNInception, GoogLeNet, InceptionV3, Logits
from bnjax.models.bn_inception import FIGURE_5, InceptionModule
from bnjax.models.googlenet import adaptive_average_pool
from bnjax.models.layers import ConvNorm, Dropout
from bnjax.models.norms import linear

NETWORKS = [GoogLeNet, BNInception, InceptionV3]
SMALL = {"classes": 5, "width": 1 / 16, "stem_stride": 1}


@cache  # tracing a network takes a second
def abstract(model, side=24, dtype="float32"):
    images = jax.ShapeDtypeStruct((2, side, side, 3), dtype)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images), images


class Trace(NamedTuple):
    """A call of a network, traced: shapes and types of what it returns and keeps."""

    logits: Any
    kept: Any
    modules: list[nn.Module]
    jaxpr: Any


@cache
def trace(model, side=24, *, train=True, dropout=True, dtype="float32"):
    modules = []

    def record(call, args, kwargs, context):
        if context.method_name == "__call__":
            modules.append(context.module.clone(parent=None))
        return call(*args, **kwargs)

    rngs = {"dropout": jax.random.key(0)} if dropout else {}
    mutable = ["batch_stats", "intermediates"]
    call = partial(model.apply, train=train, mutable=mutable, rngs=rngs)
    arguments = abstract(model, side, dtype)
    with nn.intercept_methods(record):
        jaxpr, shapes = jax.make_jaxpr(call, return_shape=True)(*arguments)
    return Trace(*shapes, modules, jaxpr)


def layers(trace, kind):
    return [module for module in trace.modules if isinstance(module, kind)]


def leaves(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.parametrize("network", slow_but([GoogLeNet], NETWORKS))
@pytest.mark.parametrize("norm", [None, BatchNorm], ids=["none", "norm"])
def test_biases_stand_where_nothing_normalizes(network, norm):
    """And every convolution is normalized."""
    variables, _ = abstract(network(**SMALL, norm=norm))
    params = leaves(variables["params"])
    convolutions = {path.removesuffix("/conv/kernel") for path in params if "/conv/ker" in path}
    assert len(convolutions) > 50
    for path in convolutions:
        assert (f"{path}/conv/bias" in params) == (norm is None)
        assert (f"{path}/norm/scale" in params) == (norm is not None)
    assert ("batch_stats" in variables) == (norm is not None)


@pytest.mark.parametrize("network", NETWORKS)
def test_names_tell_the_size_of_the_kernel(network):
    """Red if 1x7 and 7x1 change places, which no count shows."""
    for path, leaf in leaves(abstract(network(**SMALL, norm=BatchNorm))[0]["params"]).items():
        layer = path.removesuffix("/conv/kernel").split("/")[-1]
        if not path.endswith("/conv/kernel") or layer == "hidden":
            continue
        sizes = re.findall(r"(\d)x(\d)", layer.removesuffix("_a").removesuffix("_b"))
        if layer.endswith("_reduce") or layer == "pool_project":
            sizes = [("1", "1")]
        if sizes:
            assert leaf.shape[:2] == tuple(map(int, sizes[-1])), path
        else:
            assert "/" not in path.removesuffix("/conv/kernel"), path  # of the stem


@pytest.mark.slow
def test_flax_normalizes_as_well():
    """Red if what a factory gets is known to ours alone."""
    ours, flax = (
        BNInception(**SMALL, norm=norm, per_activation=("5b",))
        for norm in (BatchNorm, nn.BatchNorm)
    )
    assert abstract(ours)[0] == abstract(flax)[0]
    assert trace(ours)[:2] == trace(flax)[:2]


@pytest.mark.parametrize("network", slow_but([GoogLeNet], NETWORKS))
def test_training_updates_all_statistics_and_inference_reads_them(network):
    model = network(**SMALL, norm=BatchNorm)
    assert leaves(trace(model).kept["batch_stats"]) == leaves(abstract(model)[0]["batch_stats"])
    for train in (True, False):
        norms = layers(trace(model, train=train), BatchNorm)
        assert {layer.use_running_average for layer in norms} == {not train}


def test_side_heads_are_there_in_training_only():
    for network, heads in ((GoogLeNet, 2), (InceptionV3, 1)):
        model = network(**SMALL, norm=BatchNorm)
        assert sum(name.startswith("auxiliary") for name in abstract(model)[0]["params"]) == heads
        for train, expected in ((True, heads), (False, 0)):
            logits, kept, *_ = trace(model, train=train)
            assert isinstance(logits, Logits)
            assert logits.main.shape == (2, 5)
            assert [head.shape for head in logits.auxiliary] == [(2, 5)] * expected
            names = {path.split("/")[0] for path in leaves(kept["intermediates"])}
            assert sum(name.startswith("auxiliary") for name in names) == expected
    assert trace(BNInception(**SMALL, norm=BatchNorm)).logits.shape == (2, 5)


@pytest.mark.slow
def test_side_heads_can_be_left_out():
    for model in (GoogLeNet(**SMALL, auxiliary=False), InceptionV3(**SMALL, auxiliary="none")):
        assert not any(name.startswith("auxiliary") for name in abstract(model)[0]["params"])
        assert trace(model).logits.auxiliary == ()


@pytest.mark.parametrize(
    ("model", "rates"),
    [
        (GoogLeNet(**SMALL, norm=BatchNorm), [0.7, 0.7, 0.4]),
        slow(GoogLeNet(**SMALL, dropout=0.1, auxiliary_dropout=0.2), [0.2, 0.2, 0.1]),
        (BNInception(**SMALL, norm=BatchNorm), [0.0]),
        slow(InceptionV3(**SMALL, norm=BatchNorm), [0.2]),
    ],
    ids=["googlenet", "googlenet_other", "bn_inception", "v3"],
)
def test_dropout(model, rates):
    """Its rates by default, and that `train` switches it: each rate draws once."""
    assert [layer.rate for layer in layers(trace(model), Dropout)] == rates
    drawn = [
        str(trace(model, train=train).jaxpr).count("name=_bernoulli") for train in (True, False)
    ]
    assert drawn == [sum(rate > 0 for rate in rates), 0]


def test_inference_needs_no_random_numbers():
    trace(GoogLeNet(**SMALL), train=False, dropout=False)
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        trace(GoogLeNet(**SMALL), train=True, dropout=False)


UNUSUAL = {"norm": BatchNorm, "dtype": jnp.bfloat16, "activation": nn.sigmoid, "remat": True}


@pytest.mark.parametrize("network", slow_but([GoogLeNet], NETWORKS))
def test_bfloat16_computes_and_float32_keeps(network):
    """Every nonlinearity's input is bfloat16; red if a float32 parameter widens one."""
    model = network(**SMALL, **UNUSUAL)
    assert types(abstract(model)[0]) == {"float32"}
    logits, kept, *_ = trace(model)
    assert types(logits) == {"bfloat16"}
    assert types(kept["intermediates"]) == {"bfloat16"}
    assert types(kept["batch_stats"]) == {"float32"}


def types(tree):
    return {leaf.dtype.name for leaf in jax.tree.leaves(tree)}


@pytest.mark.slow
def test_parameters_can_be_bfloat16():
    """In a network that has every kind of layer."""
    norm = partial(BatchNorm, param_dtype=jnp.bfloat16)
    model = GoogLeNet(**SMALL, norm=norm, param_dtype=jnp.bfloat16)
    assert types(abstract(model, dtype="bfloat16")[0]["params"]) == {"bfloat16"}
    assert types(trace(model, dtype="bfloat16").logits) == {"bfloat16"}


@pytest.mark.parametrize("network", NETWORKS)
def test_activation_reaches_every_layer(network):
    """As many sigmoids as normalizations, and no other nonlinearity."""
    model = network(**SMALL, **UNUSUAL)
    text = str(trace(model).jaxpr)
    scales = [path for path in leaves(abstract(model)[0]["params"]) if path.endswith("norm/scale")]
    assert text.count("= logistic") == len(scales)
    assert "relu" not in text


@pytest.mark.parametrize(
    ("network", "firsts"),
    [
        (BNInception, {"double3x3_a": 10}),
        (
            InceptionV3,  # three traditional modules, four factorized, two reductions
            {
                "double3x3_a": 3 + 1,
                "conv7x7_1x7": 4 + 1,
                "double7x7_a_7x1": 4,
                "double7x7_b_7x1": 4,
            },
        ),
    ],
)
@pytest.mark.slow
def test_linear_factors_are_the_first_of_two(network, firsts):
    """In all modules that have some, and with the parameters of the others."""
    model = network(**SMALL, norm=BatchNorm, linear_factors=True)
    convolutions = layers(trace(model), ConvNorm)
    assert Counter(layer.name for layer in convolutions if layer.activation is linear) == firsts
    assert abstract(model) == abstract(network(**SMALL, norm=BatchNorm))


@pytest.mark.parametrize("network", NETWORKS)
def test_initializer_reaches_every_convolution(network):
    """But the side head's dense layer in Inception-v3, which has its own."""
    shapes = []

    def kernel_init(key, shape, dtype):
        shapes.append(shape)
        return jnp.zeros(shape, dtype)

    variables, _ = abstract(network(**SMALL, kernel_init=kernel_init))
    convolutions = [path for path in leaves(variables["params"]) if path.endswith("conv/kernel")]
    own = 1 if network is InceptionV3 else 0
    assert len([shape for shape in shapes if len(shape) == 4]) == len(convolutions) - own


def test_per_activation_normalization():
    """A scale for each position and channel in the modules that are named, in no other."""
    model = BNInception(**SMALL, norm=BatchNorm, per_activation=("5a", "5b"))
    variables, _ = abstract(model)
    for path, leaf in leaves(variables["params"]).items():
        if path.endswith("norm/scale"):
            assert leaf.ndim == (3 if path.startswith("inception_5") else 1), path
    assert variables["params"]["inception_5b"]["conv3x3"]["norm"]["scale"].shape == (6, 6, 20)


@pytest.mark.parametrize(
    ("network", "modules"), [(GoogLeNet, 9), (BNInception, 10), (InceptionV3, 11)]
)
def test_remat_wraps_each_module_and_keeps_the_parameters(network, modules):
    plain, remat = network(**SMALL, norm=BatchNorm), network(**SMALL, **UNUSUAL)
    assert abstract(plain) == abstract(remat)
    for model, expected in ((plain, 0), (remat, modules)):
        names = [equation.primitive.name for equation in trace(model).jaxpr.eqns]
        assert sum("remat" in name or "checkpoint" in name for name in names) == expected


def module(remat, **options):
    conv = partial(ConvNorm, norm=partial(BatchNorm, momentum=0.9), width=1 / 16, **options)
    kind = nn.remat(InceptionModule, static_argnums=(2,)) if remat else InceptionModule
    return kind(FIGURE_5[3], conv, False)


def draw(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.1, 1, leaf.shape), leaf.dtype), tree)


@pytest.mark.slow
def test_remat_gives_the_same_values():
    """Output, statistics and gradients of one module, in training."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5, 5, 6)), jnp.float32)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(4, 5, 5, 36)), jnp.float32)
    variables = draw(jax.eval_shape(lambda: module(False).init(jax.random.key(0), x, False)))

    @partial(jax.jit, static_argnums=1, compiler_options={"xla_backend_optimization_level": 0})
    def gradients(params, remat):
        def loss(params):
            y, updates = module(remat).apply(
                variables | {"params": params}, x, True, mutable=["batch_stats"]
            )
            return (weights * y).sum(), updates

        return jax.grad(loss, has_aux=True)(params)

    plain, stats = gradients(variables["params"], False)
    remat, remat_stats = gradients(variables["params"], True)
    for path, leaf in leaves(stats).items():
        np.testing.assert_allclose(leaf, leaves(remat_stats)[path], rtol=1e-6, err_msg=path)
    for path, leaf in leaves(plain).items():
        largest = abs(leaf).max()
        np.testing.assert_allclose(
            leaves(remat)[path], leaf, rtol=1e-4, atol=1e-5 * largest, err_msg=path
        )


def test_bfloat16_is_close_to_float32():
    """One module in inference; each of its layers rounds to 8 bits."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5, 5, 6)), jnp.float32)
    variables = draw(jax.eval_shape(lambda: module(False).init(jax.random.key(0), x, False)))
    wide = jax.jit(partial(module(False).apply, train=False))(variables, x)
    narrow = jax.jit(partial(module(False, dtype=jnp.bfloat16).apply, train=False))(variables, x)
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        narrow.astype(jnp.float32), wide, rtol=0, atol=4 * 2**-8 * float(abs(wide).max())
    )


@pytest.mark.parametrize("size", [5, 14, 16, 2])
def test_side_heads_of_torchvision_pool_by_windows_that_cover_the_grid(size):
    """Window i from floor(i n / 4) to ceil((i + 1) n / 4): at 14, 4 rows from 0, 3, 7 and 10."""
    x = np.random.default_rng(0).normal(size=(2, size, 7, 3)).astype(np.float32)
    y = adaptive_average_pool(jnp.asarray(x), 4)
    for i in range(4):
        for j in range(4):
            rows = slice(int(np.floor(i * size / 4)), int(np.ceil((i + 1) * size / 4)))
            columns = slice(int(np.floor(j * 7 / 4)), int(np.ceil((j + 1) * 7 / 4)))
            expected = x[:, rows, columns].astype(np.float64).mean((1, 2))
            np.testing.assert_allclose(y[:, i, j], expected, rtol=1e-5, atol=1e-6)


SMALLEST = {  # of the side, for each stride of the stem
    (GoogLeNet, 8): 65,
    (GoogLeNet, 1): 9,
    (BNInception, 8): 33,
    (BNInception, 1): 5,
    (InceptionV3, 8): 107,
    (InceptionV3, 1): 17,
}


@pytest.mark.parametrize(("network", "stride"), SMALLEST)
def test_images_too_small_for_the_stem_are_refused(network, stride):
    """And images of one pixel more are not."""
    least = SMALLEST[network, stride]
    model = network(**SMALL | {"stem_stride": stride})
    abstract(model, least)
    model.check_size(least, least + 1)
    with pytest.raises(ValueError, match=rf"images of {least + 1}x{least - 1} are too small"):
        model.check_size(least + 1, least - 1)
    with pytest.raises(
        ValueError,
        match=rf"images of {least - 1}x{least - 1} are too small for stem_stride={stride}.*"
        rf"larger images, of {least}x{least} at least",
    ):
        abstract(model, least - 1)


def test_images_of_two_pixels_are_refused_by_name():
    """Not by a normalization that finds no values."""
    with pytest.raises(ValueError, match=r"images of 2x2 are too small.* grid of 0x0"):
        abstract(InceptionV3(norm=BatchNorm, auxiliary="none"), 2)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    ("options", "shape", "dtype", "message"),
    [
        ({}, (2, 24, 24, 1), "float32", r"\[n, h, w, 3\].*got \(2, 24, 24, 1\).*`channels`"),
        ({}, (2, 3, 24, 24), "float32", r"\[n, h, w, 3\], channels last"),
        ({"channels": 1}, (2, 24, 24, 3), "float32", r"\[n, h, w, 1\]"),
        ({}, (24, 24, 3), "float32", r"\[n, h, w, 3\]"),
        ({}, (2, 24, 24, 3), "uint8", "images must be floating, got uint8"),
        ({"classes": 1}, (2, 24, 24, 3), "float32", "classes must be 2 or more, got 1"),
        ({"width": 0.0}, (2, 24, 24, 3), "float32", "width must be positive, got 0.0"),
        ({"width": float("inf")}, (2, 24, 24, 3), "float32", "width must be positive, got inf"),
        ({"width": "1"}, (2, 24, 24, 3), "float32", "width must be a number, got '1'"),
        ({"dropout": "0.5"}, (2, 24, 24, 3), "float32", "dropout must be a number, got '0.5'"),
        ({"stem_stride": 3}, (2, 24, 24, 3), "float32", r"stem_stride must be one of .*got 3"),
        ({"dropout": 1.0}, (2, 24, 24, 3), "float32", r"dropout must be in \[0, 1\), got 1.0"),
    ],
    ids=str,
)
def test_bad_input_is_refused(network, options, shape, dtype, message):
    images = jax.ShapeDtypeStruct(shape, dtype)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda x: network(**SMALL | options).init(jax.random.key(0), x, train=False), images
        )


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (BNInception, {"stem": "sparse"}, "stem must be one of .*got 'sparse'"),
        (BNInception, {"figure_5": "both"}, "figure_5 must be one of .*got 'both'"),
        (BNInception, {"padding": "VALID"}, "padding must be one of .*got 'VALID'"),
        (BNInception, {"per_activation": ("6a",)}, "per_activation must be one of .*got '6a'"),
        (BNInception, {"per_activation": ("5b",)}, r"per_activation=\('5b',\) needs a norm"),
        (GoogLeNet, {"variant": "caffe"}, "variant must be one of .*got 'caffe'"),
        (GoogLeNet, {"padding": "VALID"}, "padding must be one of .*got 'VALID'"),
        (GoogLeNet, {"auxiliary_dropout": 1.0}, r"auxiliary_dropout must be in .*got 1.0"),
        (GoogLeNet, {"auxiliary_dropout": "0.7"}, "auxiliary_dropout must be a number, got '0.7'"),
        (InceptionV3, {"outline": "v4"}, "outline must be one of .*got 'v4'"),
        (InceptionV3, {"stem": "dense"}, "stem must be one of .*got 'dense'"),
        (InceptionV3, {"auxiliary": True}, "auxiliary must be one of .*got True"),
        (InceptionV3, {"stem_padding": "FULL"}, "stem_padding must be one of .*got 'FULL'"),
        (InceptionV3, {"grid_reduction": "pool"}, "grid_reduction must be one of .*got 'pool'"),
        (InceptionV3, {"factorized_size": 4}, "factorized_size must be odd and 3 or more, got 4"),
        (InceptionV3, {"factorized_size": 1}, "factorized_size must be odd and 3 or more, got 1"),
        (
            BNInception,
            {"linear_factors": True, "factorize_5x5": False},
            "linear_factors=True needs factors, got factorize_5x5=False",
        ),
    ],
)
def test_unknown_options_are_refused(network, options, message):
    """By the constructor."""
    with pytest.raises(ValueError, match=message):
        network(**SMALL, **options)


@pytest.mark.parametrize("network", NETWORKS)
def test_parameters_for_other_classes_are_refused(network):
    variables, images = abstract(network(**SMALL, norm=BatchNorm))
    other = network(**SMALL | {"classes": 7}, norm=BatchNorm)
    with pytest.raises(ValueError, match=r"are for 5 classes.*classes=7"):
        jax.eval_shape(partial(other.apply, train=False), variables, images)


def test_a_batch_on_eight_devices_is_the_same_batch():
    """One module in training, its batch split over the devices under jit: moments of all of it."""
    x = np.random.default_rng(0).normal(size=(16, 4, 4, 6)).astype(np.float32)
    variables = draw(jax.eval_shape(lambda: module(False).init(jax.random.key(0), x, False)))
    step = jax.jit(partial(module(False).apply, train=True, mutable=["batch_stats"]))
    mesh = eight_devices.mesh(8)
    split = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
    alone, together = step(variables, x), step(variables, split)
    for path, leaf in leaves(alone).items():
        np.testing.assert_allclose(leaves(together)[path], leaf, rtol=1e-4, atol=1e-4, err_msg=path)


def test_stem_of_googlenet_is_normalized_by_its_neighbours():
    """Twice; red if `local_response_norm` is without effect."""
    for network, expected in ((GoogLeNet, 2), (BNInception, 0)):
        model = network(**SMALL, norm=BatchNorm)
        assert str(trace(model, train=False).jaxpr).count("= pow") == expected


def test_reference_pools_by_hand():
    """The reference is what the networks are held to: its border rules, once by hand."""
    ones = np.ones((1, 4, 4, 1))
    counted = inception_reference.average_pool(ones, 3, 1, "SAME", count_include_pad=True)
    np.testing.assert_allclose(counted[0, 0, :, 0], [4 / 9, 6 / 9, 6 / 9, 4 / 9])
    assert (inception_reference.average_pool(ones, 3, 1, "SAME") == 1).all()
