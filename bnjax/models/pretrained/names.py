"""The names that each source gives to the layers of our networks, and the order of its axes."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from bnjax.models.bn_inception import FIGURE_5
from bnjax.models.googlenet import HEADS_AFTER, TABLE_1
from bnjax.models.inception_modules import (
    Expanded,
    Factorized,
    ReductionTo8,
    ReductionTo17,
    Traditional,
)
from bnjax.models.inception_v3 import OUTLINES

Layout = Callable[[np.ndarray], np.ndarray]


class Entry(NamedTuple):
    """An array of a file and its place in the variables.

    Attributes:
        name: in the file.
        path: of the leaf, collection first.
        layout: from the file's axes to Flax's.
        optional: whether the file may lack it; the model has no place for it.
    """

    name: str
    path: tuple[str, ...]
    layout: Layout
    optional: bool = False


def as_it_is(array: np.ndarray) -> np.ndarray:
    """The array unchanged: vectors, and all arrays of Keras."""
    return array


def torch_convolution(array: np.ndarray) -> np.ndarray:
    """`[out, in, h, w]` to `[h, w, in, out]`."""
    return array.transpose(2, 3, 1, 0)


def torch_dense(array: np.ndarray) -> np.ndarray:
    """`[out, in]` to `[in, out]`."""
    return array.transpose(1, 0)


def torch_flattened(array: np.ndarray) -> np.ndarray:
    """`[out, c * 4 * 4]` to `[4 * 4 * c, out]`: torch flattens channels first, Flax last."""
    features, inputs = array.shape
    return array.reshape(features, inputs // 16, 4, 4).transpose(2, 3, 1, 0).reshape(-1, features)


# Of each kind of module: ours, then the torch name. The order is the one in which they are made.
_TORCH_V3 = {
    Traditional: {
        "conv1x1": "branch1x1",
        "conv5x5_reduce": "branch5x5_1",
        "conv5x5": "branch5x5_2",
        "double3x3_reduce": "branch3x3dbl_1",
        "double3x3_a": "branch3x3dbl_2",
        "double3x3_b": "branch3x3dbl_3",
        "pool_project": "branch_pool",
    },
    ReductionTo17: {
        "conv3x3": "branch3x3",
        "double3x3_reduce": "branch3x3dbl_1",
        "double3x3_a": "branch3x3dbl_2",
        "double3x3_b": "branch3x3dbl_3",
    },
    Factorized: {
        "conv1x1": "branch1x1",
        "conv7x7_reduce": "branch7x7_1",
        "conv7x7_1x7": "branch7x7_2",
        "conv7x7_7x1": "branch7x7_3",
        "double7x7_reduce": "branch7x7dbl_1",
        "double7x7_a_7x1": "branch7x7dbl_2",
        "double7x7_a_1x7": "branch7x7dbl_3",
        "double7x7_b_7x1": "branch7x7dbl_4",
        "double7x7_b_1x7": "branch7x7dbl_5",
        "pool_project": "branch_pool",
    },
    ReductionTo8: {
        "conv3x3_reduce": "branch3x3_1",
        "conv3x3": "branch3x3_2",
        "conv7x7_reduce": "branch7x7x3_1",
        "conv7x7_1x7": "branch7x7x3_2",
        "conv7x7_7x1": "branch7x7x3_3",
        "conv7x7_3x3": "branch7x7x3_4",
    },
    Expanded: {
        "conv1x1": "branch1x1",
        "conv3x3_reduce": "branch3x3_1",
        "conv3x3_1x3": "branch3x3_2a",
        "conv3x3_3x1": "branch3x3_2b",
        "double3x3_reduce": "branch3x3dbl_1",
        "double3x3_a": "branch3x3dbl_2",
        "double3x3_b_1x3": "branch3x3dbl_3a",
        "double3x3_b_3x1": "branch3x3dbl_3b",
        "pool_project": "branch_pool",
    },
}

# Keras lists layers by their distance from the output: of branches side by side, the longest first.
_KERAS_ORDER = {
    Traditional: (
        *("double3x3_reduce", "conv5x5_reduce", "double3x3_a"),
        *("conv1x1", "conv5x5", "double3x3_b", "pool_project"),
    ),
    ReductionTo17: ("double3x3_reduce", "double3x3_a", "conv3x3", "double3x3_b"),
    Factorized: (
        *("double7x7_reduce", "double7x7_a_7x1", "conv7x7_reduce", "double7x7_a_1x7"),
        *("conv7x7_1x7", "double7x7_b_7x1"),
        *("conv1x1", "conv7x7_7x1", "double7x7_b_1x7", "pool_project"),
    ),
    ReductionTo8: (
        *("conv7x7_reduce", "conv7x7_1x7", "conv3x3_reduce", "conv7x7_7x1"),
        *("conv3x3", "conv7x7_3x3"),
    ),
    Expanded: (
        *("double3x3_reduce", "conv3x3_reduce", "double3x3_a"),
        *("conv3x3_1x3", "conv3x3_3x1", "double3x3_b_1x3", "double3x3_b_3x1"),
        *("conv1x1", "pool_project"),
    ),
}

_STEM_V3 = {
    "conv_1a": "Conv2d_1a_3x3",
    "conv_2a": "Conv2d_2a_3x3",
    "conv_2b": "Conv2d_2b_3x3",
    "conv_3b": "Conv2d_3b_1x1",
    "conv_4a": "Conv2d_4a_3x3",
}

_TORCH_GOOGLENET = {
    "conv1x1": "branch1",
    "conv3x3_reduce": "branch2.0",
    "conv3x3": "branch2.1",
    "conv5x5_reduce": "branch3.0",
    "conv5x5": "branch3.1",
    "pool_project": "branch4.1",
}

_CAFFE_BN_INCEPTION = {
    "conv1x1": "1x1",
    "conv3x3_reduce": "3x3_reduce",
    "conv3x3": "3x3",
    "double3x3_reduce": "double_3x3_reduce",
    "double3x3_a": "double_3x3_1",
    "double3x3_b": "double_3x3_2",
    "pool_project": "pool_proj",
}


def torch_inception_v3() -> Iterator[Entry]:
    """The names of torchvision, which are timm's as well."""
    convolutions = dict(_STEM_V3)
    for row in OUTLINES["public"]:
        at = row.name.replace("mixed", "Mixed")
        convolutions |= {
            f"{row.name}/{ours}": f"{at}.{theirs}" for ours, theirs in _TORCH_V3[row.module].items()
        }
    convolutions |= {"auxiliary/conv1x1": "AuxLogits.conv0", "auxiliary/hidden": "AuxLogits.conv1"}
    for ours, theirs in convolutions.items():
        yield from _torch_block(ours, f"{theirs}.conv", f"{theirs}.bn")
    yield from _torch_dense("auxiliary/logits", "AuxLogits.fc")
    yield from _torch_dense("logits", "fc")


