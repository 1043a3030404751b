"""Whitening of inputs, on the packaged digits and on made vectors."""

import numpy as np
import pytest
import scipy.linalg

from bnjax.data import in_memory, open_data
from bnjax.whitening import apply_whitening, fit_whitening, inputs

ROUNDED = 2.0**-24
"""Half a unit in the last place: what rounding float64 to float32 costs, relative."""


def vectors(count=500, features=6, dtype=np.float64):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, features)) @ np.tri(features) + np.arange(features)
    return x.astype(dtype)


def digits():
    """Real images of 14x14: every other pixel, borders that are constant included."""
    return in_memory(open_data("mnist5k")).train.images[:, ::2, ::2]


def test_zca_against_another_algorithm():
    """float32 from float64; red for a matrix or a mean of float32 sums, or a missing transpose.

    The output is a float32 sum of 6 products, of values up to 9.5 and of columns whose absolute
    entries add up to 2.2: some roundings of 9.5 * 2.2, of which there are 6 and one for the mean.
    """
    x = vectors()
    fitted = fit_whitening(x, epsilon=0.1)
    root = scipy.linalg.sqrtm(np.cov(x.T, bias=True) + 0.1 * np.eye(6))
    np.testing.assert_allclose(fitted.matrix, np.linalg.inv(root), rtol=ROUNDED)
    np.testing.assert_allclose(fitted.mean, x.mean(0), rtol=ROUNDED)
    y = apply_whitening(x, fitted)
    assert y.dtype == np.float32
    expected = (x - x.mean(0)) @ np.linalg.inv(root)
    np.testing.assert_allclose(y, expected, rtol=0, atol=7 * 9.5 * 2.2 * ROUNDED)


@pytest.mark.parametrize("method", ["zca", "pca"])
def test_made_vectors_become_white(method):
    x = vectors()
    y = apply_whitening(x, fit_whitening(x, epsilon=1e-9, method=method))
    np.testing.assert_allclose(np.cov(y.T, bias=True), np.eye(6), atol=1e-5)
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-5)


def test_components_are_the_largest_in_order():
    """The same, up to sign, as singular vectors of the centred table; signs are a convention."""
    x = vectors()
    fitted = fit_whitening(x, epsilon=1e-9, method="pca", components=2)
    left, _, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    y = apply_whitening(x, fitted)
    assert y.shape == (500, 2)
    np.testing.assert_allclose(np.abs(y), np.abs(left[:, :2]) * np.sqrt(500), atol=1e-4)
    assert all(column[np.abs(column).argmax()] > 0 for column in fitted.matrix.T)


def test_images_stay_images():
    """Real digits: white up to epsilon, finite where pixels are constant, and of their shape."""
    images = digits()
    fitted = fit_whitening(images, epsilon=1e-2)
    y = apply_whitening(images, fitted)
    assert y.shape == images.shape
    flat = images.reshape(len(images), -1) / 255
    cov = np.cov(flat.T, bias=True)
    short = cov @ np.linalg.inv(cov + 1e-2 * np.eye(196))
    np.testing.assert_allclose(np.cov(y.reshape(len(y), -1).T, bias=True), short, atol=1e-4)
    constant = flat.std(0) == 0
    assert constant.any()
    assert np.abs(y.reshape(len(y), -1)[:, constant]).max() < 1e-4
    one = apply_whitening(images[:1], fitted)  # each by itself
    np.testing.assert_allclose(one, y[:1], atol=1e-4)
    assert apply_whitening(images[:0], fitted).shape == (0, *images.shape[1:])
    correlation = np.corrcoef(one.ravel(), images[0].ravel())[0, 1]
    assert correlation > 0.3  # a digit, still, with sharper edges


