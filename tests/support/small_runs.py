"""A small run with two normalized layers: the program for any devices, and its steps in float64."""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import reference

from bnjax.linen import BatchNorm
from bnjax.models.layers import Dropout
from bnjax.training.optimizers import sgd
from bnjax.training.state import TrainState
from bnjax.training.steps import make_train_step

UNITS = (6, 5, 4, 3)  # inputs, hidden, hidden, classes
EXAMPLES, STEPS = 32, 3
DECAY, EPSILON, RATE = 0.9, 1e-3, 0.5


class Net(nn.Module):
    """Dense, normalization, sigmoid, twice; dropout; logits."""

    norm: Any
    dropout: float = 0.0
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x, *, train):
        for i in (1, 2):
            x = nn.Dense(UNITS[i], use_bias=False, dtype=self.dtype, name=f"dense{i}")(x)
            x = self.norm(dtype=self.dtype, name=f"norm{i}")(x, use_running_average=not train)
            x = nn.sigmoid(x)
        x = Dropout(self.dropout, self.axis_name, name="dropout")(x, train=train)
        return nn.Dense(UNITS[3], dtype=self.dtype, name="logits")(x)


def make_model(axis_name=None, *, batch="all", dropout=0.0, dtype=None):
    norm = partial(
        BatchNorm,
        momentum=DECAY,
        epsilon=EPSILON,
        running_var="unbiased",
        batch=batch,
        axis_name=axis_name,
    )
    return Net(norm, dropout, axis_name, dtype)


def make_apply(model):
    """The network in training, as steps take it."""

    def apply(variables, images, *key):
        rngs = {"dropout": key[0]} if key else None
        logits, updates = model.apply(
            variables, images, train=True, mutable=["batch_stats"], rngs=rngs
        )
        return logits, updates["batch_stats"]

    return apply


def make_step(axis_name=None, **settings):
    return make_train_step(
        make_apply(make_model(axis_name, **settings)), sgd(RATE), axis_name=axis_name
    )


def make_state(key=None) -> TrainState:
    """Host arrays that no initialization gives; the learning rate among them."""
    model = make_model()
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, UNITS[0])), train=False)
    )
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.uniform(0.3, 1.2, leaf.shape).astype(leaf.dtype), variables
    )
    params = variables["params"]
    opt_state = jax.tree.map(np.asarray, sgd(RATE).init(params))
    return TrainState(np.int32(0), params, variables["batch_stats"], opt_state, key)


def make_batches(steps=STEPS):
    """Images, labels, and masks that leave devices unequal, `[steps, examples, ...]`."""
    rng = np.random.default_rng(1)
    images = rng.normal(size=(STEPS, EXAMPLES, UNITS[0])).astype(np.float32)
    labels = rng.integers(0, UNITS[3], (STEPS, EXAMPLES)).astype(np.int32)
    masks = rng.uniform(size=(STEPS, EXAMPLES)) < np.linspace(0.2, 1, EXAMPLES)
    return images[:steps], labels[:steps], masks[:steps]


def batch_of(batches, step):
    return jax.tree.map(lambda leaf: leaf[step], batches)


class Expected(NamedTuple):
    """After a number of steps, in float64."""

    params: Any
    batch_stats: Any
    loss: float  # summed over all steps, as are the others
    correct: int
    examples: int


def float64_steps(state, batches, size, *, weighted=False) -> Expected:
    """Steps by the chain rule, normalizing `size` examples at a time.

    Statistics take the mean of the groups' moments; `weighted`: by the examples that count, as
    gradient accumulation does.
    """
    params, stats = (
        jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)
        for tree in (state.params, state.batch_stats)
    )
    sums = np.zeros(3)
    for images, labels, mask in zip(*batches, strict=True):
        groups = [slice(i, i + size) for i in range(0, len(images), size)]
        weights = [mask[group].sum() if weighted else 1 for group in groups]
        x, kept = np.float64(images), []
        for i in (1, 2):
            layer = params[f"norm{i}"]
            u = x @ params[f"dense{i}"]["kernel"]
            made = [reference.forward(u[group], **layer, epsilon=EPSILON) for group in groups]
            z = 1 / (1 + np.exp(-np.concatenate([each.y for each in made])))
            kept.append((x, u, z, made))
            x = z
        logits = x @ params["logits"]["kernel"] + params["logits"]["bias"]
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        n = len(labels)
        losses = -np.log(p[np.arange(n), labels])
        sums += losses[mask].sum(), (logits.argmax(1) == labels)[mask].sum(), mask.sum()

        dlogits = (p - np.eye(UNITS[3])[labels]) * mask[:, None] / mask.sum()
        gradient = {"logits": {"kernel": x.T @ dlogits, "bias": dlogits.sum(0)}}
        dz = dlogits @ params["logits"]["kernel"].T
        new = {}
        for i in (2, 1):
            x, u, z, made = kept[i - 1]
            ds = dz * z * (1 - z)
            scale = params[f"norm{i}"]["scale"]
            parts = [reference.backward(ds[g], u[g], scale, epsilon=EPSILON) for g in groups]
            du = np.concatenate([part.dx for part in parts])
            gradient[f"norm{i}"] = {
                "scale": sum(part.dscale for part in parts),
                "bias": sum(part.dbias for part in parts),
            }
            gradient[f"dense{i}"] = {"kernel": x.T @ du}
            dz = du @ params[f"dense{i}"]["kernel"].T
            moments = {
                "mean": np.average([each.mean for each in made], 0, weights),
                "var": np.average([each.var * size / (size - 1) for each in made], 0, weights),
            }
            old = stats[f"norm{i}"]
            new[f"norm{i}"] = {k: DECAY * old[k] + (1 - DECAY) * moments[k] for k in moments}
        stats = new
        params = jax.tree.map(lambda p, g: p - RATE * g, params, gradient)
    return Expected(params, stats, *sums)
