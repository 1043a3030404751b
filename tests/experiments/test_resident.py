"""Training with the data on the devices: the numbers are those of streamed views."""

import json
import re
import signal
import sys
from dataclasses import replace

import flax.linen as nn
import jax
import numpy as np
import pytest
from mnist_commands import assert_same_runs, flags
from runs import Entries, inception_task
from tolerances import PARALLEL

from bnjax.data import ArraySplit, DataError, DataSet, open_data
from bnjax.linen import BatchNorm
from experiments.harness.images import programs, resident
from experiments.harness.images.compute import ImageCompute
from experiments.harness.images.resident import ResidentFeed
from experiments.harness.images.train import train
from experiments.harness.runs import complete
from experiments.imagenet_inception.arms import InceptionArm
from experiments.imagenet_inception.config import PRESETS
from experiments.imagenet_inception.experiment import EXPERIMENT

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


class Small(nn.Module):
    """Convolution, normalization, ReLU, mean, dense."""

    together: int
    axis_name: str | None

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Conv(4, (4, 4), (4, 4), use_bias=False, name="conv")(images)
        norm = BatchNorm(batch=self.together, axis_name=self.axis_name, name="norm")
        x = nn.relu(norm(x, use_running_average=not train)).mean((1, 2))
        return nn.Dense(10, name="logits")(x)


@pytest.fixture(scope="module", autouse=True)
def _small():
    def model(arm, config, *, classes=10, axis_name=None):
        return Small(config.normalize_together, axis_name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InceptionArm, "model", model)
        programs._programs.cache_clear()
        yield
    programs._programs.cache_clear()


@pytest.fixture(scope="module")
def data():
    return open_data("mnist5k")


def outcome(data, how="jit", devices=1, **changes):
    log = Entries()
    task = inception_task(replace(CONFIG, **changes), "bn_baseline")
    (reached,) = train(task, data, ImageCompute(how, device_count=devices), log)
    return log.entries, reached.final, reached.weights


@pytest.fixture(params=[False, True], ids=["dispatches", "loops"])
def looped(request, monkeypatch):
    monkeypatch.setattr(resident, "loops", lambda parallel: request.param)
    return request.param


def test_it_is_bitwise_what_streamed_views_train(data):
    """Where views are the pixels themselves. Red for another order, label, mask or batch."""
    streamed = outcome(data)
    resident = outcome(data, pipeline="resident")
    assert streamed[:2] == resident[:2]
