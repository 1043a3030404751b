"""A small training state, and what of it is on disk."""

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


def steps_on_disk(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name != ".lock")
