"""What a run of digits measures, against its last state in float64."""

from types import SimpleNamespace

import digit_networks
import jax
import numpy as np
import pytest
import reference
from digit_networks import by_batch, by_statistics
from marks import slow
from mnist_runs import run

from bnjax.data import in_memory, open_data
from bnjax.data.order import batch_indices
from experiments.mnist_lenet.config import Config
from experiments.mnist_lenet.experiment import comparison

CONFIG = Config(
    steps=20,
    batch_size=20,
    learning_rate=0.5,
    threshold=0.3,
    epsilon=1e-2,
    averaging="ema",  # after so few steps far from what the weights give
    population_batches=3,
    probe_examples=50,
    steps_per_dispatch=10,
    eval_every=20,
    sparse_eval_every=20,
    units_every=20,
)
TWO_DIGITS = {"rtol": 0, "atol": 0.006}  # those of the log
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32 through three layers


@pytest.fixture(scope="module", params=["mlp_bn", slow("lenet_bn")])
def ran(request, tmp_path_factory):
    """Log and outcome; the network in float64 at its last weights, and its data."""
    data = in_memory(open_data("mnist5k"))
    log, final, state = run(
        comparison(CONFIG, request.param, range(1)), data, tmp_path_factory.mktemp("run")
    )
    params, stats = jax.tree.map(np.float64, (state.params, state.batch_stats))
    forward = getattr(digit_networks, request.param.removesuffix("_bn"))
    return SimpleNamespace(
        log=log,
        final=final,
        params=params,
        running={layer: stats[layer]["norm"] for layer in stats},
        forward=lambda images, normalize: forward(params, _binary(images), normalize),
        train=data.train,
        test=data.test,
    )


def _binary(images):
    return (images / 255 > CONFIG.threshold).astype(float)


@pytest.mark.slow
def test_percentiles_are_those_of_the_last_hidden_layer_as_its_batch_normalizes_it(ran):
    """Of the first test digits. Seen red by running statistics and for another layer."""
    _, inputs = ran.forward(ran.test.images[:50], by_batch(ran.params, CONFIG.epsilon))
    for share in (15, 50, 85):
        logged = ran.log[-1]["units"][f"p{share}"]
        np.testing.assert_allclose(logged, np.percentile(inputs, share, axis=0), **TWO_DIGITS)
    np.testing.assert_allclose(ran.log[-1]["pooled"], np.percentile(inputs, (15, 50, 85)), **CLOSE)


def test_a_second_median_is_by_the_running_statistics(ran):
    """Seen red in training mode."""
    normalize = by_statistics(ran.params, CONFIG.epsilon, ran.running)
    _, inputs = ran.forward(ran.test.images[:50], normalize)
    units = ran.log[-1]["units"]
    np.testing.assert_allclose(units["p50_running"], np.median(inputs, 0), **TWO_DIGITS)
    assert np.abs(np.subtract(units["p50_running"], units["p50"])).max() > 0.1


def outcome(ran, stats):
    """Summed loss and correct digits of the whole test set, by statistics."""
    logits, _ = ran.forward(ran.test.images, by_statistics(ran.params, CONFIG.epsilon, stats))
    labels = np.asarray(ran.test.labels)
    own = logits[np.arange(len(labels)), labels]
    return np.sum(np.log(np.exp(logits).sum(1)) - own), np.sum(logits.argmax(1) == labels)


def test_the_record_has_results_by_running_statistics_and_by_algorithm_2(ran):
    """Of the first batches of the order. Seen red by each other's statistics, and with variances
    that are biased."""
    order = batch_indices(0, 0, 3, batch_size=20, size=len(ran.train.labels))
    seen = {}
    for chosen in order:
        ran.forward(ran.train.images[chosen], by_batch(ran.params, CONFIG.epsilon, seen))
    made = {layer: reference.algorithm_2(inputs) for layer, inputs in seen.items()}
    losses = []
    for name, stats in (("test_population", made), ("test", ran.running)):
        loss, correct = outcome(ran, stats)
        assert ran.final[name]["correct"] == correct
        np.testing.assert_allclose(ran.final[name]["loss"], loss, rtol=1e-5)
        losses.append(loss)
    assert abs(losses[0] - losses[1]) > 10
