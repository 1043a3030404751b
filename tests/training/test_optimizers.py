"""Optimizers against loops in NumPy float64 over the same gradients."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tolerances import assert_trees_close

from bnjax.training.optimizers import (
    ExponentialDecay,
    make_optimizer,
    momentum_sgd,
    rmsprop,
    sgd,
)
from bnjax.training.roles import parameter_roles

STEPS = 7
RATE = 0.3
SCHEDULE = ExponentialDecay(0.8, every=3, staircase=True)
CLOSE = {"rtol": 2e-5, "atol": 2e-6}  # float32, seven updates of size 0.3; a wrong rule: 1e-2

PARAMS = {
    "dense": {"kernel": (3, 4), "bias": (4,)},
    "norm": {"scale": (4,), "bias": (4,)},
}


def draw(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: rng.normal(size=shape).astype(dtype),
        PARAMS,
        is_leaf=lambda x: type(x) is tuple,
    )


def gradients():
    """Of growing size, so that what clips does not clip at first."""
    return [
        jax.tree.map(lambda leaf, size=(step + 1) / 3: leaf * np.float32(size), draw(step))
        for step in range(STEPS)
    ]


def run(tx, params=None, grads=None):
    """The parameters after all updates, compiled as one."""
    params = jax.tree.map(jnp.asarray, draw(100) if params is None else params)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(grads or gradients()))

    @jax.jit
    def train(params, stacked):
        def step(carry, gradient):
            params, state = carry
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), stacked)
        return params

    return train(params, stacked)


def loop(rule, params=None, grads=None):
    """`rule(state, gradient, weights, rate) -> (state, step)` in float64, leaf by leaf."""
    params = draw(100) if params is None else params
    flat, structure = jax.tree.flatten(params)
    grads = [jax.tree.leaves(gradient) for gradient in grads or gradients()]
    results = []
    for i, w in enumerate(flat):
        w, state = np.float64(w), None
        for step, gradient in enumerate(grads):
            rate = RATE * 0.8 ** (step // 3)
            state, change = rule(state, np.float64(gradient[i]), w, rate)
            w = w - change
        results.append(w)
    return jax.tree.unflatten(structure, results)


def momentum_rule(m, g, w, rate, l2=0.0):
    """The rate outside of the momentum."""
    m = g + l2 * w + (0 if m is None else 0.9 * m)
    return m, rate * m


def nesterov_rule(m, g, w, rate):
    m = g + (0 if m is None else 0.9 * m)
    return m, rate * (g + 0.9 * m)


def rmsprop_rule(state, g, w, rate):
    """TensorFlow's: from one; epsilon inside the root; the rate inside of the momentum."""
    v, m = (np.ones_like(g), np.zeros_like(g)) if state is None else state
    v = v + (g**2 - v) * (1 - 0.9)
    m = 0.9 * m + rate * g / np.sqrt(v + 1.0)
    return (v, m), m


@pytest.mark.parametrize(
    ("tx", "rule"),
    [
        (momentum_sgd(RATE, schedule=SCHEDULE), momentum_rule),
        (momentum_sgd(RATE, schedule=SCHEDULE, nesterov=True), nesterov_rule),
        (rmsprop(RATE, schedule=SCHEDULE), rmsprop_rule),
    ],
    ids=["momentum", "nesterov", "rmsprop"],
)
def test_rules_equal_float64(tx, rule):
    """Red for an accumulator from zero, another place of epsilon, rate or momentum."""
    assert_trees_close(run(tx), loop(rule), CLOSE)


@pytest.mark.parametrize("rule", [momentum_sgd, rmsprop])
def test_learning_rates_share_a_program(rule):
    """The first one is data: red where it is a constant of the update."""
    tx, other = rule(RATE, schedule=SCHEDULE), rule(0.0, schedule=SCHEDULE)
    params, gradient = draw(100), draw(0)
    updates, state = tx.update(gradient, tx.init(params), params)
    swapped, swapped_state = other.update(gradient, tx.init(params), params)
    assert_trees_close(swapped, updates, {"rtol": 0, "atol": 0})
    assert jax.tree.structure(swapped_state) == jax.tree.structure(state)
    for before, after in zip(jax.tree.leaves(tx.init(params)), jax.tree.leaves(state), strict=True):
        assert (jnp.asarray(before).dtype, jnp.shape(before)) == (after.dtype, after.shape)


