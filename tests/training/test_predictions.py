"""Mean probabilities and errors against NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnjax.training import predictions
from bnjax.training.predictions import predict

count_errors = jax.jit(predictions.count_errors)
mean_prediction = jax.jit(predictions.mean_prediction, static_argnums=1)

CLOSE = {"rtol": 2e-6, "atol": 2e-6}  # float32 logarithms of sums of a few terms


def softmax(logits):
    shifted = np.asarray(logits, np.float64)
    exp = np.exp(shifted - shifted.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def ranks(scores, labels):
    """How many classes come before the label; of equals the first comes first."""
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.array([list(row).index(label) for row, label in zip(order, labels, strict=True)])


def test_the_mean_is_of_probabilities():
    """Red for the mean of logits or of logarithms, which is the geometric one."""
    logits = np.random.default_rng(0).normal(0, 4, (3, 5, 7)).astype(np.float32)
    logs = np.log(softmax(logits)).astype(np.float32)
    for axis in (0, 1):
        actual = mean_prediction(logs, axis)
        np.testing.assert_allclose(actual, np.log(softmax(logits).mean(axis)), **CLOSE)
    geometric = np.log(softmax(logits)).mean(0)
    assert np.abs(np.asarray(mean_prediction(logs, 0)) - geometric).max() > 0.1


def test_classes_keep_their_order_where_probabilities_underflow():
    """exp(-200) is zero in float32; red for means of plain probabilities."""
    logs = np.array([[[0.0, -205, -204, -203, -202, -201, -200]]] * 2, np.float32)
    mean = mean_prediction(logs, 0)
    for label, errors in ((1, (1, 1, 1)), (2, (1, 1, 1)), (3, (1, 0, 1)), (6, (1, 0, 1))):
        assert tuple(map(int, count_errors(mean, np.array([label], np.int32)))) == errors


@pytest.mark.parametrize("at_once", [1, 2, 6])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_network_predicts_the_mean_over_its_views(at_once, dtype):
    """Red if views of one example mix with another's, or if sums are made in bfloat16."""
    rng = np.random.default_rng(1)
    # Small whole numbers: the logits are exact in either type.
    views, kernel = (rng.integers(-2, 3, shape) for shape in ((4, 6, 2, 3), (6, 8)))

    def logits_of(images):
        assert images.shape == (4 * at_once, 2, 3)
        return (images.reshape(-1, 6) @ jnp.asarray(kernel, jnp.float32)).astype(dtype)

    images = jnp.asarray(views, jnp.float32)
    logs = jax.jit(lambda views: predict(logits_of, views, at_once=at_once))(images)
    assert logs.dtype == jnp.float32
    probabilities = softmax(views.reshape(24, 6) @ kernel).reshape(4, 6, 8).mean(1)
    np.testing.assert_allclose(logs, np.log(probabilities), **CLOSE)


@pytest.mark.parametrize("at_once", [0, 4, 12])
def test_parts_must_divide_the_views(at_once):
    with pytest.raises(ValueError, match=rf"divide the 6 views of an example, got {at_once}"):
        predict(lambda images: images, jnp.zeros((2, 6, 3)), at_once=at_once)


def test_errors_are_those_of_a_sorted_list():
    rng = np.random.default_rng(2)
    scores = rng.normal(size=(200, 12)).astype(np.float32)
    labels = rng.integers(0, 12, 200).astype(np.int32)
    mask = rng.random(200) < 0.7
    rank = ranks(scores, labels)
    errors = count_errors(scores, labels)
    assert {leaf.dtype for leaf in errors} == {jnp.dtype("int32")}
    assert tuple(map(int, errors)) == ((rank >= 1).sum(), (rank >= 5).sum(), 200)
    scores[~mask] = np.nan  # what is masked must not matter
    errors = count_errors(scores, labels, mask)
    expected = ((rank >= 1)[mask].sum(), (rank >= 5)[mask].sum(), mask.sum())
    assert tuple(map(int, errors)) == expected


def test_of_equal_classes_the_first_is_the_most_probable():
    """As for argmax, so that top-1 errors are those of `classification_metrics`."""
    scores = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1]], np.float32)
    labels = np.array([0, 1, 1, 2], np.int32)
    assert (scores.argmax(1) != labels).sum() == 3
    assert int(count_errors(scores, labels).top_1) == 3
    ties = np.random.default_rng(3).integers(0, 3, (300, 12)).astype(np.float32)
    labels = np.random.default_rng(4).integers(0, 12, 300).astype(np.int32)
    rank = ranks(ties, labels)
    errors = count_errors(ties, labels)
    assert tuple(map(int, errors)) == ((rank >= 1).sum(), (rank >= 5).sum(), 300)


def test_nan_is_an_error():
    """Also where there are no more than five classes."""
    for classes in (3, 9):
        scores = np.full((2, classes), np.nan, np.float32)
        assert tuple(map(int, count_errors(scores, np.zeros(2, np.int32)))) == (2, 2, 2)
    other = np.array([[0.0, np.nan, -1.0]], np.float32)  # the label's own is finite
    assert int(count_errors(other, np.zeros(1, np.int32)).top_1) == 1


@pytest.mark.parametrize(
    ("scores", "labels", "mask", "message"),
    [
        ((4,), (4,), None, r"got \(4,\) and \(4,\)"),
        ((4, 3), (5,), None, r"got \(4, 3\) and \(5,\)"),
        ((4, 3), (4,), (3,), r"mask must be bool \[4\], got bool \[3\]"),
    ],
)
def test_shapes_are_checked_while_tracing(scores, labels, mask, message):
    arguments = [jnp.zeros(scores), jnp.zeros(labels, jnp.int32)]
    arguments += [] if mask is None else [jnp.zeros(mask, bool)]
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(count_errors, *arguments)


def test_labels_must_be_whole_numbers():
    with pytest.raises(ValueError, match="labels must be integer class numbers, got float32"):
        jax.eval_shape(count_errors, jnp.zeros((4, 3)), jnp.zeros(4))
