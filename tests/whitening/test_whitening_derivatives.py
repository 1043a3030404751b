"""Derivatives of whitening, at repeated eigenvalues too; whitening over devices; what is refused.

Always through random weights: the gradient of sum(y) is zero whatever the derivative is.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import tolerances
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads
from marks import slow
from tolerances import assert_close

import bnjax
from bnjax.whitening import (
    batch_covariance,
    init_whitening_stats,
    inverse_sqrt,
    whiten_batch,
    whiten_population,
    whitening_matrix,
    whitening_transform,
)

EPSILON = 1e-2
CLOSE = {"rtol": 1e-6, "atol": 1e-7}  # central differences of step 1e-5 in float64
SPECTRA = {  # standard deviations along the principal axes
    "distinct": [1.0, 0.8, 0.6, 0.4],
    "nearly_equal": [1.0, 1.0 + 1e-9, 0.6, 0.6 - 1e-9],
    "two_pairs": [1.0, 1.0, 0.6, 0.6],
    "all_equal": [1.0, 1.0, 1.0, 1.0],
    "singular": [1.0, 1.0, 0.0, 0.0],
}


def make(spectrum, *, turned=True, count=8):
    """Vectors of exactly this spectrum (columns of a Hadamard matrix), and random weights."""
    rng = np.random.default_rng(0)
    x = scipy.linalg.hadamard(count)[:, 1:5] * np.array(SPECTRA[spectrum])
    if turned:
        x = x @ np.linalg.qr(rng.normal(size=(4, 4)))[0]
    return jnp.asarray(x), jnp.asarray(rng.normal(size=x.shape))


def loss(x, weights, scale=None, **settings):
    params = {} if scale is None else {"scale": scale}
    y, _ = whitening_transform(x, params, **({"epsilon": EPSILON} | settings))
    return jnp.sum(weights * y)


gradient = jax.jit(jax.grad(loss), static_argnames=("method", "epsilon", "groups", "axis"))


def differences(f, x, step=1e-5):
    """Central differences of a NumPy function of `x`, one entry at a time."""
    x = np.asarray(x, np.float64)
    slopes = np.empty_like(x)
    for i in np.ndindex(x.shape):
        shift = np.zeros_like(x)
        shift[i] = step
        slopes[i] = (f(x + shift) - f(x - shift)) / (2 * step)
    return slopes


def whitened(x, keep=slice(None)):
    """ZCA in NumPy, by Schur's method: no eigenvectors."""
    centred = x - x[keep].mean(0)
    cov = centred[keep].T @ centred[keep] / len(centred[keep])
    return centred @ np.linalg.inv(scipy.linalg.sqrtm(cov + EPSILON * np.eye(len(cov))))


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_gradients_by_finite_differences(x64, spectrum, turned):
    """Red for autodiff through the eigenvectors: NaN where they repeat."""
    x, weights = make(spectrum, turned=turned)
    expected = differences(lambda x: np.sum(np.asarray(weights) * whitened(x)), x)
    assert np.abs(expected).max() > 0.1
    assert_close(gradient(x, weights), expected, CLOSE)


def test_gradients_under_a_mask(x64):
    """Masked vectors feel no covariance; those with NaN get no gradient and give none."""
    x, weights = make("two_pairs")
    keep = np.array([1, 1, 0, 1, 1, 0, 1, 1], bool)
    expected = differences(lambda x: np.sum(np.asarray(weights) * whitened(x, keep)), x)
    mask = jnp.asarray(keep)[:, None]
    assert_close(gradient(x, weights, mask=mask), expected, CLOSE)
    dx = gradient(x.at[2].set(jnp.nan), weights, mask=mask)
    np.testing.assert_array_equal(dx[2], 0)
    without = differences(
        lambda x: np.sum(np.delete(np.asarray(weights) * whitened(x, keep), 2, axis=0)), x
    )
    assert_close(np.delete(dx, 2, axis=0), np.delete(without, 2, axis=0), CLOSE)


