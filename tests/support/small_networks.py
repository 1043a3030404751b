"""A network of one layer in the place of the Inception networks, and a short run of it."""

from contextlib import contextmanager
from dataclasses import replace

import flax.linen as nn
import pytest

from bnjax.linen import BatchNorm
from experiments.harness.images import programs
from experiments.imagenet_inception.arms import InceptionArm
from experiments.imagenet_inception.config import PRESETS

CONFIG = replace(
    PRESETS["quick"],
    arms=("bn_baseline",),
    image_size=28,  # that of the digits: views are the pixels, whoever makes them
    photometric="none",
    steps=7,
    eval_every=2,
    dense_until=4,
    sparse_eval_every=4,
    eval_batch=160,  # the last one is filled up
    checkpoint_every=3,
    population_batches=2,
    normalize_together=4,
)
VIEWS = {"crop": "pad", "mirror": True, "photometric": "reduced", "image_size": 32}


class Small(nn.Module):
    """Convolution, normalization, ReLU, mean, dense."""

    together: int
    axis_name: str | None

    def check_size(self, height, width):
        """Takes images of any."""

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Conv(4, (4, 4), (4, 4), use_bias=False, name="conv")(images)
        norm = BatchNorm(batch=self.together, axis_name=self.axis_name, name="norm")
        x = nn.relu(norm(x, use_running_average=not train)).mean((1, 2))
        return nn.Dense(10, name="logits")(x)


def small_model(arm, config, *, classes=10, axis_name=None):
    """The small network, as an arm makes it."""
    return Small(config.normalize_together, axis_name)


@contextmanager
def small_networks(model=small_model):
    """Every arm has this network meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InceptionArm, "model", model)
        programs.forget()
        yield
    programs.forget()