def test_gradient_descent_needs_fewer_steps():
    """Least squares from digits to labels, to 1 % above the least loss: 4 steps instead of 61."""
    images = digits()
    flat = images.reshape(len(images), -1) / 255
    scaled = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-2)
    white = apply_whitening(images, fit_whitening(images, epsilon=1e-2)).reshape(flat.shape)
    targets = np.eye(10)[in_memory(open_data("mnist5k")).train.labels] - 0.1
    solution = np.linalg.lstsq(scaled, targets)[0]
    goal = 1.01 * np.sum((scaled @ solution - targets) ** 2)

    def steps(x):
        """At the step size of one over the largest eigenvalue, starting from zero."""
        hessian, cross = x.T @ x, x.T @ targets
        rate = 1 / np.linalg.eigvalsh(hessian)[-1]
        weights, count = np.zeros_like(cross), 0
        while np.sum(weights * (hessian @ weights - 2 * cross)) + np.sum(targets**2) > goal:
            weights -= rate * (hessian @ weights - cross)
            count += 1
        return count

    assert abs(steps(white) - 4) <= 1
    assert abs(steps(scaled) - 61) <= 3


def test_uint8_counts_as_intensities():
    images = digits()
    whole = fit_whitening(images, epsilon=1e-2)
    scaled = fit_whitening(images / 255, epsilon=1e-2)
    np.testing.assert_allclose(whole.matrix, scaled.matrix, atol=1e-5)
    y = apply_whitening(images, whole)
    np.testing.assert_allclose(y, apply_whitening(images / 255, scaled), atol=1e-3)


def test_chunks_are_summed(monkeypatch):
    """Red if a last, shorter chunk is left out or counts as a whole one.

    Sums of float64 in another order may round to the neighbour in float32.
    """
    x = vectors(count=103)
    whole = fit_whitening(x, epsilon=0.1)
    monkeypatch.setattr(inputs, "_CHUNK_BYTES", 8 * 6 * 10)
    chunked = fit_whitening(x, epsilon=0.1)
    np.testing.assert_allclose(chunked.mean, whole.mean, rtol=2 * ROUNDED)
    np.testing.assert_allclose(chunked.matrix, whole.matrix, rtol=2 * ROUNDED)


def test_far_from_zero():
    """Red for E[xx] - E[x]E[x]: at 1e6, in float64, it is off by 1e-4."""
    near, far = (fit_whitening(vectors() + offset, epsilon=0.1) for offset in (0, 1e6))
    np.testing.assert_allclose(far.matrix, near.matrix, rtol=0, atol=1e-6)


def test_fewer_examples_than_features():
    x = vectors(3, 12)
    y = apply_whitening(x, fit_whitening(x, epsilon=1e-3))
    assert np.isfinite(y).all()
    assert np.linalg.matrix_rank(y, tol=1e-2) == 2


def test_examples_are_left_alone():
    x = vectors()
    before = x.copy()
    apply_whitening(x, fit_whitening(x, epsilon=0.1))
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize(
    ("examples", "settings", "message"),
    [
        (vectors(dtype=np.int32), {}, r"examples must be uint8 or floating, got int32"),
        (vectors()[0], {}, r"examples must be \[n, \.\.\.\] .* got shape \(6,\)"),
        (vectors(1), {}, r"examples must be 2 or more, got 1"),
        (vectors() * np.nan, {}, r"examples must be finite"),
        (vectors(), {"epsilon": 0.0}, r"epsilon must be > 0, got 0.0"),
        (vectors(), {"method": "lda"}, r"method must be one of 'zca', 'pca', got 'lda'"),
        (vectors(), {"components": 2}, r"components=2 is for method='pca'"),
        (vectors(), {"components": 7, "method": "pca"}, r"components must be in 1 \.\. 6 .* got 7"),
    ],
)
def test_bad_arguments(examples, settings, message):
    with pytest.raises(ValueError, match=message):
        fit_whitening(examples, **({"epsilon": 0.1} | settings))


def test_examples_unlike_those_fitted():
    fitted = fit_whitening(vectors(), epsilon=0.1)
    with pytest.raises(ValueError, match=r"shape \(5,\), but the whitening was fitted on \(6,\)"):
        apply_whitening(vectors(features=5), fitted)
    with pytest.raises(ValueError, match=r"uint8 or floating, got bool"):
        apply_whitening(vectors() > 0, fitted)
    with pytest.raises(ValueError, match=r"examples are uint8, but .* fitted on floats"):
        apply_whitening(np.zeros((3, 6), np.uint8), fitted)
