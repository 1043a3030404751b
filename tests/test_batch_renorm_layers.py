"""`BatchRenorm` of Linen and NNX is `renormalize_batch`, and in inference `BatchNorm`."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from norm_layers import KEY, normal, trained
from tolerances import PARALLEL, assert_bitwise, assert_close, assert_trees_close

import bnjax.linen
import bnjax.nnx
from bnjax.inference import fold_model
from bnjax.models import MLP, fuses_activation, norm_by_name
from bnjax.models.layers import DenseNorm
from bnjax.models.norms import Norm
from bnjax.normalization import init_stats, renorm_limits, renormalize_batch
from bnjax.recalibration import recalibrate

X = normal(6, 3)
LIMITS = {"r_max": 1.5, "d_max": 0.5}
SETTINGS = {"epsilon": 1e-3, "averaging": "ema_debiased", "activation": "sigmoid", "batch": 3}
VARIABLES = {
    "params": {"scale": jnp.array([0.5, 1.0, 1.5]), "bias": jnp.array([1.0, 0.0, -1.0])},
    "batch_stats": init_stats(3, averaging="ema_debiased")
    | {"mean": jnp.array([1.0, 2.0, 4.0]), "count": jnp.array([1, 0, 2])},
}


def linen(limits=LIMITS, call=None, **settings):
    """Output and new variables of a training step."""
    layer = bnjax.linen.BatchRenorm(False, momentum=0.9, **limits, **SETTINGS | settings)
    return jax.jit(partial(layer.apply, mutable=["batch_stats"], **call or {}))(VARIABLES, X)


def test_linen_is_the_function():
    """Red if the counts do not reach the function, or the limits."""
    y, moved = linen()
    expected = jax.jit(partial(renormalize_batch, decay=0.9, running_var="biased", **SETTINGS))(
        X, VARIABLES["params"], VARIABLES["batch_stats"], **LIMITS
    )
    assert_trees_close((y, moved["batch_stats"]), expected, PARALLEL)
    assert np.abs(y - linen({"r_max": 1.0, "d_max": 0.0})[0]).max() > 0.01


def test_nnx_is_linen():
    layer = bnjax.nnx.BatchRenorm(3, momentum=0.9, **LIMITS, **SETTINGS, rngs=nnx.Rngs(0))
    for key, value in (VARIABLES["params"] | VARIABLES["batch_stats"]).items():
        getattr(layer, key)[...] = value

    @nnx.jit
    def step(layer, x, **limits):
        return layer(x, update_statistics=False, **limits), layer(x, **limits)

    frozen, y = step(layer, X)
    expected, moved = linen()
    assert_close(y, np.float64(expected), PARALLEL)
    assert_bitwise(frozen, y)
    for key, value in moved["batch_stats"].items():
        assert_close(getattr(layer, key)[...], np.float64(value), PARALLEL)
    layer.eval()
    as_batch_norm = bnjax.linen.BatchNorm(True, **SETTINGS)
    inferred = as_batch_norm.apply({**VARIABLES, "batch_stats": moved["batch_stats"]}, X)
    assert_close(layer(X), np.float64(inferred), PARALLEL)


@pytest.mark.parametrize("make", [bnjax.linen.BatchRenorm, partial(bnjax.nnx.BatchRenorm, 3)])
def test_limits_of_the_call_override_the_attributes(make):
    """Traced ones, too. By default the limits are the paper's last."""
    given = {"r_max": jnp.float32(1.5), "d_max": jnp.float32(0.5)}
    if make is bnjax.linen.BatchRenorm:
        assert_bitwise(linen({}, call=given), linen(LIMITS, call={}))
        assert (make().r_max, make().d_max) == (3.0, 5.0)
        return
    layers = [make(**limits, rngs=nnx.Rngs(0)) for limits in (LIMITS, {})]
    with_limits = nnx.jit(lambda layer, x, **limits: layer(x, **limits))
    ys = [with_limits(layer, X, **call) for layer, call in zip(layers, ({}, given), strict=True)]
    assert_close(ys[0], np.float64(ys[1]), PARALLEL)
    assert (layers[1].r_max, layers[1].d_max) == (3.0, 5.0)


def test_the_statistics_are_read_where_they_stay():
    """Without `update_statistics` as well; a missing count is said with the layer's name."""
    y, unmoved = linen(update_statistics=False)
    assert_bitwise(unmoved["batch_stats"], VARIABLES["batch_stats"])
    assert_bitwise(y, linen()[0])
    layer = bnjax.linen.BatchRenorm(False, averaging="cumulative", update_statistics=False)
    stats = {key: VARIABLES["batch_stats"][key] for key in ("mean", "var")}
    with pytest.raises(ValueError, match=r"BatchRenorm at \(top\): averaging='cumulative' needs"):
        layer.apply({"batch_stats": stats, "params": VARIABLES["params"]}, X)


