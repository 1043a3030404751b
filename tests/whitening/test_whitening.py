"""Whitening against NumPy and SciPy in float64, and what it is for."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import tolerances
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

SETTINGS = ("axis", "method", "decay", "epsilon", "averaging", "running_cov", "dtype")
train = jax.jit(whiten_batch, static_argnames=SETTINGS)
normalize = jax.jit(bnjax.batch_transform, static_argnames="epsilon")
infer = jax.jit(whiten_population, static_argnames=("axis", "method", "epsilon", "dtype"))
transform = jax.jit(
    whitening_transform, static_argnames=("axis", "groups", "method", "epsilon", "dtype")
)

# Of y in float32: rounding moves every eigenvalue by some 1e-7 of the largest, and the root of the
# smallest, which is epsilon at least, by as much over epsilon. In bfloat16: one rounding more.
CLOSE = {"float32": {"rtol": 1e-5, "atol": 3e-5}, "bfloat16": {"rtol": 2.0**-8, "atol": 3e-5}}
EPSILON = 1e-3


def vectors(count=64, features=6, *, seed=0, spread=1.0):
    """Correlated, of the given range of standard deviations along their axes; float64."""
    rng = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(rng.normal(size=(features, features)))
    return rng.normal(size=(count, features)) * np.geomspace(1, spread, features) @ axes


def table(array, axis):
    array = np.moveaxis(np.asarray(array, np.float64), axis, -1)
    return array.reshape(-1, array.shape[-1])


def blocks(features, groups):
    return [slice(i, i + features // groups) for i in range(0, features, features // groups)]


def expected(x, *, keep=None, groups=1, method="zca", epsilon=EPSILON):
    """Rows of y, the mean, the biased covariance of each group and the count; `x` is a table.

    ZCA by Schur's method, not by eigenvectors; PCA one eigenvector after the other.
    """
    x = np.asarray(x, np.float64)
    keep = np.full(len(x), True) if keep is None else np.asarray(keep).ravel()
    x = np.where(keep[:, None] | np.isfinite(x), x, x[keep].mean(0))
    mean = x[keep].mean(0)
    y, covs = np.empty_like(x), []
    for block in blocks(x.shape[1], groups):
        cov = np.cov(x[keep][:, block].T, bias=True).reshape(block.stop - block.start, -1)
        covs.append(cov)
        y[:, block] = (x - mean)[:, block] @ matrix_of(cov, method, epsilon)
    return y, mean, np.stack(covs), keep.sum()


def matrix_of(cov, method, epsilon):
    if method == "zca":
        return np.linalg.inv(scipy.linalg.sqrtm(cov + epsilon * np.eye(len(cov))))
    values, axes = np.linalg.eigh(cov)
    columns = []
    for i in np.argsort(-values):
        column = axes[:, i] / np.sqrt(values[i] + epsilon)
        columns.append(column * np.sign(column[np.argmax(np.abs(column))]))
    return np.stack(columns, axis=1)


def make(layout, mask, dtype="float32", offset=0.0):
    """A case of batch normalization with its features mixed, and the mask one flag a vector."""
    rng = np.random.default_rng(3)
    case = cases.make(layout, mask=mask, dtype="float32")
    features = case.x.shape[case.axis]
    clean = np.moveaxis(np.asarray(case.clean, np.float64), case.axis, -1)
    mixing = np.linalg.qr(rng.normal(size=(features, features)))[0] @ np.tri(features)
    clean = np.moveaxis(clean @ mixing, -1, case.axis) + offset
    clean = jnp.asarray(clean, dtype)
    if case.mask is None:
        return case._replace(x=clean, clean=clean)
    flags = jnp.all(case.mask, axis=case.axis, keepdims=True)
    bad = jnp.asarray(rng.choice([np.nan, np.inf, 3 + offset], size=clean.shape), dtype)
    return case._replace(x=jnp.where(flags, clean, bad), clean=clean, mask=flags)


@pytest.mark.parametrize(
    ("layout", "mask", "groups", "method", "dtype", "offset"),
    [
        ("dense", "none", 1, "zca", "float32", 0.0),
        ("dense", "example", 5, "zca", "float32", 0.0),
        ("sequence", "nan", 1, "pca", "float32", 0.0),
        ("channels_last", "none", 1, "pca", "bfloat16", 0.0),
        ("channels_last", "nan", 1, "zca", "bfloat16", 0.0),
        ("channels_first", "nan", 1, "zca", "float32", 1e2),
    ],
)
def test_training_and_inference_match_float64(layout, mask, groups, method, dtype, offset):
    """Red for a mask left out of the mean or the covariance, NaN that leaks, a biased update."""
    case = make(layout, mask, dtype, offset)
    features = case.x.shape[case.axis]
    settings = {"axis": case.axis, "method": method, "epsilon": 0.01}
    stats = init_whitening_stats(features, groups=groups)
    y, stats = train(case.x, case.params, stats, mask=case.mask, decay=0.75, **settings)
    inferred = infer(case.clean, case.params, stats, **settings)

    keep = None
    if case.mask is not None:
        shape = [1 if a == case.axis % case.x.ndim else n for a, n in enumerate(case.x.shape)]
        keep = table(np.broadcast_to(case.mask, shape), case.axis) > 0
    rows, mean, cov, count = expected(
        table(case.x, case.axis), keep=keep, groups=groups, method=method, epsilon=0.01
    )
    scale, bias = (np.asarray(case.params[key], np.float64) for key in ("scale", "bias"))
    close = {"rtol": CLOSE[dtype]["rtol"], "atol": 3e-5 * (1 + offset / 10)}
    assert y.dtype == inferred.dtype == case.x.dtype
    assert_close(table(y, case.axis), rows * scale + bias, close, "y")

    width = features // groups
    assert_close(stats["mean"], 0.25 * mean, tolerances.mean(offset), "mean")
    moved = 0.75 * np.eye(width) + 0.25 * cov * count / (count - 1)
    assert_close(stats["cov"], moved, {"rtol": 1e-5, "atol": 1e-5}, "cov")
    centred = table(case.clean, case.axis) - 0.25 * mean
    for block, block_cov in zip(blocks(features, groups), moved, strict=True):
        fixed = centred[:, block] @ matrix_of(block_cov, method, 0.01) * scale[block] + bias[block]
        assert_close(table(inferred, case.axis)[:, block], fixed, close, "inference")


@pytest.mark.parametrize("method", ["zca", "pca"])
@pytest.mark.parametrize("spread", [1.0, 0.03])
def test_the_output_is_white_up_to_epsilon(x64, method, spread):
    """Its covariance is Cov / (Cov + epsilon): each eigenvalue short of one by that much."""
    x = jnp.asarray(vectors(spread=spread))
    y, batch = transform(x, {}, method=method, epsilon=EPSILON)
    cov = np.asarray(batch.cov[0])
    short = cov @ np.linalg.inv(cov + EPSILON * np.eye(6))
    if method == "pca":
        short = np.diag(np.sort(np.linalg.eigvalsh(short))[::-1])
    assert_close(np.cov(y.T, bias=True), short, tolerances.EXACT)
    assert_close(y.mean(0), np.zeros(6), tolerances.EXACT)
    tiny, _ = transform(x, {}, method=method, epsilon=1e-12)
    assert_close(np.cov(tiny.T, bias=True), np.eye(6), {"rtol": 0, "atol": 1e-8})


def test_float64_outputs_of_float32(x64):
    """Summed in float64: an output that is rounded to float32 needs no such type."""
    x = jnp.asarray(vectors(features=3), jnp.float32)
    y, _ = transform(x, {}, epsilon=EPSILON, dtype=jnp.float64)
    rows, mean, cov, _ = expected(x)
    assert_close(y, rows, tolerances.EXACT)
    stats = {"mean": jnp.float32(mean), "cov": jnp.float32(cov)}
    inferred = infer(x, {}, stats, epsilon=EPSILON, dtype=jnp.float64)
    matrix = matrix_of(np.float64(stats["cov"][0]), "zca", EPSILON)
    fixed = (np.float64(x) - np.float64(stats["mean"])) @ matrix
    assert_close(inferred, fixed, tolerances.EXACT)


def test_one_feature_a_group_is_batch_normalization():
    x = jnp.asarray(vectors(), jnp.float32)
    params = {"scale": jnp.arange(1.0, 7), "bias": jnp.arange(6.0)}
    for method in ("zca", "pca"):
        y, _ = transform(x, params, groups=6, method=method)
        normalized, _ = normalize(x, params, epsilon=EPSILON)
        assert_close(y, np.float64(normalized), {"rtol": 1e-5, "atol": 1e-5})


def test_groups_leave_what_lies_between_them():
    y, _ = transform(jnp.asarray(vectors(), jnp.float32), {}, groups=2, epsilon=1e-6)
    cov = np.cov(np.float64(y).T, bias=True)
    assert_close(cov[:3, :3], np.eye(3), {"rtol": 0, "atol": 1e-4})
    assert_close(cov[3:, 3:], np.eye(3), {"rtol": 0, "atol": 1e-4})
    assert np.abs(cov[:3, 3:]).max() > 0.1


def test_zca_is_the_nearest_and_keeps_the_axes(x64):
    """Every whitening is ZCA, turned. None is nearer to x, and features stay themselves."""
    x = vectors(features=4)
    centred = x - x.mean(0)
    zca = np.asarray(transform(jnp.asarray(x), {}, epsilon=1e-12)[0])
    pca = np.asarray(transform(jnp.asarray(x), {}, epsilon=1e-12, method="pca")[0])
    nearest = np.sum((zca - centred) ** 2)
    rng = np.random.default_rng(1)
    turns = [np.linalg.qr(rng.normal(size=(4, 4)))[0] for _ in range(100)]
    others = [np.sum((zca @ turn - centred) ** 2) for turn in turns]
    assert nearest < min(others)
    assert nearest < np.sum((pca - centred) ** 2)
    shared = zca.T @ centred  # symmetric and positive: of no turned one
    assert_close(shared, shared.T, tolerances.EXACT)
    assert np.linalg.eigvalsh(shared).min() > 0


def test_whitening_twice_is_whitening_once(x64):
    once, _ = transform(jnp.asarray(vectors(spread=0.1)), {}, epsilon=1e-13)
    twice, _ = transform(once, {}, epsilon=1e-13)
    assert_close(twice, once, {"rtol": 0, "atol": 1e-9})


@pytest.mark.parametrize("offset", [1e3, 1e5])
def test_far_from_zero(offset):
    """The covariance by E[xx] - E[x]E[x] would be off by 1e3 at 1e5; a rounded mean, by 4e-3."""
    x = jnp.asarray(offset + vectors(900), jnp.float32)  # squares sum to < 2^10: exactly
    y, batch = transform(x, {}, epsilon=EPSILON)
    rows, mean, cov, _ = expected(x)
    assert_close(batch.mean, mean, {"rtol": 2.0**-23, "atol": 0})
    assert_close(batch.cov, cov, {"rtol": 0, "atol": 2e-6})
    assert_close(y, rows, CLOSE["float32"])


@pytest.mark.parametrize("count", [2, 5])
def test_fewer_vectors_than_features(count):
    """Epsilon makes it defined: y spans what the batch spans, and nothing is magnified."""
    x = jnp.asarray(vectors(count, 12), jnp.float32)

    @jax.jit
    def both(x):
        y, vjp = jax.vjp(lambda x: whitening_transform(x, {})[0], x)
        return y, vjp(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))[0]

    y, dx = both(x)
    assert_close(y, expected(x)[0], {"rtol": 1e-4, "atol": 1e-4})
    assert np.linalg.matrix_rank(np.float64(y), tol=1e-2) == count - 1
    assert np.abs(dx).max() < 1 / np.sqrt(EPSILON)


@pytest.mark.parametrize("method", ["zca", "pca"])
def test_eigenvalues_that_rounding_made_negative(method):
    """Three dimensions in twelve, of variance 1e6: zero comes out as -0.1 or so, beyond epsilon."""
    mixing = np.random.default_rng(1).normal(size=(3, 12))
    x = jnp.asarray(1e3 * vectors()[:, :3] @ mixing, jnp.float32)
    y, _ = transform(x, {}, method=method)
    assert np.isfinite(y).all()
    assert np.linalg.eigvalsh(jax.jit(batch_covariance)(x).cov)[0, 0] < -EPSILON
    if method == "zca":
        dx = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(transform(x, {})[0]))))(x)
        assert np.isfinite(dx).all()


@pytest.mark.parametrize("value", [0.0, 1000.1])
def test_a_constant_batch_gives_bias(value):
    y, stats = train(
        jnp.full((9, 3), value, jnp.float32),
        {"bias": jnp.array([0.5, -3.0, 2.0])},
        init_whitening_stats(3),
        decay=0.0,
    )
    assert_close(y, np.tile([0.5, -3.0, 2.0], (9, 1)), {"rtol": 0, "atol": 1e-5})
    assert_close(stats["cov"], np.zeros((1, 3, 3)), {"rtol": 0, "atol": 1e-9})


@pytest.mark.parametrize("value", [jnp.nan, 100.0])
def test_an_empty_mask_keeps_the_statistics_and_gives_bias(value):
    """Red for 100 / sqrt(epsilon)."""
    x = jnp.full((8, 3), value)
    stats = init_whitening_stats(3, averaging="ema_debiased")
    y, new = train(x, {}, stats, mask=jnp.zeros((8, 1), bool), averaging="ema_debiased")
    jax.tree.map(np.testing.assert_array_equal, new, stats)
    np.testing.assert_array_equal(y, 0)


def test_an_unmasked_nan_is_not_hidden():
    x = jnp.asarray(vectors(), jnp.float32).at[0, 0].set(jnp.nan)
    y, stats = train(x, {}, init_whitening_stats(6), mask=jnp.arange(64)[:, None] < 32)
    assert np.isnan(y).all()
    assert np.isnan(stats["mean"][0])


@pytest.mark.parametrize(
    ("averaging", "running_cov"), [("cumulative", "biased"), ("ema", "biased")]
)
def test_statistics_average_covariances(averaging, running_cov):
    batches = [vectors(16, 4, seed=seed) for seed in range(5)]
    stats = init_whitening_stats(4, groups=2, averaging=averaging)
    for x in batches:
        _, stats = train(
            jnp.asarray(x, jnp.float32),
            {},
            stats,
            decay=0.5,
            averaging=averaging,
            running_cov=running_cov,
        )
    covs = np.stack([expected(x, groups=2)[2] for x in batches])
    weights = np.full(5, 0.2) if averaging == "cumulative" else 0.5 ** np.arange(5, 0, -1)
    start = 0 if averaging == "cumulative" else 0.5**5 * np.eye(2)
    assert_close(stats["cov"], start + np.tensordot(weights, covs, 1), {"rtol": 1e-5, "atol": 1e-6})
    assert ("count" in stats) == (averaging == "cumulative")


def test_averaged_covariances_whiten_the_population_and_averaged_matrices_do_not():
    """This is why the statistics hold covariances. Batches of 24, 16 features."""
    x = vectors(1000 * 24 + 20000, 16, spread=0.3)
    batches, fresh = jnp.asarray(x[:24000].reshape(1000, 24, 16), jnp.float32), x[24000:]

    def visit(stats, x):
        _, stats = whiten_batch(x, {}, stats, averaging="cumulative")
        return stats, whitening_matrix(batch_covariance(x).cov[0])

    stats = init_whitening_stats(16, averaging="cumulative")
    stats, matrices = jax.jit(lambda stats, xs: jax.lax.scan(visit, stats, xs))(stats, batches)
    by_covariance = infer(jnp.asarray(fresh, jnp.float32), {}, stats)
    by_matrix = (fresh - np.asarray(stats["mean"])) @ np.asarray(matrices, np.float64).mean(0)
    variances = [np.linalg.eigvalsh(np.cov(np.float64(y).T)) for y in (by_covariance, by_matrix)]
    assert variances[0].min() > 0.85
    assert variances[0].max() < 1.15
    assert variances[1].mean() > 2


def test_inference_takes_a_single_vector():
    stats = init_whitening_stats(6) | {"cov": jnp.cov(vectors().T).astype(jnp.float32)[None]}
    x = jnp.asarray(vectors(), jnp.float32)
    assert_close(infer(x[:1], {}, stats), infer(x, {}, stats)[:1], {"rtol": 1e-6, "atol": 1e-6})


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_dtype_is_that_of_the_output_alone(dtype):
    """The covariance of bfloat16 vectors is that of their values, not rounded once more."""
    x = jnp.asarray(vectors(), jnp.bfloat16)
    y, batch = transform(x, {}, dtype=dtype)
    assert y.dtype == dtype
    assert batch.cov.dtype == jnp.float32
    rows, _, cov, _ = expected(x.astype(jnp.float32))
    assert_close(y, rows, {"rtol": float(jnp.finfo(dtype).eps), "atol": 1e-5})
    assert_close(batch.cov, cov, {"rtol": 1e-5, "atol": 1e-6})


def test_statistics_are_float32_at_least():
    """Averages of narrower types stick."""
    stats = init_whitening_stats(6, dtype=jnp.bfloat16, averaging="cumulative")
    assert stats["mean"].dtype == stats["cov"].dtype == jnp.float32
    _, new = train(jnp.asarray(vectors(), jnp.float32), {}, stats, averaging="cumulative")
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, stats)
    assert jax.tree.map(lambda leaf: leaf.dtype, new) == jax.tree.map(
        lambda leaf: leaf.dtype, stats
    )


@pytest.mark.parametrize("method", ["zca", "pca"])
def test_vmap_is_a_loop(method):
    x = jnp.stack([jnp.asarray(vectors(seed=seed), jnp.float32) for seed in range(3)])
    together, _ = jax.jit(jax.vmap(lambda x: transform(x, {}, method=method)))(x)
    alone = [np.float64(transform(one, {}, method=method)[0]) for one in x]
    assert_close(together, np.stack(alone), CLOSE["float32"])


def test_products_are_not_rounded_on_accelerators():
    """Each asks for the highest precision: the default is bfloat16 on TPU and TF32 on GPU."""

    def loss(x):
        return jnp.sum(jnp.sin(whitening_transform(x, {})[0]))

    program = jax.jit(jax.grad(loss)).lower(jnp.zeros((8, 4))).as_text()
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert len(products) >= 8
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


@pytest.mark.parametrize("groups", [1, 8])
def test_its_price_is_the_documented_one(groups):
    """4NCc operations and little else, besides the eigendecomposition, which is not counted."""
    count, features = 2048, 64
    x = jax.ShapeDtypeStruct((count, features), jnp.float32)

    def operations(f):
        return jax.jit(f).lower(x).cost_analysis()["flops"]

    whitening = operations(lambda x: whitening_transform(x, {}, groups=groups)[0])
    batch_norm = operations(lambda x: bnjax.batch_transform(x, {})[0])
    width = features // groups
    products = 4 * count * features * width
    root = 11 * features * width**2
    assert products < whitening < products + root + 16 * count * features
    assert 4 * count * features < batch_norm < 16 * count * features


def test_gradient_descent_on_correlated_inputs():
    """Least squares, on eight features of which any two correlate by 0.98, on different scales.

    Behind batch normalization the Hessian is the correlation matrix, of condition 410; at the best
    fixed step, a loss of 1e-6 of the first takes 1382 steps, as its spectrum says (tested to 2 %).
    Behind whitening the Hessian is one, and one step is enough.
    """
    rng = np.random.default_rng(0)
    common = rng.normal(size=(4096, 1))
    x = np.sqrt(0.98) * common + np.sqrt(0.02) * rng.normal(size=(4096, 8))
    x = jnp.asarray(x * np.geomspace(1, 10, 8) + 3, jnp.float32)
    target = x @ jnp.asarray(rng.normal(size=8) / np.geomspace(1, 10, 8), jnp.float32)
    target -= target.mean()

    def steps(features):
        """Gradient descent at the best fixed step; also what theory says."""
        rows = np.float64(features)
        values, axes = np.linalg.eigh(rows.T @ rows / len(rows))
        rate = 2 / (values[0] + values[-1])
        ahead = (axes.T @ (rows.T @ np.float64(target) / len(rows)) / values) ** 2 * values

        def loss(weights):
            return jnp.mean((features @ weights - target) ** 2)

        goal = 1e-6 * loss(jnp.zeros(8))

        def step(state):
            weights, count = state
            return weights - rate / 2 * jax.grad(loss)(weights), count + 1

        start = (jnp.zeros(8), 0)
        descend = jax.jit(
            lambda start: jax.lax.while_loop(
                lambda s: (loss(s[0]) > goal) & (s[1] < 5000), step, start
            )
        )
        predicted = next(
            t for t in range(5000) if ahead @ (1 - rate * values) ** (2 * t) <= 1e-6 * ahead.sum()
        )
        return int(descend(start)[1]), predicted

    whitened, stats = train(
        x, {}, init_whitening_stats(8), epsilon=1e-6, decay=0.0, running_cov="biased"
    )
    normalized, _ = normalize(x, {})
    slow, slow_predicted = steps(normalized)
    fast, fast_predicted = steps(whitened)
    assert fast == fast_predicted == 1
    assert abs(slow_predicted - 1382) <= 20
    assert abs(slow - slow_predicted) <= 0.02 * slow_predicted
    again = infer(x, {}, stats, epsilon=1e-6)  # and inference sees what training saw
    assert_close(again, np.float64(whitened), {"rtol": 0, "atol": 1e-3})


def test_the_root_of_a_matrix_alone(x64):
    matrix = np.cov(vectors().T)
    root = jax.jit(inverse_sqrt)(jnp.asarray(matrix))
    assert_close(root @ root @ matrix, np.eye(6), {"rtol": 0, "atol": 1e-12})
    np.testing.assert_array_equal(jax.jit(inverse_sqrt)(4 * jnp.eye(3)), np.eye(3) / 2)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: whiten_batch(x, {}, init_whitening_stats(3)),
        lambda x: whiten_population(x, {}, init_whitening_stats(3)),
        lambda x: whitening_transform(x, {}),
        lambda x: batch_covariance(x),
    ],
)
def test_no_features_are_refused(call):
    """Red for ZeroDivisionError."""
    with pytest.raises(ValueError, match=r"x must have one feature or more, got shape \(4, 0\)"):
        call(jnp.ones((4, 0)))
