"""What folds in a Linen model and what stays, and why: who uses the output of which layer."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import CLOSE, IMAGES, KEY, ROWS, Block, Net, conv, norm, normal, residual, trained
from tolerances import assert_close

from bnjax.inference import fold_model
from bnjax.linen import BatchNorm
from bnjax.models.convolutions import patch_convolution

# --- what folds -------------------------------------------------------------------------------


CompiledBlock = nn.jit(Block)


class NoScale(nn.BatchNorm):
    """Flax's `__call__`, by another name."""

    use_scale: bool = False


def each_row(x):
    axes = {"params": None, "batch_stats": None}
    return nn.vmap(Block, variable_axes=axes, split_rngs={"params": False})(name="block")(x)


FOLDED = {
    "dense": (lambda x: norm()(nn.Dense(5)(x)), ROWS),
    "dense without bias": (lambda x: norm()(nn.Dense(5, use_bias=False)(x)), ROWS),
    "dense on sequences": (lambda x: norm()(nn.Dense(5, use_bias=False)(x)), (2, 3, 7)),
    "heads, each a feature": (
        lambda x: norm(axis=(-2, -1))(nn.DenseGeneral((2, 5), axis=-1, use_bias=False)(x)),
        ROWS,
    ),
    "heads that share": (lambda x: norm()(nn.DenseGeneral((2, 5), axis=(-2, -1))(x)), (2, 3, 7)),
    "convolution": (lambda x: norm()(conv(strides=2)(x)), IMAGES),
    "convolution without bias": (
        lambda x: norm()(conv(use_bias=False, padding="CIRCULAR", kernel_dilation=2)(x)),
        IMAGES,
    ),
    "convolution of one's own": (
        lambda x: norm()(conv(padding=1, conv_general_dilated=patch_convolution)(x)),
        IMAGES,
    ),
    "depthwise": (
        lambda x: norm()(nn.Conv(6, (3, 3), feature_group_count=3, use_bias=False)(x)),
        IMAGES,
    ),
    "transposed convolution": (
        lambda x: norm()(nn.ConvTranspose(4, (3, 3), strides=(2, 2), use_bias=False)(x)),
        IMAGES,
    ),
    "local convolution": (lambda x: norm()(nn.ConvLocal(4, (3, 3), padding="VALID")(x)), IMAGES),
    "flax": (lambda x: nn.BatchNorm(True, epsilon=1e-2)(conv(use_bias=False)(x)), IMAGES),
    "flax, subclassed": (lambda x: NoScale(True)(conv(use_bias=False)(x)), IMAGES),
    "neither scale nor bias": (
        lambda x: norm(use_scale=False, use_bias=False)(nn.Dense(5, use_bias=False)(x)),
        ROWS,
    ),
    "called by keyword, with a mask": (
        lambda x: BatchNorm()(mask=x[:, :1] > 0, x=nn.Dense(5)(x), use_running_average=True),
        ROWS,
    ),
    "dropout between, off": (
        lambda x: norm()(nn.Dropout(0.5, deterministic=True)(nn.Dense(5)(x))),
        ROWS,
    ),
    "residual": (residual, IMAGES),
    "rematerialized": (lambda x: nn.remat(Block)(name="b")(x), ROWS),
    "jit, one trace for two": (
        lambda x: CompiledBlock(name="b2")(CompiledBlock(name="b1")(x)),
        ROWS,
    ),
    "vmap over examples": (each_row, (2, 3, 7)),
    "counted statistics": (lambda x: norm(averaging="cumulative")(nn.Dense(5)(x)), ROWS),
}


@pytest.mark.parametrize("case", FOLDED)
def test_what_folds(case):
    """Every normalization, within rounding; nothing but kernels and biases is left."""
    body, shape = FOLDED[case]
    x, model = normal(*shape), Net(body)
    variables = trained(model, x)
    folded = fold_model(model, variables, jax.ShapeDtypeStruct(shape, jnp.float32))
    stats = variables["batch_stats"]
    assert not folded.kept
    assert len(folded.folded) == str(jax.tree.structure(stats)).count("'mean'")
    assert set(folded.variables) == {"params"}
    keys = [path[-1].key for path, _ in jax.tree.leaves_with_path(folded.variables)]
    assert keys == ["bias", "kernel"] * len(folded.folded)
    expected = jax.jit(model.apply)(variables, x)
    y = jax.jit(folded.apply)(folded.variables, x)
    assert y.dtype == expected.dtype
    assert_close(y, np.float64(expected), CLOSE)


