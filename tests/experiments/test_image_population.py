"""Algorithm 2 in the record of a run on images: its statistics, and what they predict, in float64.

The small network's only normalization takes its input from one convolution.
"""

import jax
import numpy as np
import pytest
import reference
from runs import Entries, inception_task
from small_networks import CONFIG, small_networks

from bnjax.data import open_data
from bnjax.data.order import Order
from experiments.harness.images.compute import ImageCompute
from experiments.harness.images.feed import POPULATION_SEED
from experiments.harness.images.train import train

EPSILON = 1e-5
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def convolved(params, images):
    """4x4 patches of pixels from -1 to 1, in three equal channels."""
    patches = (images / 127.5 - 1).reshape(-1, 7, 4, 7, 4)
    return np.einsum("nihjw,hwcd->nijd", patches, params["conv"]["kernel"])


def outcome(params, stats, split):
    """Summed loss and correct digits, by statistics."""
    x = convolved(params, split.images)
    moments = {key: stats[key] for key in ("mean", "var")}
    x = reference.population(x, **params["norm"], **moments, epsilon=EPSILON)
    x = np.maximum(x, 0).mean((1, 2))
    logits = x @ params["logits"]["kernel"] + params["logits"]["bias"]
    own = logits[np.arange(len(split)), split.labels]
    return np.sum(np.log(np.exp(logits).sum(1)) - own), np.sum(logits.argmax(1) == split.labels)


@pytest.mark.slow
def test_a_record_has_the_statistics_of_algorithm_2_and_results_by_both():
    """Seen red with the running statistics, biased variances, and the batches of training."""
    data = open_data("mnist5k")
    task = inception_task(CONFIG, "bn_baseline", seed=1)
    with small_networks():
        (reached,) = train(task, data, ImageCompute(parallel="jit", device_count=1), Entries())
    weights = jax.tree.map(np.float64, reached.weights)
    params = weights["params"]
    running, made = (weights[name]["norm"] for name in ("batch_stats", "population_stats"))

    order = Order(1 + POPULATION_SEED, data.train.shard_sizes, task.arm.order())
    chosen = order.indices(0, CONFIG.population_batches * CONFIG.batch_size)
    groups = convolved(params, data.train.images[chosen])
    groups = groups.reshape(-1, CONFIG.normalize_together, *groups.shape[1:])
    expected = reference.algorithm_2(groups)
    for key in ("mean", "var"):
        np.testing.assert_allclose(made[key], expected[key], **CLOSE)

    losses = []
    for name, stats in (("test", running), ("test_population", expected)):
        loss, correct = outcome(params, stats, data.test)
        assert reached.final[name]["correct"] == correct
        # A float32 sum of 1,000 losses; the other statistics are off by 10 of some 2,000.
        np.testing.assert_allclose(reached.final[name]["loss"], loss, rtol=1e-5)
        losses.append(loss)
    assert abs(losses[0] - losses[1]) > 10