@pytest.mark.parametrize("mode", [slow("fwd"), "rev"])
def test_derivatives_of_the_root_up_to_the_third(x64, mode):
    """Red if the solution by eigenvectors is differentiated instead of the equation."""
    x, weights = make("two_pairs")
    root = jax.jit(lambda cov: jnp.sum(weights[:4] * inverse_sqrt(cov)))
    check_grads(root, (x.T @ x / 8,), order=3, modes=[mode])


@pytest.mark.parametrize("spectrum", ["two_pairs", "singular"])
def test_hessian_vector_product(x64, spectrum):
    """Forward over reverse: the derivative's own coefficients move with x."""
    x, weights = make(spectrum)
    direction = jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
    product = jax.jit(lambda x: jax.jvp(lambda x: gradient(x, weights), (x,), (direction,))[1])(x)
    step = 1e-5
    ahead, behind = (gradient(x + s * direction, weights) for s in (step, -step))
    assert np.abs(product).max() > 0.1
    assert_close(product, (ahead - behind) / (2 * step), {"rtol": 1e-5, "atol": 1e-6})


def test_the_root_moves_by_divided_differences(x64):
    """At a multiple of one, by -dA/2 a^(-3/2); elsewhere only symmetric parts count."""
    rng = np.random.default_rng(0)
    direction = jnp.asarray(rng.normal(size=(3, 3)))
    both = (direction + direction.T) / 2
    move = jax.jit(lambda matrix: jax.jvp(inverse_sqrt, (matrix,), (direction,))[1])
    moved = move(4 * jnp.eye(3))
    assert_close(moved, -both / 16, tolerances.EXACT)
    moved = move(jnp.diag(jnp.array([1.0, 4.0, 4.0])))
    quotient = np.array([[-1 / 2, -1 / 6, -1 / 6], [-1 / 6, -1 / 16, -1 / 16]])[[0, 1, 1]]
    assert_close(moved, both * quotient, tolerances.EXACT)


def test_principal_axes_are_differentiated_where_they_are_known(x64):
    """And only there: NaN at repeated eigenvalues, forward and reverse, rather than any number."""

    def principal(x):
        centred = x - x.mean(0)
        values, axes = np.linalg.eigh(centred.T @ centred / len(x))
        axes = axes[:, ::-1] * np.sign([max(axis, key=abs) for axis in axes.T[::-1]])
        return centred @ axes / np.sqrt(values[::-1] + EPSILON)

    x, weights = make("distinct")
    expected = differences(lambda x: np.sum(np.asarray(weights) * principal(x)), x)
    assert_close(gradient(x, weights, method="pca"), expected, {"rtol": 1e-5, "atol": 1e-6})
    for spectrum in ("two_pairs", "all_equal"):
        x, weights = make(spectrum)
        assert np.isnan(gradient(x, weights, method="pca")).any()
        of = jax.jit(partial(loss, weights=weights, method="pca"))
        value, along = jax.jvp(of, (x,), (weights,))
        assert np.isfinite(value)
        assert np.isnan(along)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_in_narrow_types(dtype):
    x, weights = (a.astype(dtype) for a in make("two_pairs"))
    dx = gradient(x, weights)
    exact, flat = np.asarray(x, np.float64), np.asarray(weights, np.float64)
    expected = differences(lambda x: np.sum(flat * whitened(x)), exact)
    assert dx.dtype == dtype
    assert_close(dx, expected, {"rtol": float(jnp.finfo(dtype).eps), "atol": 2e-5})


def test_gradients_of_scale_bias_and_groups(x64):
    x, weights = make("two_pairs")
    params = {"scale": jnp.arange(1.0, 5), "bias": jnp.arange(4.0)}

    def of(x, params):
        y, _ = whitening_transform(x[:, :, None], params, axis=1, groups=2, epsilon=EPSILON)
        return jnp.sum(weights * y[..., 0])

    dx, dparams = jax.jit(jax.grad(of, argnums=(0, 1)))(x, params)

    def split(x):
        return np.concatenate([whitened(x[:, :2]), whitened(x[:, 2:])], axis=1)

    flat, scale = np.asarray(weights), np.arange(1.0, 5)
    assert_close(dx, differences(lambda x: np.sum(flat * split(x) * scale), x), CLOSE)
    assert_close(dparams["scale"], (flat * split(np.asarray(x))).sum(0), tolerances.EXACT)
    assert_close(dparams["bias"], flat.sum(0), tolerances.EXACT)


