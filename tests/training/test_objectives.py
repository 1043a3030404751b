"""Losses and counts against NumPy float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnjax.training.objectives import (
    Metrics,
    check_labels,
    classification_metrics,
    classification_objective,
    smoothed_cross_entropy,
)
from bnjax.training.predictions import count_errors

CLOSE = {"rtol": 1e-6, "atol": 1e-6}  # float32 sums of a few terms of size one

compiled_metrics = jax.jit(classification_metrics)


def cross_entropy(logits, labels):
    """Of each example, in nats: log of the softmax's denominator minus the label's logit."""
    logits = np.asarray(logits, np.float64)
    top = logits.max(1)
    log_sum = top + np.log(np.exp(logits - top[:, None]).sum(1))
    return log_sum - logits[np.arange(len(labels)), labels]


def draw(n=9, classes=4):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, classes)).astype(np.float32), rng.integers(0, classes, n, np.int32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_sums_equal_float64(dtype):
    """Red for a mean in the place of a sum, or a loss computed in bfloat16."""
    logits, labels = draw()
    logits = jnp.asarray(logits, dtype)
    metrics = compiled_metrics(logits, labels)
    assert (metrics.loss.dtype, metrics.correct.dtype, metrics.examples.dtype) == (
        jnp.float32,
        jnp.int32,
        jnp.int32,
    )
    np.testing.assert_allclose(metrics.loss, cross_entropy(logits, labels).sum(), **CLOSE)
    right = np.asarray(logits, np.float64).argmax(1) == labels
    assert 0 < right.sum() < len(labels)
    assert metrics.correct == right.sum()
    assert metrics.examples == len(labels)


def test_what_is_masked_does_not_count():
    """NaN and infinity on padding included."""
    logits, labels = draw()
    mask = np.array([True, False] * 4 + [True])
    bad = np.where(mask[:, None], logits, np.array([np.nan, np.inf, -np.inf, 0], np.float32))
    metrics = compiled_metrics(bad, labels, mask)
    losses = cross_entropy(logits[mask], labels[mask])
    np.testing.assert_allclose(metrics.loss, losses.sum(), **CLOSE)
    assert metrics.correct == (logits[mask].argmax(1) == labels[mask]).sum()
    assert metrics.examples == 5


def test_an_empty_mask_gives_zero():
    metrics = compiled_metrics(*draw(), np.zeros(9, bool))
    assert tuple(map(float, metrics)) == (0, 0, 0)


def test_extreme_logits():
    """Red without the shift by the largest logit: exp(1e4) is infinite."""
    logits = np.array([[1e4, 0, -1e4], [1e4, 0, -1e4], [-1e4, -1e4, -1e4]], np.float32)
    labels = np.array([0, 2, 1], np.int32)
    metrics = compiled_metrics(logits, labels)
    np.testing.assert_allclose(metrics.loss, 0 + 2e4 + np.log(3), rtol=1e-6)
    assert metrics.correct == 1  # of equal logits the first counts as the largest


def test_gradient_is_softmax_minus_one_hot():
    logits, labels = draw()
    gradient = jax.jit(jax.grad(lambda logits: classification_metrics(logits, labels).loss))(logits)
    exp = np.exp(logits.astype(np.float64))
    expected = exp / exp.sum(1, keepdims=True) - np.eye(4)[labels]
    np.testing.assert_allclose(gradient, expected, **CLOSE)


def test_the_gradient_of_what_is_masked_is_zero():
    """NaN and infinity on padding included: one NaN would reach every parameter."""
    logits, labels = draw()
    mask = np.array([True, False] * 4 + [True])
    bad = np.where(mask[:, None], logits, np.array([np.nan, np.inf, -np.inf, 0], np.float32))
    loss = jax.jit(jax.grad(lambda logits: classification_metrics(logits, labels, mask).loss))
    exp = np.exp(logits.astype(np.float64))
    expected = exp / exp.sum(1, keepdims=True) - np.eye(4)[labels]
    np.testing.assert_allclose(loss(bad), np.where(mask[:, None], expected, 0), **CLOSE)


def test_nan_is_never_right():
    """Red if `argmax`, which takes NaN for the largest, makes a network of NaN guess class 0."""
    logits = np.array([[np.nan] * 3, [0, np.nan, 1], [0, 2, 1]], np.float32)
    labels = np.array([0, 1, 1], np.int32)
    metrics = compiled_metrics(logits, labels)
    assert metrics.correct == 1
    assert metrics.correct == 3 - count_errors(logits, labels).top_1


def test_zero_is_the_sum_over_nothing():
    metrics = compiled_metrics(*draw())
    total = jax.tree.map(jnp.add, Metrics.zero(), metrics)
    for after, before in zip(total, metrics, strict=True):
        assert after == before
        assert after.dtype == before.dtype


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ((4,), (4,), r"got \(4,\) and \(4,\)"),
        ((4, 3), (5,), r"got \(4, 3\) and \(5,\)"),
        ((4, 3), (4, 1), r"got \(4, 3\) and \(4, 1\)"),
    ],
)
def test_shapes_are_checked_while_tracing(logits, labels, message):
    arguments = jnp.zeros(logits), jnp.zeros(labels, jnp.int32)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(classification_metrics, *arguments)


def test_lists_are_no_arrays():
    logits, labels = jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32)
    with pytest.raises(ValueError, match=r"labels must be an array, got list: use jnp\.asarray"):
        classification_metrics(logits, [0, 1])
    with pytest.raises(ValueError, match="logits must be an array, got tuple"):
        classification_metrics((logits, logits), labels)
    with pytest.raises(ValueError, match="mask must be an array, got list"):
        classification_metrics(logits, labels, [True, False])


def test_labels_must_be_integers():
    with pytest.raises(ValueError, match=r"labels must be integer class numbers, got float32"):
        jax.eval_shape(classification_metrics, jnp.zeros((4, 3)), jnp.zeros(4))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((4, 1), bool), r"mask must be bool \[4\], got bool \[4, 1\]"),
        (np.ones(3, bool), r"mask must be bool \[4\], got bool \[3\]"),
        (np.ones(4, np.float32), r"mask must be bool \[4\], got float32 \[4\]"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(mask, message):
    """[n, 1] would broadcast and count n examples n times."""
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            classification_metrics, jnp.zeros((4, 3)), jnp.zeros(4, jnp.int32), jnp.asarray(mask)
        )


def test_labels_of_all_classes_are_fine():
    check_labels(np.arange(10, dtype=np.int32), 10)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 10, 11], r"labels must be in 0\.\.9, got 10 at position 2: count .* from zero"),
        ([0, -1], r"labels must be in 0\.\.9, got -1 at position 1"),
    ],
)
def test_labels_out_of_range_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        check_labels(np.array(labels), 10)


def smoothed(logits, labels, smoothing):
    """Of each example: H(q', p), term by term as 1512.00567 has it."""
    logits = np.asarray(logits, np.float64)
    classes = logits.shape[1]
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    q = (1 - smoothing) * np.eye(classes)[labels] + smoothing / classes
    return -(q * log_p).sum(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothing_equals_float64(smoothing):
    """Red for the mass spread over the other classes alone, or a mean over examples."""
    logits, labels = draw()
    loss = jax.jit(partial(smoothed_cross_entropy, smoothing=smoothing))(logits, labels)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, smoothed(logits, labels, smoothing).sum(), **CLOSE)


def test_smoothed_gradient_is_p_minus_q():
    """Zero where masked, NaN logits included."""
    logits, labels = draw()
    mask = np.array([True, False] * 4 + [True])
    bad = np.where(mask[:, None], logits, np.float32(np.nan))
    loss = partial(smoothed_cross_entropy, smoothing=0.1)
    gradient = jax.jit(jax.grad(loss))(bad, labels, mask)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    expected = np.where(mask[:, None], p - (0.9 * np.eye(4)[labels] + 0.1 / 4), 0)
    np.testing.assert_allclose(gradient, expected, **CLOSE)


def test_smoothing_at_extreme_logits_and_in_bfloat16():
    logits = jnp.array([[1e4, 0, -1e4]], jnp.bfloat16)
    loss = jax.jit(partial(smoothed_cross_entropy, smoothing=0.3))(logits, np.zeros(1, np.int32))
    np.testing.assert_allclose(loss, 0.1 * 3e4, rtol=1e-2)  # 1e4 is 9984 in bfloat16


def test_without_smoothing_a_class_that_cannot_be_costs_nothing():
    """Its logit is -inf; red if its share of the smoothing, 0 * inf, is NaN."""
    logits, labels = draw()
    logits[:, 3], labels = -np.inf, labels % 3
    loss, gradient = jax.jit(jax.value_and_grad(partial(smoothed_cross_entropy, smoothing=0.0)))(
        logits, labels
    )
    np.testing.assert_allclose(loss, cross_entropy(logits[:, :3], labels).sum(), **CLOSE)
    exp = np.exp(logits.astype(np.float64))
    expected = exp / exp.sum(1, keepdims=True) - np.eye(4)[labels]
    np.testing.assert_allclose(gradient, expected, **CLOSE)


def test_side_heads_are_added_with_their_weights():
    """And the metrics are those of the main head, with plain labels."""
    main, labels = draw()
    heads = (main * 2, main[:, ::-1])
    objective = classification_objective(label_smoothing=0.1, auxiliary_weights=(0.3, 0.4))
    loss, metrics = jax.jit(objective)((main, heads), labels)
    expected = sum(
        weight * smoothed(logits, labels, 0.1).sum()
        for weight, logits in zip((1, 0.3, 0.4), (main, *heads), strict=True)
    )
    np.testing.assert_allclose(loss, expected, **CLOSE)
    plain = compiled_metrics(main, labels)
    assert tuple(map(float, metrics)) == tuple(map(float, plain))


def test_an_objective_takes_logits_alone_and_a_mask():
    logits, labels = draw()
    mask = np.arange(9) % 2 == 0
    loss, metrics = jax.jit(classification_objective())(logits, labels, mask)
    np.testing.assert_allclose(loss, cross_entropy(logits[mask], labels[mask]).sum(), **CLOSE)
    assert metrics.examples == 5


@pytest.mark.parametrize("weights", [(), (0.3,), (0.3, 0.3, 0.3)])
def test_a_head_without_a_weight_is_refused(weights):
    """Its parameters would have no gradient; a weight too many is a head that is missing."""
    logits, labels = map(jnp.asarray, draw())
    objective = classification_objective(auxiliary_weights=weights)
    with pytest.raises(ValueError, match=r"auxiliary_weights=.* must be one for each .* returns 2"):
        objective((logits, (logits, logits)), labels)


def test_smoothing_and_weights_are_numbers():
    with pytest.raises(ValueError, match=r"label_smoothing must be a number, got '0\.1'"):
        classification_objective(label_smoothing="0.1")
    with pytest.raises(ValueError, match=r"auxiliary_weights must be a number, got '0\.3'"):
        classification_objective(auxiliary_weights=("0.3",))


@pytest.mark.parametrize("smoothing", [1.0, -0.1])
def test_bad_smoothing_is_refused(smoothing):
    logits, labels = map(jnp.asarray, draw())
    with pytest.raises(ValueError, match=rf"^smoothing must be in \[0, 1\), got {smoothing}"):
        smoothed_cross_entropy(logits, labels, smoothing=smoothing)
    with pytest.raises(ValueError, match=rf"label_smoothing must be .* got {smoothing}"):
        classification_objective(label_smoothing=smoothing)
