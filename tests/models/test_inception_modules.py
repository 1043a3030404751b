"""The options of Inception modules that "Rethinking" compares, against NumPy float64.

One module at a time, normalized by its batch, at a width at which every layer has channels.
"""

from functools import partial

import flax.linen as nn
import inception_reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inception_reference import convolve, max_pool

from bnjax.linen import BatchNorm
from bnjax.models import InceptionV3
from bnjax.models.bn_inception import FIGURE_5, InceptionModule
from bnjax.models.inception_modules import Factorized, ReductionTo8, ReductionTo17, Traditional
from bnjax.models.layers import ConvNorm

pytestmark = pytest.mark.usefixtures("x64")

NORM = partial(BatchNorm, epsilon=inception_reference.EPSILON, param_dtype=jnp.float64)
CLOSE = {"rtol": 1e-8, "atol": 1e-9}


def made(kind, *arguments, norm=NORM, **options):
    conv = partial(ConvNorm, norm=norm, width=1 / 32, param_dtype=jnp.float64)
    if kind is InceptionModule:
        conv = partial(conv, padding="SYMMETRIC")
        return kind(*arguments, conv, False, **options)
    return kind(conv, False, **options)


def evaluate(module, size=9, without_bias=()):
    """Variables none of which is zero or one, the input, and the output in training."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, size, size, 4))
    abstract = jax.eval_shape(lambda: module.init(jax.random.key(0), x, False))

    def draw(path, leaf):
        if path[-1].key == "bias" and path[1].key in without_bias:
            return np.zeros(leaf.shape)
        if path[-1].key == "kernel":
            return rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        return rng.uniform(0.5, 1.5, leaf.shape)

    variables = jax.tree_util.tree_map_with_path(draw, abstract)

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def apply(variables):
        return module.apply(variables, x, True, mutable=["batch_stats"])[0]

    return variables, x, np.asarray(apply(variables))


def in_training(variables, **options):
    return inception_reference.Network(variables, train=True, **options)


@pytest.mark.parametrize(("n", "linear"), [(3, True), (5, False)])
def test_factorized_module(n, linear):
    """Figure 6 with another n; with linear factors three of its layers have no nonlinearity."""
    variables, x, y = evaluate(made(Factorized, n=n, linear_factors=linear))
    size, row, column = f"{n}x{n}", f"1x{n}", f"{n}x1"
    shapes = {
        name: layer["conv"]["kernel"].shape[:2] for name, layer in variables["params"].items()
    }
    assert shapes[f"conv{size}_{row}"] == shapes[f"double{size}_a_{row}"] == (1, n)
    assert shapes[f"conv{size}_{column}"] == shapes[f"double{size}_b_{column}"] == (n, 1)
    firsts = (f"conv{size}_{row}", f"double{size}_a_{column}", f"double{size}_b_{column}")
    network = in_training(variables, linear=firsts if linear else ())
    long = ("reduce", f"a_{column}", f"a_{row}", f"b_{column}", f"b_{row}")
    expected = network.branches(
        x,
        "",
        ["conv1x1"],
        [f"conv{size}_reduce", f"conv{size}_{row}", f"conv{size}_{column}"],
        [f"double{size}_{step}" for step in long],
        pooled=network.layer(network.average(x), "pool_project"),
    )
    np.testing.assert_allclose(y, expected, **CLOSE)


def test_traditional_module_with_linear_factors():
    """The 5x5 branch is no pair, and keeps its nonlinearities."""
    variables, x, y = evaluate(made(Traditional, linear_factors=True))
    expected = in_training(variables, linear=("double3x3_a",)).traditional(x, "")
    np.testing.assert_allclose(y, expected, **CLOSE)


BRANCHES = {  # the last step of each has the stride
    ReductionTo17: (["conv3x3"], ["double3x3_reduce", "double3x3_a", "double3x3_b"]),
    ReductionTo8: (
        ["conv3x3_reduce", "conv3x3"],
        ["conv7x7_reduce", "conv7x7_1x7", "conv7x7_7x1", "conv7x7_3x3"],
    ),
}


@pytest.mark.parametrize(
    ("kind", "size", "linear"), [(ReductionTo17, 9, ["double3x3_a"]), (ReductionTo8, 8, [])]
)
@pytest.mark.parametrize("order", ["parallel", "pool_first", "pool_last"])
def test_grid_reduction(kind, size, linear, order):
    """Figure 10, and the two of Figure 9: pool, then convolve; convolve, then pool."""
    variables, x, y = evaluate(made(kind, order=order, linear_factors=bool(linear)), size)
    network = in_training(variables, linear=tuple(linear))
    halve = partial(max_pool, size=3, strides=2, padding="VALID")
    if order == "parallel":
        strided = [[*steps[:-1], (steps[-1], 2, "VALID")] for steps in BRANCHES[kind]]
        expected = network.branches(x, "", *strided, pooled=halve(x))
    elif order == "pool_first":
        expected = network.branches(halve(x), "", *BRANCHES[kind], pooled=halve(x))
    else:
        expected = halve(network.branches(x, "", *BRANCHES[kind], pooled=x))
    assert y.shape[1:3] == ((size - 1) // 2,) * 2
    np.testing.assert_allclose(y, expected, **CLOSE)


@pytest.mark.parametrize("row", [FIGURE_5[0], FIGURE_5[2]], ids=["3a", "3c"])
@pytest.mark.parametrize("options", [{"factorize_5x5": False}, {"linear_factors": True}], ids=str)
def test_module_of_bn_inception(row, options):
    """One 5x5 in the place of two 3x3, and two 3x3 with a linear first, with and without stride."""
    variables, x, y = evaluate(made(InceptionModule, row, **options))
    network = in_training(variables, linear=("double3x3_a",))
    long = ["double3x3_reduce", "double3x3_a", ("double3x3_b", row.stride)]
    if "factorize_5x5" in options:
        assert variables["params"]["conv5x5"]["conv"]["kernel"].shape[:2] == (5, 5)
        long = ["conv5x5_reduce", ("conv5x5", row.stride)]
    branches = [["conv3x3_reduce", ("conv3x3", row.stride)], long]
    if row.stride == 1:
        branches.insert(0, ["conv1x1"])
        pooled = network.layer(network.average(x), "pool_project")
    else:
        pooled = max_pool(x, 3, 2, "SAME")
    np.testing.assert_allclose(y, network.branches(x, "", *branches, pooled=pooled), **CLOSE)


def test_linear_factors_of_a_row_and_a_column_are_one_convolution():
    """By the product of the kernels, everywhere: no row of the column's kernel sees a border that
    the row's did not."""
    module = made(Factorized, norm=None, n=5, linear_factors=True)
    variables, x, y = evaluate(module, without_bias=("conv5x5_1x5",))
    params = variables["params"]
    row, column = (params[f"conv5x5_{name}"]["conv"] for name in ("1x5", "5x1"))
    reduced = in_training(variables).layer(x, "conv5x5_reduce")
    dense = np.einsum("jab,ibc->ijac", row["kernel"][0], column["kernel"][:, 0])
    branch = np.maximum(convolve(reduced, dense, 1, "SAME") + column["bias"], 0)
    first = params["conv1x1"]["conv"]["bias"].size
    np.testing.assert_allclose(y[..., first : first + branch.shape[-1]], branch, **CLOSE)