def test_statistics_carry_no_gradient():
    x, _ = (a.astype(jnp.float32) for a in make("distinct"))

    @jax.jit
    def of_statistics(x):
        _, stats = whiten_batch(x, {}, init_whitening_stats(4))
        _, batch = whitening_transform(x, {})
        entries = jnp.arange(16.0).reshape(1, 4, 4)
        return sum(jnp.sum(cov * entries) for cov in (stats["cov"], batch.cov))

    assert of_statistics(2 * x) != of_statistics(x)
    np.testing.assert_array_equal(jax.jit(jax.grad(of_statistics))(x), 0)


def test_the_covariance_alone_is_differentiable(x64):
    x, _ = make("distinct")
    entries = np.random.default_rng(0).normal(size=(4, 4))
    dx = jax.jit(jax.grad(lambda x: jnp.sum(entries * batch_covariance(x).cov[0])))(x)
    centred = np.asarray(x) - np.asarray(x).mean(0)
    assert_close(dx, centred @ (entries + entries.T) / 8, tolerances.EXACT)


# Over devices. Uneven masks; one device has nothing to count.

DEVICES, ROWS, FEATURES = 8, 4, 6


def rows(masked):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(DEVICES * ROWS, FEATURES)) @ rng.normal(size=(FEATURES, FEATURES)) + 5
    weights = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    keep = rng.random((len(x), 1)) < 0.6
    keep[8:12] = False
    x = jnp.asarray(np.where(keep, x, np.nan) if masked else x, jnp.float32)
    return x, jnp.asarray(keep) if masked else jnp.ones_like(keep), weights


def step(x, keep, weights, scale, masked, **settings):
    """Output, moved statistics and gradients of one batch."""
    mask = keep if masked else None
    stats = init_whitening_stats(FEATURES, groups=2)

    def of(x, scale):
        y, new = whiten_batch(x, {"scale": scale}, stats, mask=mask, decay=0.5, **settings)
        return jnp.sum(weights * y), (y, new)

    dx, (y, new) = jax.grad(of, has_aux=True)(x, scale)
    return y, dx, new


EXPLICIT = {  # [vectors, features] on a mesh of two devices by three; groups have three features
    "vectors and features": P("data", "model"),
    "groups": P(None, "data"),
    "vectors": P("data", None),
}


def vmap(f, **settings):
    return jax.jit(jax.vmap(f, **settings))


@pytest.mark.parametrize(
    ("how", "masked"),
    [
        ("jit", True),
        ("shard_map", False),
        slow("shard_map", True),
        slow("pmap", True),
        slow("vmap", True),
        ("vectors and features", True),
        ("groups", False),
        slow("vectors", True),
    ],
)
def test_devices_are_one(how, masked):
    """Red for a covariance of one device's vectors, or a mean of devices' means."""
    x, keep, weights = rows(masked)
    scale = jnp.linspace(0.5, 2, FEATURES)
    one = jax.jit(partial(step, masked=masked))(x, keep, weights, scale)
    shared = partial(step, masked=masked, axis_name="data")
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    if how == "jit":
        split = [jax.device_put(a, NamedSharding(mesh, P("data"))) for a in (x, keep, weights)]
        y, dx, stats = jax.jit(partial(step, masked=masked))(*split, scale)
        assert len(y.sharding.device_set) == DEVICES
    elif how in EXPLICIT:
        explicit = (jax.sharding.AxisType.Explicit,) * 2
        whole = NamedSharding(jax.make_mesh((2, 3), ("data", "model"), explicit), P())
        place = whole.update(spec=EXPLICIT[how])
        flags = whole.update(spec=P(*EXPLICIT[how][:1]))
        split = jax.device_put((x, keep, weights, scale), (place, flags, place, whole))
        with jax.set_mesh(whole.mesh):
            y, dx, stats = jax.jit(partial(step, masked=masked))(*split)
        assert y.sharding == dx.sharding == place
    elif how == "shard_map":
        specs = (P("data"), P("data"), P("data"), P())
        each = jax.shard_map(
            shared, mesh=mesh, in_specs=specs, out_specs=(P("data"), P("data"), P())
        )
        y, dx, stats = jax.jit(each)(x, keep, weights, scale)
    else:
        mapped = jax.pmap if how == "pmap" else vmap
        split = [a.reshape(DEVICES, ROWS, -1) for a in (x, keep, weights)]
        y, dx, stats = mapped(shared, axis_name="data", in_axes=(0, 0, 0, None))(*split, scale)
        y, dx = (a.reshape(len(x), -1) for a in (y, dx))
        for leaf in jax.tree.leaves(stats):
            np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
        stats = jax.tree.map(lambda leaf: leaf[0], stats)
    close = {"rtol": 1e-4, "atol": 1e-4}
    assert_close(y, np.float64(one[0]), close, "y")
    assert_close(dx, np.float64(one[1]), close, "dx")
    for key in ("mean", "cov"):
        assert_close(stats[key], np.float64(one[2][key]), close, key)