@pytest.mark.parametrize("rule", [sgd, momentum_sgd, rmsprop])
def test_bfloat16_parameters_stay_what_they_are(rule):
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), draw(100))
    grads = [jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), draw(0))]
    after = run(make_optimizer(rule(RATE), l2=0.1, clip_norm=1.0), params, grads)
    assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("staircase", [True, False])
@pytest.mark.parametrize("every", [320, 8 * 40 / 6])
def test_schedule_equals_float64(staircase, every):
    """Before, at and after the ends of periods, and far into the paper's 31e6 steps."""
    schedule = ExponentialDecay(0.96, every=every, staircase=staircase)
    counts = [
        0,
        1,
        319,
        320,
        321,
        5000,
        *(math.ceil(k * every) + i for k in (1, 7) for i in (-1, 1)),
    ]
    periods = np.array(counts) / every
    expected = 0.96 ** (np.floor(periods) if staircase else periods)
    actual = jax.jit(jax.vmap(schedule))(jnp.array(counts, jnp.int32))
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=2e-5)


def test_a_staircase_is_exact_at_any_count():
    """Red where the count is rounded to float32, which knows no odd numbers above 2^24."""
    schedule = ExponentialDecay(0.5, every=30_000_001, staircase=True)
    counts = jnp.array([30_000_000, 30_000_001], jnp.int32)
    np.testing.assert_array_equal(jax.vmap(schedule)(counts), [1.0, 0.5])


def test_l2_is_in_the_gradient_of_kernels_alone():
    """Before momentum. Red for decoupled decay, twice the weight, or any other parameter."""
    tx = make_optimizer(momentum_sgd(RATE, schedule=SCHEDULE), l2=0.05)
    expected = loop(momentum_rule)
    penalized = loop(lambda m, g, w, rate: momentum_rule(m, g, w, rate, l2=0.05))
    expected["dense"]["kernel"] = penalized["dense"]["kernel"]
    assert_trees_close(run(tx), expected, CLOSE)


def test_l2_is_the_gradient_of_half_the_squared_norm():
    params = draw(100)
    zero = jax.tree.map(jnp.zeros_like, params)
    tx = make_optimizer(sgd(1.0), l2=0.05, decay=("kernel", "scale"))
    updates, _ = tx.update(zero, tx.init(params), params)

    def penalty(params):
        return (
            0.05
            / 2
            * (jnp.sum(params["dense"]["kernel"] ** 2) + jnp.sum(params["norm"]["scale"] ** 2))
        )

    assert_trees_close(updates, jax.tree.map(jnp.negative, jax.grad(penalty)(params)), CLOSE)


def clipped(tree, most):
    norm = np.sqrt(sum((np.float64(leaf) ** 2).sum() for leaf in jax.tree.leaves(tree)))
    return jax.tree.map(lambda leaf: leaf * min(1, most / norm), tree), norm


def test_clipping_is_by_the_norm_of_everything():
    """L2 included, for it is a part of the loss."""
    params = draw(100)
    grads = gradients()
    norms = []
    expected = []
    kernel = params["dense"]["kernel"].astype(np.float64)
    for gradient in grads:
        whole = jax.tree.map(np.float64, gradient)
        whole["dense"]["kernel"] = whole["dense"]["kernel"] + 0.5 * kernel
        whole, norm = clipped(whole, 4.0)
        norms.append(norm)
        expected.append(whole)
    assert min(norms) < 4 < max(norms)

    tx = make_optimizer(sgd(1.0), l2=0.5, clip_norm=4.0)
    state = tx.init(params)
    for gradient, wanted in zip(grads, expected, strict=True):
        updates, state = tx.update(gradient, state, params)
        assert_trees_close(updates, jax.tree.map(np.negative, wanted), CLOSE)


@pytest.mark.parametrize("rule", [momentum_sgd, rmsprop])
def test_what_is_frozen_stays_bitwise(rule):
    """It counts for no norm: the rest moves as if it were alone. Red if L2 or clipping sees it."""
    options = {"l2": 0.1, "decay": ("kernel", "scale"), "clip_norm": 1.0}
    train = ("scale", "normalization bias")
    after = run(make_optimizer(rule(RATE), train=train, **options))
    before = draw(100)
    assert_trees_close(after["dense"], before["dense"], {"rtol": 0, "atol": 0})

    alone = {"norm": before["norm"]}
    grads = [{"norm": gradient["norm"]} for gradient in gradients()]
    assert_trees_close(
        after["norm"], run(make_optimizer(rule(RATE), **options), alone, grads)["norm"], CLOSE
    )
    assert np.abs(after["norm"]["scale"] - before["norm"]["scale"]).min() > 1e-3


