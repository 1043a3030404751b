"""Statements of the 2015 paper on the transform, and what follows from it, as tests in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tolerances
from cases import infer, train
from tolerances import assert_close

import bnjax

pytestmark = pytest.mark.usefixtures("x64")

TINY = 1e-30  # epsilon, where a fact holds for epsilon -> 0 only
IMPLS = ("fused", "autodiff")


transform = jax.jit(bnjax.batch_transform, static_argnames=("epsilon", "impl"))


class Layer:
    """BN(u W) with random everything, and a random linear loss."""

    def __init__(self):
        rng = np.random.default_rng(3)
        self.u = jnp.asarray(rng.normal(size=(20, 6)))
        self.kernel = jnp.asarray(rng.normal(size=(6, 4)))
        self.weights = jnp.asarray(rng.normal(size=(20, 4)))
        self.params = {
            "scale": jnp.asarray(rng.uniform(0.5, 2, 4)),
            "bias": jnp.asarray(rng.normal(size=4)),
        }

    def output(self, kernel, u, impl, epsilon=TINY):
        return transform(u @ kernel, self.params, epsilon=epsilon, impl=impl)[0]

    def loss(self, kernel, u, impl):
        return jnp.sum(self.weights * self.output(kernel, u, impl))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("a", [0.01, 7.0])
def test_the_scale_of_the_weights_does_not_matter(impl, a):
    """Section 3.3: BN((aW)u) = BN(Wu), the same dL/du, and 1/a times dL/dW."""
    layer = Layer()
    plain, scaled = layer.kernel, a * layer.kernel
    assert_close(
        layer.output(scaled, layer.u, impl), layer.output(plain, layer.u, impl), tolerances.EXACT
    )
    gradient = jax.grad(layer.loss, argnums=(0, 1))
    of_plain, of_scaled = gradient(plain, layer.u, impl), gradient(scaled, layer.u, impl)
    assert_close(of_scaled[0], of_plain[0] / a, tolerances.EXACT, "dL/dW")
    assert_close(of_scaled[1], of_plain[1], tolerances.EXACT, "dL/du")


def test_the_scale_matters_by_epsilon_alone():
    """Scaling by a at epsilon a^2 is the same as scaling by one at epsilon."""
    layer = Layer()
    scaled = layer.output(3 * layer.kernel, layer.u, "fused", epsilon=9 * 0.1)
    plain = layer.output(layer.kernel, layer.u, "fused", epsilon=0.1)
    assert_close(scaled, plain, tolerances.EXACT)


@pytest.mark.parametrize("impl", IMPLS)
def test_the_gradient_is_orthogonal_to_each_units_weights(impl):
    layer = Layer()
    dkernel = jax.grad(layer.loss)(layer.kernel, layer.u, impl)
    assert np.abs(dkernel).max() > 0.1
    assert_close(jnp.sum(layer.kernel * dkernel, axis=0), np.zeros(4), tolerances.EXACT)


@pytest.mark.parametrize("impl", IMPLS)
def test_dx_sums_to_zero_and_is_orthogonal_to_xhat(impl):
    """The first for any epsilon, the second for epsilon -> 0."""
    layer = Layer()
    x = layer.u @ layer.kernel

    def loss(x, epsilon):
        y, _ = transform(x, layer.params, epsilon=epsilon, impl=impl)
        return jnp.sum(layer.weights * y)

    assert_close(jax.grad(loss)(x, 0.1).sum(0), np.zeros(4), tolerances.EXACT)
    dx = jax.grad(loss)(x, TINY)
    xhat, _ = transform(x, {}, epsilon=TINY)
    assert np.abs(dx).max() > 0.1
    assert_close(jnp.sum(xhat * dx, axis=0), np.zeros(4), tolerances.EXACT)


def test_xhat_has_mean_zero_and_variance_almost_one():
    layer = Layer()
    x = 3 + layer.u @ layer.kernel
    xhat, moments = transform(x, {}, epsilon=0.5)
    assert_close(xhat.mean(0), np.zeros(4), tolerances.EXACT)
    expected = np.asarray(moments.var / (moments.var + 0.5))
    assert_close(jnp.square(xhat).mean(0), expected, tolerances.EXACT)


def test_scale_and_bias_can_restore_the_identity():
    """gamma = sqrt(var + epsilon) and beta = mean, "if that were the optimal thing to do"."""
    layer = Layer()
    x = 3 + layer.u @ layer.kernel
    _, moments = transform(x, {}, epsilon=0.5)
    params = {"scale": jnp.sqrt(moments.var + 0.5), "bias": moments.mean}
    y, _ = transform(x, params, epsilon=0.5)
    assert_close(y, np.asarray(x), tolerances.EXACT)


@pytest.mark.parametrize("averaging", ["ema_debiased", "cumulative"])
@pytest.mark.parametrize("decay", [0.0, 0.9, 0.9999])
def test_inference_equals_training_after_one_update(averaging, decay):
    """With the biased variance exactly; with the unbiased one up to m/(m-1)."""
    layer = Layer()
    x = 3 + layer.u @ layer.kernel
    stats = bnjax.init_stats(4, averaging=averaging, dtype=jnp.float64)
    settings = {"averaging": averaging, "decay": decay, "epsilon": TINY}

    y, new = train(x, layer.params, stats, running_var="biased", **settings)
    inferred = infer(x, layer.params, new, epsilon=TINY)
    assert_close(inferred, np.asarray(y), tolerances.EXACT)

    _, new = train(x, layer.params, stats, running_var="unbiased", **settings)
    inferred = infer(x, layer.params, new, epsilon=TINY)
    bias = np.asarray(layer.params["bias"])
    assert_close(inferred, np.sqrt(19 / 20) * (np.asarray(y) - bias) + bias, tolerances.EXACT)


def test_inference_is_one_fixed_affine_map_of_each_example():
    """Algorithm 2: unlike training, no example sees its neighbours."""
    layer = Layer()
    x = layer.u @ layer.kernel
    stats = {"mean": jnp.arange(4.0), "var": jnp.arange(1.0, 5.0)}
    y = infer(x, layer.params, stats)
    one_by_one = jnp.concatenate([infer(row[None], layer.params, stats) for row in x])
    assert_close(one_by_one, np.asarray(y), tolerances.EXACT)
    trained = transform(x, layer.params)[0]
    assert np.abs(trained[:5] - transform(x[:5], layer.params)[0]).max() > 0.01