def test_initialization_is_that_of_batch_norm():
    """The same variables, for one example, too; and inference is the same."""
    ours, theirs = bnjax.linen.BatchRenorm(), bnjax.linen.BatchNorm()
    for x in (X, X[:1]):
        assert_bitwise(ours.init(KEY, x, False), theirs.init(KEY, x, False))
    assert_bitwise(*(layer.apply(VARIABLES, X, True) for layer in (ours, theirs)))


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (partial(bnjax.linen.BatchRenorm, False), r"BatchRenorm at \(top\)"),
        (partial(bnjax.nnx.BatchRenorm, 3, rngs=nnx.Rngs(0)), "BatchRenorm of 3 features"),
    ],
)
def test_bad_limits_and_complex_numbers_name_the_layer(make, where):
    def call(x, **limits):
        if isinstance(layer := make(dtype=x.dtype), nn.Module):
            return layer.init_with_output(KEY, x, **limits)
        return layer(x, **limits)

    with pytest.raises(ValueError, match=f"{where}: r_max must be >= 1, got 0.5"):
        call(X, r_max=0.5)
    with pytest.raises(ValueError, match=f"{where}: d_max must be >= 0, got nan"):
        call(X, d_max=float("nan"))
    with pytest.raises(ValueError, match=f"{where}: x must be real, got complex64"):
        call(X.astype(jnp.complex64))


def test_nnx_refuses_bad_limits_where_it_is_made():
    with pytest.raises(ValueError, match="d_max must be >= 0, got -1"):
        bnjax.nnx.BatchRenorm(3, d_max=-1.0, rngs=nnx.Rngs(0))


# --- in networks ------------------------------------------------------------------------------

NETWORK = MLP((4, 4), 3, norm="batch_renorm")


def test_a_network_takes_it_by_name_and_fuses_the_activation():
    made = norm_by_name("batch_renorm", r_max=2.0, batch=3)()
    assert (type(made), made.r_max, made.d_max, made.batch) == (
        *(bnjax.linen.BatchRenorm, 2.0, 5.0),
        3,
    )
    assert fuses_activation("batch_renorm", nn.relu)


def with_limits(model, step):
    r_max, d_max = renorm_limits(step, start=0, r_end=10, d_end=10)
    return model.clone(norm=partial(bnjax.linen.BatchRenorm, r_max=r_max, d_max=d_max))


def test_a_schedule_reaches_the_layers_of_a_network():
    """As traced attributes, through one program; halfway limits are 2 and 2.5."""

    @jax.jit
    def gradient(variables, x, step):
        def loss(params):
            model = with_limits(NETWORK, step)
            y, moved = model.apply(
                variables | {"params": params}, x, train=True, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.sin(y)), moved

        return jax.grad(loss, has_aux=True)(variables["params"])

    variables = trained(NETWORK, X)
    halfway = NETWORK.clone(norm=norm_by_name("batch_renorm", r_max=2.0, d_max=2.5))

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def expected(params):
        y, moved = halfway.apply(
            variables | {"params": params}, X, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(jnp.sin(y)), moved

    grads, moved = gradient(variables, X, 5)
    wanted = expected(variables["params"])
    assert_trees_close((grads, moved), jax.tree.map(np.float64, wanted), PARALLEL)
    at_first, _ = gradient(variables, X, 0)
    differences = jax.tree.map(lambda a, b: np.abs(a - b).max(), at_first, grads)
    assert max(jax.tree.leaves(differences)) > 0.01


def test_a_schedule_passes_recomputation():
    """Attributes that are tracers may stand in modules that `nn.remat` lifts, as Inception does."""

    class Part(nn.Module):
        norm: Norm | None = None

        @nn.compact
        def __call__(self, x, train):
            return DenseNorm(4, self.norm)(x, train=train)

    class Network(nn.Module):
        part: type[nn.Module]
        norm: Norm | None = None

        @nn.compact
        def __call__(self, x, *, train):
            return self.part(self.norm, name="part")(x, train)

    @partial(jax.jit, static_argnums=0)
    def gradient(model, variables, step):
        def loss(params):
            y, moved = with_limits(model, step).apply(
                variables | {"params": params}, X, train=True, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.sin(y)), moved

        return jax.grad(loss, has_aux=True)(variables["params"])

    plain, again = Network(Part), Network(nn.remat(Part, static_argnums=(2,)))
    variables = trained(with_limits(plain, 5), X)
    expected = jax.tree.map(np.float64, gradient(plain, variables, 5))
    assert_trees_close(gradient(again, variables, 5), expected, PARALLEL)


def test_folded_it_is_as_batch_norm():
    variables = trained(NETWORK, X)
    folded = fold_model(NETWORK, variables, X, train=False)
    assert not folded.kept
    assert len(folded.folded) == 2
    y = folded.apply(folded.variables, X, train=False)
    as_batch_norm = NETWORK.clone(norm="batch")
    assert_close(y, np.float64(as_batch_norm.apply(variables, X, train=False)), PARALLEL)


def test_recalibrated_it_is_as_batch_norm():
    """Algorithm 2 normalizes by each batch alone. Red if it corrects towards the old statistics."""
    variables = trained(NETWORK, X)
    batches = [X, 2 * X + 1]
    ours = recalibrate(NETWORK, variables, batches, train=True)
    theirs = recalibrate(NETWORK.clone(norm="batch"), variables, batches, train=True)
    assert_trees_close(ours, jax.tree.map(np.float64, theirs), PARALLEL)
    without = recalibrate(NETWORK, {"params": variables["params"]}, batches, train=True)
    assert_trees_close(without["batch_stats"], ours["batch_stats"], PARALLEL)
