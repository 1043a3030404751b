"""A small training state, and how to compare what comes back of it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

CONFIG = {"experiment": "test", "optimizer": {"lr": 0.1, "decay": None}, "seeds": [0, 1]}


class Toy(NamedTuple):
    step: Any
    params: Any
    opt_state: Any
    rng: Any


def make_state(seed: int) -> Toy:
    rng = np.random.default_rng(seed)
    params = {
        "dense": {"kernel": jnp.asarray(rng.normal(size=(5, 7)), jnp.float32)},
        "scale": jnp.asarray(rng.normal(size=7), jnp.bfloat16),
    }
    optimizer = optax.chain(optax.clip(1.0), optax.adam(1e-3))
    return Toy(jnp.int32(seed), params, optimizer.init(params), jax.random.key(seed))


def raw(leaf) -> tuple[str, tuple[int, ...], bytes]:
    dtype, shape = str(leaf.dtype), leaf.shape
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return dtype, shape, np.asarray(leaf).tobytes()


def assert_bitwise(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        assert raw(a) == raw(b), jax.tree_util.keystr(path)


def steps_on_disk(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name != ".lock")