# --- what stays -------------------------------------------------------------------------------


class Halved(nn.Dense):
    """Not what a Dense computes."""

    @nn.compact
    def __call__(self, x):
        return super().__call__(x) / 2 + 1


class OneMore(BatchNorm):
    @nn.compact
    def __call__(self, x):
        return super().__call__(x) + 1


def also_returned(x):
    y = nn.Dense(5, name="dense")(x)
    return norm(name="norm")(y), y


def used_around(x):
    y = nn.Dense(5, name="dense")(x)
    return y + nn.relu(norm(name="norm")(y))


def two_on_one(x):
    y = nn.Dense(5, name="dense")(x)
    return norm(name="norm")(y) + norm(name="other")(y)


def layer_twice(x):
    dense = nn.Dense(7, name="dense")
    return norm(name="norm")(dense(dense(x)))


def norm_twice(x):
    bn = norm(name="norm")
    return bn(nn.Dense(7, name="dense")(bn(nn.Dense(7, name="first")(x))))


def tied(x):
    dense = nn.Dense(5, name="dense")
    y = norm(name="norm")(dense(x))
    return y @ dense.variables["params"]["kernel"].T


def penalized(x):
    bn = norm(name="norm")
    y = bn(nn.Dense(5, name="dense")(x))
    return y, jnp.sum(bn.variables["params"]["scale"])


def weight_norm(x):
    return norm(name="norm")(nn.WeightNorm(nn.Dense(5, name="dense"))(x))