@pytest.mark.parametrize("spec", [P(("a", "b")), P("a"), slow(P())])
def test_a_batch_over_several_mesh_axes(spec):
    """Where devices have equal vectors, each counts, and results are typed as equal."""
    x, _, _ = rows(masked=False)
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def whiten(x):
        return whitening_transform(x, {}, axis_name=["a", "b"])

    y, batch = jax.jit(jax.shard_map(whiten, mesh=mesh, in_specs=spec, out_specs=(spec, P())))(x)
    expected, _ = jax.jit(lambda x: whitening_transform(x, {}))(x)
    assert_close(y, np.float64(expected), {"rtol": 1e-4, "atol": 1e-4})
    assert batch.size == len(x) * {P(("a", "b")): 1, P("a"): 4, P(): 8}[spec]


@pytest.mark.parametrize("spec", [P("a"), P(None, "a", "b"), P("a", None, None, "b")])
@pytest.mark.parametrize("whiten", [whiten_batch, whiten_population])
def test_images_on_an_explicit_mesh(whiten, spec):
    """What comes back lies as it came. Red where rows or columns cannot become vectors."""
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    x = jax.device_put(jnp.ones((4, 2, 4, 4)), NamedSharding(mesh, spec))
    with jax.set_mesh(mesh):
        results = jax.eval_shape(lambda x: whiten(x, {}, init_whitening_stats(4)), x)
    y = jax.tree.leaves(results)[0]
    assert y.sharding.spec == jax.typeof(x).sharding.spec


@pytest.mark.slow
def test_groups_of_devices_are_batches_of_their_own():
    x, keep, weights = rows(masked=False)
    groups = [[0, 1, 2, 3], [4, 5, 6, 7]]
    split = [a.reshape(DEVICES, ROWS, -1) for a in (x, keep, weights)]
    shared = partial(step, masked=False, axis_name="data", axis_index_groups=groups)
    y, dx, _ = jax.pmap(shared, axis_name="data", in_axes=(0, 0, 0, None))(*split, jnp.ones(6))
    for half in (slice(0, 16), slice(16, 32)):
        one = jax.jit(partial(step, masked=False))(x[half], keep[half], weights[half], jnp.ones(6))
        for got, wanted in zip((y, dx), one, strict=False):
            assert_close(got.reshape(32, 6)[half], np.float64(wanted), {"rtol": 1e-4, "atol": 1e-4})


def test_sums_over_devices_are_few():
    """Those of the moments, and one for the covariance; as many backward."""
    x, _, weights = rows(masked=False)
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def sums(f, *arguments):
        specs = (P("data"),) * len(arguments)
        each = jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=P("data"))
        program = jax.jit(each).lower(*arguments).compile().as_text()
        return len(re.findall(r"= .* (?:all-reduce|all-gather)(?:-start)?\(", program))

    forward = sums(lambda x: whitening_transform(x, {}, axis_name="data")[0], x)
    moments = sums(lambda x: x - bnjax.batch_moments(x, (0,), axis_name="data").mean[None], x)
    both = sums(lambda x, weights: jax.grad(loss)(x, weights, axis_name="data"), x, weights)
    assert forward <= moments + 1
    assert both <= 2 * (moments + 1)