def torch_googlenet() -> Iterator[Entry]:
    """The names of torchvision."""
    convolutions = {"conv1": "conv1", "conv2_reduce": "conv2", "conv2": "conv3"}
    for row in TABLE_1:
        convolutions |= {
            f"inception_{row.name}/{ours}": f"inception{row.name}.{theirs}"
            for ours, theirs in _TORCH_GOOGLENET.items()
        }
    heads = {f"auxiliary_{row}": f"aux{i}" for i, row in enumerate(HEADS_AFTER, start=1)}
    convolutions |= {f"{ours}/conv1x1": f"{theirs}.conv" for ours, theirs in heads.items()}
    for ours, theirs in convolutions.items():
        yield from _torch_block(ours, f"{theirs}.conv", f"{theirs}.bn")
    for ours, theirs in heads.items():
        yield from _torch_dense(f"{ours}/hidden/dense", f"{theirs}.fc1", torch_flattened)
        yield from _torch_dense(f"{ours}/logits", f"{theirs}.fc2")
    yield from _torch_dense("logits", "fc")


def caffe_bn_inception() -> Iterator[Entry]:
    """The names of the Caffe model, as its conversions to torch keep them."""
    convolutions = {
        "conv1": "conv1_7x7_s2",
        "conv2_reduce": "conv2_3x3_reduce",
        "conv2": "conv2_3x3",
    }
    for row in FIGURE_5:
        absent = {"conv1x1": not row.conv1x1, "pool_project": not row.project}
        convolutions |= {
            f"inception_{row.name}/{ours}": f"inception_{row.name}_{theirs}"
            for ours, theirs in _CAFFE_BN_INCEPTION.items()
            if not absent.get(ours)
        }
    for ours, theirs in convolutions.items():
        yield from _torch_block(ours, theirs, f"{theirs}_bn")
        yield Entry(f"{theirs}.bias", ("params", *ours.split("/"), "conv", "bias"), as_it_is)
    yield from _torch_dense("logits", "last_linear")


def keras_inception_v3() -> Iterator[Entry]:
    """The names that `read_keras` makes: layers by kind and number."""
    convolutions = list(_STEM_V3)
    for row in OUTLINES["public"]:
        convolutions += [f"{row.name}/{ours}" for ours in _KERAS_ORDER[row.module]]
    for i, ours in enumerate(convolutions):
        number = f"_{i}" if i else ""
        at = tuple(ours.split("/"))
        yield Entry(f"conv2d{number}/kernel", ("params", *at, "conv", "kernel"), as_it_is)
        norm = f"batch_normalization{number}"
        yield Entry(f"{norm}/beta", ("params", *at, "norm", "bias"), as_it_is)
        yield Entry(f"{norm}/moving_mean", ("batch_stats", *at, "norm", "mean"), as_it_is)
        yield Entry(f"{norm}/moving_variance", ("batch_stats", *at, "norm", "var"), as_it_is)
    yield Entry("dense/kernel", ("params", "logits", "kernel"), as_it_is)
    yield Entry("dense/bias", ("params", "logits", "bias"), as_it_is)


def _torch_block(ours: str, conv: str, norm: str) -> Iterator[Entry]:
    """A convolution without bias and its normalization."""
    at = tuple(ours.split("/"))
    yield Entry(f"{conv}.weight", ("params", *at, "conv", "kernel"), torch_convolution)
    yield Entry(f"{norm}.weight", ("params", *at, "norm", "scale"), as_it_is)
    yield Entry(f"{norm}.bias", ("params", *at, "norm", "bias"), as_it_is)
    yield Entry(f"{norm}.running_mean", ("batch_stats", *at, "norm", "mean"), as_it_is)
    yield Entry(f"{norm}.running_var", ("batch_stats", *at, "norm", "var"), as_it_is)
    tracked = f"{norm}.num_batches_tracked"  # torch before 0.4.1 had none
    yield Entry(tracked, ("batch_stats", *at, "norm", "num_batches_tracked"), as_it_is, True)


def _torch_dense(ours: str, theirs: str, layout: Layout = torch_dense) -> Iterator[Entry]:
    at = tuple(ours.split("/"))
    yield Entry(f"{theirs}.weight", ("params", *at, "kernel"), layout)
    yield Entry(f"{theirs}.bias", ("params", *at, "bias"), as_it_is)
