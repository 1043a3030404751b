"""Each network of the Inception family learns 32 digits by heart, and still knows them afterwards:
with its own batch's moments, and with recalibrated statistics."""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from drawn import drawn

from bnjax.data import in_memory, open_data
from bnjax.linen import BatchNorm
from bnjax.models import (
    BNInception,
    GoogLeNet,
    InceptionV3,
    apply_train,
    googlenet,
    inception_v3,
)
from bnjax.recalibration import recalibrate
from bnjax.training.objectives import classification_objective
from bnjax.training.optimizers import make_optimizer, momentum_sgd
from bnjax.training.state import TrainState
from bnjax.training.steps import make_train_step

pytestmark = pytest.mark.slow

IMAGES = 32
SMALL = {"classes": 10, "width": 1 / 16, "stem_stride": 2, "dropout": 0.0}
NORM = {"norm": partial(BatchNorm, momentum=0.99)}  # of which 100 steps make no estimate


class Arm(NamedTuple):
    """A network and what it learns with."""

    model: nn.Module
    tx: optax.GradientTransformation
    auxiliary_weights: tuple[float, ...] = ()
    gain: float = 1.0  # on He's deviation; without normalization, a bit more, or biases learn alone


WITH_NORM = momentum_sgd(0.05)
WITHOUT = make_optimizer(momentum_sgd(0.02), clip_norm=1.0)
HEADS = (googlenet.AUXILIARY_WEIGHT,) * 2
ARMS = {
    "googlenet": Arm(GoogLeNet(**SMALL, auxiliary_dropout=0.0), WITHOUT, HEADS, 1.15),
    "googlenet_bn": Arm(
        GoogLeNet(**SMALL, **NORM, local_response_norm=False, auxiliary_dropout=0.0),
        WITH_NORM,
        HEADS,
    ),
    "inception": Arm(BNInception(**SMALL), WITHOUT, gain=1.15),
    "bn_inception": Arm(BNInception(**SMALL, **NORM), WITH_NORM),
    "bn_inception_sigmoid": Arm(
        BNInception(**SMALL, **NORM, activation=nn.sigmoid), momentum_sgd(0.1)
    ),
    "inception_v3": Arm(InceptionV3(**SMALL, **NORM), WITH_NORM, (inception_v3.AUXILIARY_WEIGHT,)),
}


@pytest.fixture(scope="module")
def digits():
    """Of 32x32 pixels and three channels, the 28x28 ones in the middle."""
    split = in_memory(open_data("mnist5k")).train
    images, labels = split.images, split.labels
    chosen = np.random.default_rng(0).choice(len(images), IMAGES, replace=False)
    x = np.pad(images[chosen].astype(np.float32), ((0, 0), (2, 2), (2, 2), (0, 0)))
    x = (x - x.mean()) / x.std()
    return jnp.asarray(np.tile(x, (1, 1, 1, 3))), jnp.asarray(labels[chosen])


@pytest.mark.parametrize("name", ARMS)
def test_network_learns_32_digits_by_heart(name, digits):
    model = ARMS[name].model
    state, correct = train(ARMS[name], digits)
    assert correct == IMAGES
    variables = state.variables
    if state.batch_stats:
        batches = jnp.split(digits[0], 2)
        variables = recalibrate(model, variables, batches, train=True)
    logits = jax.jit(partial(model.apply, train=False))(variables, digits[0])
    logits = logits if isinstance(logits, jax.Array) else logits.main
    assert (logits.argmax(-1) == digits[1]).sum() >= IMAGES - 1


ENOUGH = 0.02  # nats, on average
STEPS = 200


def train(arm: Arm, digits: Any) -> tuple[TrainState, int]:
    """Steps on all digits until the loss is low; the state that had it, how many it had right."""
    model, tx, auxiliary_weights, gain = arm

    objective = classification_objective(auxiliary_weights=auxiliary_weights)
    step = jax.jit(make_train_step(partial(apply_train, model), tx, objective))
    variables = drawn(model, digits[0], gain=gain)
    state = TrainState(
        jnp.int32(0),
        variables["params"],
        variables.get("batch_stats", {}),
        tx.init(variables["params"]),
    )
    for _ in range(STEPS):
        before, (state, metrics) = state, step(state, digits)
        if metrics.loss < ENOUGH * IMAGES:
            break
    return before, int(metrics.correct)  # not the update after it, which may move a label