# What is refused, while tracing.

X = jnp.ones((8, 6))


def train(x=X, params=None, stats=None, **settings):
    stats = init_whitening_stats(6) if stats is None else stats
    return jax.eval_shape(lambda x: whiten_batch(x, params or {}, stats, **settings), x)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"x": X[0]}, r"x must have an axis of examples .* got shape \(6,\)"),
        ({"x": X.astype(int)}, r"x must be floating, got int32"),
        ({"x": X[:1]}, r"x of shape \(1, 6\) .* leaves 1 vector .* larger batch"),
        ({"axis": (0, 1)}, r"axis must be one axis, got \(0, 1\): reshape"),
        ({"axis": 2}, r"axis=2 does not name axes of x, which has rank 2"),
        ({"axis": 0}, r"stats\['mean'\] has shape \(6,\), but x needs \(8,\)"),
        ({"method": "cholesky"}, r"method must be one of 'zca', 'pca', got 'cholesky'"),
        ({"method": "pca", "x": X[:5]}, r"method='pca' needs as many vectors .* 5 for groups of 6"),
        ({"epsilon": 0.0}, r"epsilon must be > 0, got 0.0"),
        ({"decay": 1.0}, r"decay must be in \[0, 1\), got 1.0"),
        ({"averaging": "mean"}, r"averaging must be one of .* got 'mean'"),
        ({"averaging": "cumulative"}, r"averaging='cumulative' needs stats\['count'\]"),
        ({"running_cov": "none"}, r"must be one of 'unbiased', 'biased', got 'none'"),
        ({"params": {"gamma": X[0]}}, r"params has the keys \['gamma'\].*init_params"),
        (
            {"params": {"scale": X[0, :1]}},
            r"params\['scale'\] has shape \(1,\), but x has features of shape \(6,\)",
        ),
        ({"stats": bnjax.init_stats(6)}, r"stats has the keys \['mean', 'var'\].*init_whitening"),
        (
            {"stats": init_whitening_stats(6) | {"cov": jnp.eye(6)}},
            r"stats\['cov'\] has shape \(6, 6\), but x needs \(1, 6, 6\)",
        ),
        (
            {"stats": init_whitening_stats(6) | {"cov": jnp.ones((4, 1, 1))}},
            r"groups must divide the features, got groups=4 for 6 features",
        ),
        (
            {"stats": init_whitening_stats(6) | {"count": jnp.zeros(6, jnp.int32)}},
            r"stats\['count'\] has shape \(6,\), but x needs \(\)",
        ),
        ({"mask": jnp.ones((8, 1))}, r"mask must be bool, got float32"),
        ({"mask": jnp.ones(8, bool)}, r"mask of shape \(8,\) does not fit .*same rank"),
        ({"mask": jnp.ones((8, 6), bool)}, r"mask of shape \(8, 6\) .* whole vectors"),
        ({"axis_index_groups": [[0]]}, r"axis_index_groups=\[\[0\]\] needs axis_name"),
    ],
)
def test_bad_arguments(settings, message):
    with pytest.raises(ValueError, match=message):
        train(**settings)


def test_bad_arguments_elsewhere():
    with pytest.raises(ValueError, match=r"got groups=4 for 6 features"):
        init_whitening_stats(6, groups=4)
    with pytest.raises(ValueError, match=r"groups must be >= 1, got 0"):
        whitening_transform(X, {}, groups=0)
    with pytest.raises(ValueError, match=r"averaging must be one of"):
        init_whitening_stats(6, averaging="mean")
    with pytest.raises(ValueError, match=r"stats has the keys"):
        whiten_population(X, {}, {})
    with pytest.raises(ValueError, match=r"epsilon must be > 0"):
        whiten_population(X, {}, init_whitening_stats(6), epsilon=-1.0)
    with pytest.raises(ValueError, match=r"leaves 1 vector"):
        batch_covariance(X[:1])
    with pytest.raises(ValueError, match=r"method must be one of"):
        whitening_matrix(jnp.eye(3), method="none")
