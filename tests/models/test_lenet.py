"""LeNet-5: its variables, its layers against a plain composition of JAX, its options."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bnjax.linen import BatchNorm
from bnjax.models import LeNet5, scaled_tanh

LAYERS = ("C1", "C3", "C5", "F6")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32 through five layers, sums of up to 400 terms


def shapes(model):
    """The variables of a 28x28 image's network, nothing computed."""
    images = jnp.zeros((1, 28, 28, 1))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))


def make(size=28, channels=1, **options):
    """A model, variables of which none is zero, and three images."""
    model = LeNet5(**options)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(3, size, size, channels)), jnp.float32)
    abstract = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))

    def draw(leaf):
        inputs = np.prod(leaf.shape[:-1])  # keeps the layers' outputs of size one
        return jnp.asarray(
            rng.uniform(0.1, 1, leaf.shape) * rng.choice([-1, 1], leaf.shape) / np.sqrt(inputs),
            leaf.dtype,
        )

    variables = jax.tree.map(draw, abstract)
    if "batch_stats" in variables:
        variables["batch_stats"] = jax.tree.map(jnp.abs, variables["batch_stats"])
    return model, variables, images


def forward(model, variables, images, **arguments):
    return jax.jit(partial(model.apply, **arguments))(variables, images)


BIASES = 6 + 16 + 120 + 84  # of the layers that may be normalized


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({}, 61_706),
        ({"norm": BatchNorm}, 61_706 - BIASES + 2 * BIASES),  # scale and bias for each bias
        ({"pool": "max"}, 61_706),
        ({"pool": "subsample"}, 61_706 + 2 * (6 + 16)),  # coefficient and bias for each map
        ({"convolution": "xla"}, 61_706),
    ],
    ids=str,
)
def test_parameter_counts(options, parameters):
    params = shapes(LeNet5(**options))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters


def test_variables_with_normalization():
    """One scale, bias, mean and variance for each map (section 3.2); no bias before them."""
    variables = shapes(LeNet5(norm=BatchNorm))
    params, stats = variables["params"], variables["batch_stats"]
    for name, units in zip(LAYERS, (6, 16, 120, 84), strict=True):
        assert set(params[name]) == {"kernel"}
        norm = params[f"{name}_activation"]["norm"]
        running = stats[f"{name}_activation"]["norm"]
        assert {key: leaf.shape for key, leaf in norm.items()} == {
            "scale": (units,),
            "bias": (units,),
        }
        assert {key: leaf.shape for key, leaf in running.items()} == {
            "mean": (units,),
            "var": (units,),
        }
    assert set(params["logits"]) == {"kernel", "bias"}