@pytest.mark.parametrize(("row", "before"), [(FIGURE_5[0], 2 + 2), (FIGURE_5[2], 5)])
def test_linear_factors_of_3x3_are_one_5x5_inside_the_border(row, before):
    """What the first puts beyond the border, where the second takes zeros, is all that differs."""
    module = made(InceptionModule, row, norm=None, linear_factors=True)
    variables, x, y = evaluate(module, without_bias=("double3x3_a",))
    first, second = (variables["params"][f"double3x3_{name}"]["conv"] for name in "ab")
    reduced = in_training(variables).layer(x, "double3x3_reduce")
    dense = np.zeros((5, 5, reduced.shape[-1], second["bias"].size))
    for i in range(3):
        for j in range(3):
            dense[i : i + 3, j : j + 3] += first["kernel"][i, j] @ second["kernel"]
    branch = np.maximum(convolve(reduced, dense, row.stride, "SYMMETRIC") + second["bias"], 0)
    inside = np.s_[:, 1:-1, 1:-1]
    seen = y[..., before : before + branch.shape[-1]]
    np.testing.assert_allclose(seen[inside], branch[inside], **CLOSE)
    assert not np.allclose(seen, branch)


class Reached(Exception):
    """The first Inception module, whose input is the argument."""


def test_padded_stem():
    """Every row of it pads as TensorFlow does, pools among them."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(1, 49, 49, 3))
    sizes = {"1a": (3, 3, 1), "2a": (3, 1, 1), "2b": (3, 1, 2), "3b": (1, 2, 3), "4a": (3, 3, 6)}
    params = {
        f"conv_{name}": {
            "conv": {"kernel": rng.normal(size=(k, k, into, out)), "bias": rng.normal(size=out)}
        }
        for name, (k, into, out) in sizes.items()
    }

    def stop(call, args, kwargs, context):
        if context.module.name == "mixed_5b":
            raise Reached(args[0])
        return call(*args, **kwargs)

    model = InceptionV3(
        width=1 / 32, stem_padding="SAME", auxiliary="none", param_dtype=jnp.float64
    )
    with nn.intercept_methods(stop), pytest.raises(Reached) as reached:
        model.apply({"params": params}, images, train=False)

    network = in_training({"params": params})
    x = network.layer(images, "conv_1a", 2, "SAME")
    x = max_pool(network.chain(x, ("conv_2a", 1, "SAME"), ("conv_2b", 1, "SAME")), 3, 2, "SAME")
    x = max_pool(network.chain(x, "conv_3b", ("conv_4a", 1, "SAME")), 3, 2, "SAME")
    assert x.shape == (1, 7, 7, 6)
    np.testing.assert_allclose(reached.value.args[0], x, **CLOSE)
