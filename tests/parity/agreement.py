"""Compares two networks block by block, from the first to the last, and names where they part."""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

TOLERANCE = 1e-4  # of the largest value of a block's output
FAST_COMPILATION = {"xla_backend_optimization_level": 0}  # the program runs once


class Run(NamedTuple):
    """What a network gives.

    Attributes:
        blocks: outputs by our names, in the order in which they are made; the logits of side
            heads and of the network are among them.
        stats: running statistics afterwards, by path.
    """

    blocks: dict[str, np.ndarray]
    stats: dict[str, np.ndarray]


def run(model, variables, images, *, train) -> Run:
    """Ours: the outputs of the network's own submodules."""
    order = []

    def record(outputs, call, args, kwargs, context):
        y = call(*args, **kwargs)
        path = context.module.path
        if context.method_name == "__call__" and len(path) == 1 and path[0] != "dropout":
            order.append(path[0])
            outputs[path[0]] = y
        return y

    def apply(variables, images):
        outputs = {}
        with nn.intercept_methods(partial(record, outputs)):
            _, updates = model.apply(variables, images, train=train, mutable=["batch_stats"])
        return outputs, updates["batch_stats"]

    outputs, stats = jax.jit(apply, compiler_options=FAST_COMPILATION)(variables, images)
    return Run({name: np.asarray(outputs[name]) for name in order}, flat(stats))


def flat(tree) -> dict[str, np.ndarray]:
    return {
        "/".join(key.key for key in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def assert_agree(ours: Run, theirs: Run) -> float:
    """Every block and statistic is in both, and agrees; returns the largest error of a block."""
    assert set(ours.blocks) == set(theirs.blocks)
    errors = {name: distance(y, theirs.blocks[name]) for name, y in ours.blocks.items()}
    for name, error in errors.items():
        assert error < TOLERANCE, f"the first block that disagrees is {name}, by {error:.1e}"
    assert set(ours.stats) == set(theirs.stats)
    for name, value in ours.stats.items():
        error = distance(value, theirs.stats[name])
        assert error < TOLERANCE, f"the statistic {name} disagrees by {error:.1e}"
    return max(errors.values())


def distance(actual, expected) -> float:
    """The largest difference, in units of the largest value; infinity for another shape."""
    if actual.shape != expected.shape:
        return float("inf")
    return float(np.max(np.abs(actual - expected)) / np.max(np.abs(expected)))