def test_what_is_frozen_may_have_a_nan_gradient_and_has_no_state():
    params = jax.tree.map(jnp.asarray, draw(100))
    gradient = jax.tree.map(jnp.asarray, draw(0))
    gradient["dense"]["kernel"] = jnp.full((3, 4), jnp.nan)
    frozen = make_optimizer(rmsprop(RATE), train=("bias", "scale"), clip_norm=1.0)
    state = frozen.init(params)
    updates, _ = frozen.update(gradient, state, params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))
    assert (updates["dense"]["kernel"] == 0).all()
    assert sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim) == 2 * (4 + 4)


def test_nnx_parameters():
    """Masks fit an `nnx.State`: the kernel alone decays, the bias alone is frozen."""
    params = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    before = nnx.to_pure_dict(params)
    tx = make_optimizer(sgd(1.0), l2=0.1, train=("kernel",))
    gradient = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(gradient, tx.init(params), params)
    updates = nnx.to_pure_dict(updates)
    assert_trees_close(
        updates, {"kernel": -(1 + 0.1 * before["kernel"]), "bias": jnp.zeros(3)}, CLOSE
    )


def test_other_names_have_the_roles_that_are_given():
    """Red where L2 or what is frozen asks `parameter_roles`, which knows no coefficient."""
    params = {"pool": {"coefficient": jnp.ones(4), "bias": jnp.ones(4)}}
    roles = partial(parameter_roles, named={"coefficient": "kernel"})
    tx = make_optimizer(sgd(1.0), l2=0.05, train=("kernel",), roles=roles)
    updates, _ = tx.update(params, tx.init(params), params)
    assert_trees_close(
        updates, {"pool": {"coefficient": jnp.full(4, -1.05), "bias": jnp.zeros(4)}}, CLOSE
    )


def test_unknown_parameters_are_refused_at_init():
    tx = make_optimizer(rmsprop(RATE), l2=1e-4)
    with pytest.raises(ValueError, match=r"\['embedding'\] .* is unknown"):
        tx.init({"embed": {"embedding": jnp.zeros((3, 4))}})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExponentialDecay(4.0, 8, True), r"factor must be in \(0, 1\], got 4.0: .* 0.96"),
        (lambda: ExponentialDecay(0.96, 0, True), r"every must be .* > 0, got 0"),
        (lambda: ExponentialDecay(0.96, float("inf"), True), r"every must be .*finite.*, got inf"),
        (lambda: ExponentialDecay(0.96, float("nan"), True), r"every must be .*, got nan"),
        (lambda: momentum_sgd(0.1, momentum=1.0), r"momentum must be in \[0, 1\), got 1.0"),
        (lambda: rmsprop(0.1, decay=-0.1), r"decay must be in \[0, 1\), got -0.1"),
        (lambda: rmsprop(0.1, epsilon=0.0), r"epsilon must be > 0, got 0.0"),
        (lambda: ExponentialDecay("0.9", 8, True), r"factor must be a number, got '0.9'"),
        (lambda: ExponentialDecay(0.9, None, True), r"every must be a number, got None"),
        (lambda: momentum_sgd(0.1, momentum="0.9"), r"momentum must be a number, got '0.9'"),
        (lambda: momentum_sgd(0.1, momentum=False), r"momentum must be a number, got False"),
        (lambda: rmsprop(0.1, epsilon="1"), r"epsilon must be a number, got '1'"),
        (lambda: make_optimizer(sgd(0.1), l2=(1,)), r"l2 must be a number, got \(1,\)"),
        (lambda: make_optimizer(sgd(0.1), clip_norm="1"), r"clip_norm must be a number, got '1'"),
        (lambda: make_optimizer(sgd(0.1), l2=-1.0), r"l2 must be >= 0, got -1.0"),
        (lambda: make_optimizer(sgd(0.1), clip_norm=0.0), r"clip_norm must be > 0, .* got 0.0"),
        (lambda: make_optimizer(sgd(0.1), train=("gamma",)), r"train must hold .*, got 'gamma'"),
        (lambda: make_optimizer(sgd(0.1), decay="kernel"), r"decay must hold .*, got 'kernel'"),
    ],
)
def test_bad_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("every", [2**31 - 1, 2**31, 1e10, 1e300])
def test_a_period_longer_than_int32_counts(every):
    """Red where it is made an int32: OverflowError at the first update."""
    schedule = jax.jit(ExponentialDecay(0.96, every=every, staircase=True))
    assert [float(schedule(jnp.int32(updates))) for updates in (0, 1, 10**9)] == [1, 1, 1]