@partial(jax.jit, static_argnames=("activation", "pool", "normalize"))
def plain_lenet(params, x, *, activation=jnp.tanh, pool, normalize=lambda params, name, x: x):
    """LeNet-5 written out once more, on a 32x32 image, by XLA's convolution."""
    for name in ("C1", "C3"):
        x = lax.conv_general_dilated(
            x, params[name]["kernel"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = x + params[name].get("bias", jnp.zeros(x.shape[-1])).reshape(1, 1, 1, -1)
        x = pool(params, activation(normalize(params, name, x)))
    x = x.reshape(len(x), -1)
    for name in ("C5", "F6"):
        bias = params[name].get("bias", jnp.zeros(params[name]["kernel"].shape[1]))
        x = activation(normalize(params, name, x @ params[name]["kernel"] + bias.reshape(1, -1)))
    return x @ params["logits"]["kernel"] + params["logits"]["bias"].reshape(1, -1)


def windows(x):
    return x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1)


POOLS = {
    "average": lambda params, x: windows(x).mean((2, 4)),
    "max": lambda params, x: windows(x).max((2, 4)),
}


@pytest.mark.parametrize(("size", "pool"), [(28, "average"), (32, "max")])
def test_forward_equals_a_plain_composition(size, pool):
    """Red for another border, order or layer; a 28x28 image stands in the centre of 32x32."""
    model, variables, images = make(size, pool=pool)
    border = (32 - size) // 2
    framed = jnp.pad(images, ((0, 0), (border, border), (border, border), (0, 0)))
    expected = plain_lenet(variables["params"], framed, pool=POOLS[pool])
    np.testing.assert_allclose(forward(model, variables, images, train=False), expected, **CLOSE)


def test_forward_with_normalization_equals_a_plain_composition():
    """Moments over examples and positions, before the nonlinearity, whose input is kept."""
    model, variables, images = make(32, norm=BatchNorm, activation=nn.relu)

    def normalize(params, name, x):
        norm = variables["params"][f"{name}_activation"]["norm"]
        axes = tuple(range(x.ndim - 1))
        x = (x - x.mean(axes, keepdims=True)) / jnp.sqrt(x.var(axes, keepdims=True) + 1e-5)
        scale, bias = (norm[key].reshape((1,) * len(axes) + (-1,)) for key in ("scale", "bias"))
        return x * scale + bias

    expected = plain_lenet(
        variables["params"], images, activation=nn.relu, pool=POOLS["average"], normalize=normalize
    )
    mutable = ["batch_stats", "intermediates"]
    logits, kept = forward(model, variables, images, train=True, mutable=mutable)
    np.testing.assert_allclose(logits, expected, **CLOSE)
    (seen,) = kept["intermediates"]["F6_activation"]["preactivation"]
    head = variables["params"]["logits"]
    seen_logits = nn.relu(seen) @ head["kernel"] + head["bias"].reshape(1, -1)
    np.testing.assert_allclose(logits, seen_logits, **CLOSE)


def test_classical_options_by_hand():
    """Subsampling is followed by the squashing function, as in the classical network."""
    model, variables, images = make(32, pool="subsample", activation=scaled_tanh)
    stages = iter(("S2", "S4"))

    def pool(params, x):
        stage = params[next(stages)]
        coefficient, bias = (stage[key].reshape(1, 1, 1, -1) for key in ("coefficient", "bias"))
        return scaled_tanh(windows(x).sum((2, 4)) * coefficient + bias)

    expected = plain_lenet(variables["params"], images, activation=scaled_tanh, pool=pool)
    np.testing.assert_allclose(forward(model, variables, images, train=False), expected, **CLOSE)


@pytest.mark.slow
def test_both_convolutions_give_the_same_network():
    """Logits and the gradient of every parameter."""
    model, variables, images = make(channels=3, norm=BatchNorm)
    other = LeNet5(norm=BatchNorm, convolution="xla")
    weights = jax.random.normal(jax.random.key(2), (3, 10))

    def weighted(params, model):
        logits, _ = model.apply(
            variables | {"params": params}, images, train=True, mutable=["batch_stats"]
        )
        return (weights * logits).sum(), logits

    gradients = jax.jit(jax.grad(weighted, has_aux=True), static_argnums=1)
    gradient, logits = gradients(variables["params"], model)
    wanted, expected = gradients(variables["params"], other)
    np.testing.assert_allclose(logits, expected, **CLOSE)
    for (path, leaf), want in zip(
        jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(wanted), strict=True
    ):
        # dL/dw before a normalization is what is left of large terms: judge by the largest
        np.testing.assert_allclose(
            leaf, want, rtol=1e-3, atol=1e-4 * abs(want).max(), err_msg=jax.tree_util.keystr(path)
        )


def test_per_activation_normalization_through_the_argument():
    """One scale for each pixel and channel; dense layers keep their feature axis."""

    class PerActivation(nn.Module):
        use_running_average: bool

        @nn.compact
        def __call__(self, x):
            axis = (1, 2, 3) if x.ndim == 4 else -1
            return BatchNorm(self.use_running_average, axis=axis)(x)

    model, variables, images = make(norm=PerActivation)
    params = variables["params"]
    scales = {name: params[f"{name}_activation"]["norm"]["BatchNorm_0"]["scale"] for name in LAYERS}
    assert {name: scale.shape for name, scale in scales.items()} == {
        "C1": (28, 28, 6),
        "C3": (10, 10, 16),
        "C5": (120,),
        "F6": (84,),
    }
    mutable = ["batch_stats", "intermediates"]
    _, kept = forward(model, variables, images, train=True, mutable=mutable)
    (c1,) = kept["intermediates"]["C1_activation"]["preactivation"]
    bias = params["C1_activation"]["norm"]["BatchNorm_0"]["bias"]
    np.testing.assert_allclose(c1.mean(0), bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 27, 28, 1), (2, 28, 32, 1), (28, 28, 1), (2, 784)])
def test_images_of_another_size_are_refused(shape):
    with pytest.raises(ValueError, match=rf"\[n, 28, 28, c\].*got \({shape[0]}, "):
        LeNet5().init(jax.random.key(0), jnp.zeros(shape), train=False)


@pytest.mark.parametrize("option", ["pool", "convolution"])
def test_an_unknown_option_is_refused(option):
    """Red if another value falls silently back to a default."""
    with pytest.raises(ValueError, match=rf"{option} must be .*got 'median'"):
        shapes(LeNet5(**{option: "median"}))