def scanned(x):
    class Step(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return norm(name="norm")(nn.Dense(7, name="dense")(x)), None

    stacked = {"params": 0, "batch_stats": 0}
    steps = nn.scan(Step, variable_axes=stacked, split_rngs={"params": True}, length=2)
    return steps(name="steps")(x, None)[0]


def stacked(x):
    axes = {"params": 0, "batch_stats": 0}
    many = nn.vmap(Block, variable_axes=axes, split_rngs={"params": True}, in_axes=0)
    return many(name="block")(x)


def gradient_inside(x):
    y, vjp = nn.vjp(lambda block, x: block(x), Block(name="block"), x)
    return y + vjp(x)[1]


def own_root(x):
    """A model inside that knows nothing of this one, with layers of the same names."""
    inner = Net(lambda x: norm(name="norm")(nn.Dense(7, name="dense")(x)))
    given = jax.tree.map(jnp.ones_like, jax.eval_shape(inner.init, KEY, x))
    return norm(name="norm")(nn.Dense(7, name="dense")(inner.apply(given, x)))


def applied_apart(x):
    """The variables are the model's own, but the layers believe to be elsewhere."""
    block = Block(name="block")
    if block.is_initializing():
        return block(x)
    return block.clone(parent=None, name=None).apply(block.variables, x)


ELSEWHERE = "its variables are used or returned elsewhere"
MISFIT = "its feature axes .* are not the features of dense"
KEPT = {
    "no layer": (lambda x: norm(name="norm")(x), ROWS, "its input is not the very output"),
    "something between": (
        lambda x: norm(name="norm")(nn.relu(nn.Dense(5)(x))),
        ROWS,
        "its input is not the very output",
    ),
    "the layer overridden": (lambda x: norm(name="norm")(Halved(5)(x)), ROWS, "not the very"),
    "the normalization overridden": (
        lambda x: OneMore(True, name="norm")(nn.Dense(5)(x)),
        ROWS,
        "or not as a plain BatchNorm",
    ),
    "also returned": (also_returned, ROWS, "the output of dense is used elsewhere"),
    "used around": (used_around, ROWS, "the output of dense is used elsewhere"),
    "two on one": (two_on_one, ROWS, "the output of dense is used elsewhere"),
    "layer twice": (layer_twice, ROWS, "dense is called twice"),
    "normalization twice": (norm_twice, ROWS, "it is called twice"),
    "tied kernel": (tied, ROWS, ELSEWHERE),
    "scale read elsewhere": (penalized, ROWS, ELSEWHERE),
    "kernel changed before use": (
        weight_norm,
        ROWS,
        "the variables of .*dense are stacked, changed",
    ),
    "scan": (scanned, ROWS, "inside a transformation"),
    "ensemble": (stacked, (2, 3, 7), "the variables of it are stacked"),
    "gradient inside": (gradient_inside, ROWS, "inside a transformation"),
    "another root": (own_root, ROWS, "it is called twice"),
    "applied apart": (applied_apart, ROWS, "the variables of it are .*, or not its own"),
    "features elsewhere": (
        lambda x: norm(axis=1, name="norm")(nn.Dense(5, name="dense")(x)),
        (2, 3, 7),
        MISFIT,
    ),
    "features that look like a kernel's": (
        lambda x: norm(axis=(1, 2), name="norm")(nn.Dense(7, name="dense")(x)),
        (2, 7, 7),
        MISFIT,
    ),
    "transposed kernel": (
        lambda x: norm(name="norm")(nn.ConvTranspose(3, (3, 3), transpose_kernel=True)(x)),
        IMAGES,
        "its features not last",
    ),
    "batch axes": (
        lambda x: norm(name="norm")(nn.DenseGeneral(5, batch_dims=(0,), axis=-1)(x)),
        (2, 3, 7),
        "differs along a batch axis",
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_stays(case):
    """With its reason, its variables and, bit for bit, its outputs."""
    body, shape, reason = KEPT[case]
    x, model = normal(*shape), Net(body)
    variables = trained(model, x)
    folded = fold_model(model, variables, x)
    assert not folded.folded
    assert any(re.search(reason, why) for why in folded.kept.values()), folded.kept
    jax.tree.map(np.testing.assert_array_equal, folded.variables, variables)
    expected = jax.jit(model.apply)(variables, x)
    y = jax.jit(folded.apply)(folded.variables, x)
    jax.tree.map(np.testing.assert_array_equal, y, expected)


def test_what_the_arguments_do_not_call_stays():
    class Heads(nn.Module):
        @nn.compact
        def __call__(self, x, both):
            y = norm(name="norm")(nn.Dense(5, name="dense")(x))
            return y + norm(name="other")(nn.Dense(5, name="dense2")(x)) if both else y

    x = normal(*ROWS)
    variables = trained(Heads(), x, True)
    folded = fold_model(Heads(), variables, x, False)
    assert folded.folded == {"norm": "dense"}
    assert list(folded.kept) == ["other"]
    assert "these arguments do not call it" in folded.kept["other"]
    assert folded.variables["batch_stats"] == {"other": variables["batch_stats"]["other"]}


def test_some_fold_and_some_stay():
    """Two in a row: the second one sees no layer's output."""
    model = Net(lambda x: norm(name="n2")(norm(name="n1")(nn.Dense(5, name="dense")(x))))
    x = normal(*ROWS)
    variables = trained(model, x)
    folded = fold_model(model, variables, x)
    assert (folded.folded, list(folded.kept)) == ({"n1": "dense"}, ["n2"])
    y = jax.jit(folded.apply)(folded.variables, x)
    assert_close(y, np.float64(model.apply(variables, x)), CLOSE)


def one_of_two(x):
    """`nn.jit` traces the block once; the first folds, the second one's kernel is tied."""
    second = CompiledBlock(name="b2")
    return second(CompiledBlock(name="b1")(x)) @ second.variables["params"]["dense"]["kernel"].T


def test_one_trace_for_a_block_that_folds_and_one_that_stays():
    x, model = normal(*ROWS), Net(one_of_two)
    variables = trained(model, x)
    folded = fold_model(model, variables, x)
    assert folded.folded == {"b1/norm": "b1/dense"}
    assert folded.kept["b2/norm"].startswith("b2/dense is called twice, or its variables are used")
    y = jax.jit(folded.apply)(folded.variables, x)
    assert_close(y, np.float64(jax.jit(model.apply)(variables, x)), CLOSE)


@pytest.mark.parametrize("first", ["model", "folded"])
def test_jit_inside_the_model_is_not_deceived(first):
    """`nn.jit` keeps traces by the module and the shapes, whoever intercepts its methods."""
    model = Net(lambda x: CompiledBlock(name="block")(x))
    x = normal(*ROWS)
    variables = trained(model, x)
    if first == "model":
        expected = model.apply(variables, x)
    folded = fold_model(model, variables, x)
    assert folded.folded == {"block/norm": "block/dense"}
    y = folded.apply(folded.variables, x)
    if first == "folded":
        expected = model.apply(variables, x)
    assert_close(y, np.float64(expected), CLOSE)
    assert fold_model(model, variables, x).folded == folded.folded
