"""One training step against a NumPy float64 step; many steps in one dispatch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from marks import slow
from tolerances import assert_bitwise, assert_trees_close

from bnjax.linen import BatchNorm
from bnjax.models import MLP
from bnjax.training.accumulation import make_accumulating_step, split_batch
from bnjax.training.objectives import Metrics
from bnjax.training.optimizers import make_optimizer, momentum_sgd, sgd
from bnjax.training.roles import parameter_roles
from bnjax.training.state import TrainState
from bnjax.training.steps import make_eval_step, make_loss, make_train_step, scan_steps

DECAY, EPSILON, RATE = 0.9, 1e-3, 0.5
NORM = partial(BatchNorm, momentum=DECAY, epsilon=EPSILON, running_var="unbiased")
UNITS = (6, 5, 3)  # inputs, hidden, classes
CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # float32 against float64, sums of at most 8 terms


def make(norm):
    """A one-hidden-layer network: its train step, inference function and first state."""
    model = MLP(hidden=UNITS[1:2], classes=UNITS[2], norm=norm)

    def train_apply(variables, images):
        logits, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return logits, updates.get("batch_stats", {})

    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, UNITS[0])), train=False)
    )
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.2, 1, leaf.shape), leaf.dtype), variables
    )
    params = variables["params"]
    state = TrainState(
        jnp.int32(0), params, variables.get("batch_stats", {}), sgd(RATE).init(params)
    )
    eval_apply = partial(model.apply, train=False)
    return make_train_step(train_apply, sgd(0.0)), eval_apply, state


def make_data(n=24):
    """Images as small whole numbers, which `prepare` scales, and their labels."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 10, (n, UNITS[0])).astype(np.uint8)
    return images, rng.integers(0, UNITS[2], n).astype(np.int32)


def prepare(images):
    return images.astype(jnp.float32) / 4 - 1


def float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def numpy_step(params, stats, x, labels, *, normalized):
    """Loss sum, new parameters and new statistics of one step, by the chain rule in float64."""
    w1, w2, b2 = params["dense1"]["kernel"], params["logits"]["kernel"], params["logits"]["bias"]
    m = len(x)
    u = x @ w1
    if normalized:
        layer = params["hidden1"]["norm"]
        mean, var = u.mean(0), u.var(0)
        xhat = (u - mean) / np.sqrt(var + EPSILON)
        s = xhat * layer["scale"] + layer["bias"]
    else:
        s = u + params["dense1"]["bias"]
    z = 1 / (1 + np.exp(-s))
    logits = z @ w2 + b2
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    loss = -np.log(probabilities[np.arange(m), labels]).sum()

    dlogits = (probabilities - np.eye(UNITS[2])[labels]) / m
    gradient = {"logits": {"kernel": z.T @ dlogits, "bias": dlogits.sum(0)}}
    ds = dlogits @ w2.T * z * (1 - z)
    if normalized:
        dxhat = ds * layer["scale"]
        du = (dxhat - dxhat.mean(0) - xhat * (dxhat * xhat).mean(0)) / np.sqrt(var + EPSILON)
        gradient["hidden1"] = {"norm": {"scale": (ds * xhat).sum(0), "bias": ds.sum(0)}}
        gradient["dense1"] = {"kernel": x.T @ du}
        old = stats["hidden1"]["norm"]
        new = {"mean": mean, "var": var * m / (m - 1)}
        stats = {
            "hidden1": {
                "norm": {key: DECAY * old[key] + (1 - DECAY) * new[key] for key in new},
            }
        }
    else:
        gradient["dense1"] = {"kernel": x.T @ ds, "bias": ds.sum(0)}
    params = jax.tree.map(lambda p, g: p - RATE * g, params, gradient)
    return loss, params, stats, (logits.argmax(1) == labels).sum()


@pytest.mark.parametrize("norm", [None, NORM], ids=["plain", "norm"])
def test_three_steps_equal_float64(norm):
    """Red for a summed loss, a stale gradient, statistics of the wrong batch or decay."""
    train_step, _, state = make(norm)
    step = jax.jit(train_step)
    images, labels = make_data()
    params, stats = float64(state.params), float64(state.batch_stats)
    for i, chosen in enumerate(np.arange(24).reshape(3, 8)):
        x = np.asarray(prepare(images[chosen]), np.float64)
        loss, params, stats, correct = numpy_step(
            params, stats, x, labels[chosen], normalized=norm is not None
        )
        state, metrics = step(state, (jnp.asarray(x, jnp.float32), jnp.asarray(labels[chosen])))
        np.testing.assert_allclose(metrics.loss, loss, **CLOSE)
        assert (metrics.correct, metrics.examples) == (correct, 8)
        assert_trees_close(state.params, params, CLOSE)
        assert_trees_close(state.batch_stats, stats, CLOSE)
        assert state.step == i + 1


def test_the_learning_rate_in_use_is_the_states():
    train_step, _, state = make(None)
    images, labels = make_data(8)
    batch = prepare(jnp.asarray(images)), jnp.asarray(labels)
    still = state._replace(opt_state=sgd(0.0).init(state.params))
    after, _ = jax.jit(train_step)(still, batch)
    assert_bitwise(after.params, state.params)


def choosing(train_step, images, labels):
    """A step on the examples that indices choose."""
    return lambda state, chosen: train_step(state, (prepare(images[chosen]), labels[chosen]))


@pytest.mark.parametrize("steps", [slow(1), 4])
def test_one_dispatch_equals_single_steps(steps):
    """Indices choose the examples of each step; metrics are the sums over all of them."""
    train_step, _, state = make(NORM)
    images, labels = map(jnp.asarray, make_data())
    indices = jnp.asarray(np.random.default_rng(2).permutation(24).reshape(steps, -1), jnp.int32)
    step = choosing(train_step, images, labels)
    scanned, sums = jax.jit(scan_steps(step))(state, indices)

    step = jax.jit(step)
    total = Metrics.zero()
    for chosen in indices:
        state, metrics = step(state, chosen)
        total = jax.tree.map(jnp.add, total, metrics)
    assert scanned.step == steps
    assert (sums.correct, sums.examples) == (total.correct, 24)
    np.testing.assert_allclose(sums.loss, total.loss, rtol=1e-6)
    assert_trees_close(scanned, state, CLOSE)  # one program may fuse otherwise


def test_two_dispatches_equal_one_bitwise():
    """What resuming between two dispatches rests on."""
    train_step, _, state = make(NORM)
    images, labels = map(jnp.asarray, make_data())
    run = jax.jit(scan_steps(choosing(train_step, images, labels)))
    indices = jnp.arange(24, dtype=jnp.int32).reshape(4, 6)
    whole, _ = run(state, indices)
    half, _ = run(state, indices[:2])
    both, _ = run(half, indices[2:])
    assert_bitwise(both, whole)


def test_a_second_dispatch_is_not_traced_again():
    """Red if a state comes back with another structure, dtype or weak type than it went in."""
    train_step, _, state = make(NORM)
    traces = []

    def counted(state, batch):
        traces.append(1)
        return train_step(state, batch)

    images, labels = map(jnp.asarray, make_data())
    run = jax.jit(scan_steps(choosing(counted, images, labels)))
    indices = jnp.arange(24, dtype=jnp.int32).reshape(4, 6)
    state, _ = run(state, indices)
    once = len(traces)
    for _ in range(3):
        state, _ = run(state, indices)
    assert len(traces) == once
    assert run._cache_size() == 1


def test_a_step_changes_nothing_it_is_given():
    train_step, _, state = make(NORM)
    before = jax.tree.map(np.array, state)
    images, labels = map(jnp.asarray, make_data(8))
    jax.jit(train_step)(state, (prepare(images), labels))
    assert_bitwise(state, before)


def test_evaluation_sums_over_batches_and_skips_padding():
    """Against float64 on the running statistics. Red if padding counts or a batch is lost."""
    from bnjax.data.arrays import eval_batches

    _, eval_apply, state = make(NORM)
    images, labels = make_data(11)
    variables = state.variables
    evaluate = jax.jit(make_eval_step(eval_apply, prepare))
    metrics = evaluate(variables, eval_batches(images, labels, 4))

    params, stats = float64(state.params), float64(state.batch_stats)["hidden1"]["norm"]
    u = np.asarray(prepare(images), np.float64) @ params["dense1"]["kernel"]
    norm = params["hidden1"]["norm"]
    s = (u - stats["mean"]) / np.sqrt(stats["var"] + EPSILON) * norm["scale"] + norm["bias"]
    logits = 1 / (1 + np.exp(-s)) @ params["logits"]["kernel"] + params["logits"]["bias"]
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(
        metrics.loss, -log_probabilities[np.arange(11), labels].sum(), rtol=1e-5
    )
    assert metrics.correct == (logits.argmax(1) == labels).sum()
    assert metrics.examples == 11


@pytest.mark.parametrize(
    ("batch", "got"),
    [
        ({"image": jnp.ones((4, 6)), "label": jnp.zeros(4, int)}, "a dict of image, label"),
        ((jnp.ones((4, 6)),), "a tuple of 1"),
        ([jnp.ones((4, 6))] * 4, "a list of 4"),
        (jnp.ones((2, 6)), "a .*Tracer"),
    ],
)
def test_a_batch_of_another_form_is_refused(batch, got):
    """JAX said that a string is no array, or Python that there is nothing to unpack."""
    step, _, state = make(None)
    said = rf"batch must be \(images, labels\) or .* got {got}: .*batch\['image'\]"
    with pytest.raises(ValueError, match=said):
        jax.eval_shape(step, state, batch)


def test_test_sets_of_another_form_are_refused():
    evaluate = make_eval_step(lambda variables, images: images, prepare)
    with pytest.raises(ValueError, match=r"batches must be EvalBatches, got tuple: .*eval_b"):
        evaluate({}, make_data())


def test_any_optax_transformation_serves():
    """Parameters reach the optimizer: weight decay alone moves them by their own size."""
    tx = optax.chain(optax.add_decayed_weights(0.1), optax.scale(-1.0))
    zero = np.zeros((2, 3), np.float32)
    step = make_train_step(lambda variables, images: (images * 0 + zero, {}), tx)
    params = {"w": jnp.array([2.0, -4.0])}
    state = TrainState(jnp.int32(0), params, {}, tx.init(params))
    state, _ = jax.jit(step)(state, (zero, jnp.zeros(2, jnp.int32)))
    np.testing.assert_allclose(state.params["w"], [1.8, -3.6], rtol=1e-6)


def linear(variables, x):
    """Real logits of a complex kernel."""
    return (x @ variables["params"]["w"]).real, {}


def as_real(z):
    """Real and imaginary parts, as a network without complex numbers has them."""
    return {"re": np.real(z), "im": np.imag(z)}


@pytest.mark.parametrize("micro_batches", [None, 2])
def test_complex_parameters_move_as_their_two_parts(micro_batches):
    """JAX's gradient is the conjugate of the way up: red if imaginary parts climb."""
    rng = np.random.default_rng(0)
    w, x = (rng.normal(size=(*n, 2)) @ np.array([1, 1j]) for n in ((4, 3), (8, 4)))
    batch = (jnp.asarray(x, jnp.complex64), jnp.asarray(rng.integers(0, 3, 8)))
    tx = make_optimizer(
        momentum_sgd(RATE),
        l2=0.1,
        clip_norm=0.5,
        roles=partial(parameter_roles, named={"w": "kernel"}),
    )
    params = {"w": jnp.asarray(w, jnp.complex64)}
    if micro_batches is None:
        step = make_train_step(linear, tx)
    else:
        step = make_accumulating_step(make_loss(linear), tx, statistics="once")
        batch = split_batch(batch, micro_batches)
    step, state = jax.jit(step), TrainState(jnp.int32(0), params, {}, tx.init(params))

    parts, labels = as_real(w), np.asarray(batch[1]).reshape(-1)
    momentum = jax.tree.map(np.zeros_like, parts)
    for _ in range(3):
        logits = x.real @ parts["re"] - x.imag @ parts["im"]
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        p = (p - np.eye(3)[labels]) / 8
        gradient = {"re": x.real.T @ p, "im": -x.imag.T @ p}
        gradient = jax.tree.map(lambda g, part: g + 0.1 * part, gradient, parts)
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        clip = partial(np.multiply, min(1, 0.5 / norm))
        gradient = jax.tree.map(clip, gradient)
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradient)
        parts = jax.tree.map(lambda part, m: part - RATE * m, parts, momentum)
        state, _ = step(state, batch)
    assert_trees_close(as_real(state.params["w"]), parts, CLOSE)


@pytest.mark.parametrize("axis_name", [None, "devices"])
def test_a_batch_of_which_nothing_counts_moves_nothing(axis_name):
    """As on a host whose share is all padding; 0 / 0 would end the run as diverged."""

    def apply(variables, x):
        return x @ variables["params"]["w"], {}

    def step(state, batch):
        return make_train_step(apply, sgd(RATE), axis_name=axis_name)(state, batch)

    params = {"w": jnp.ones((2, 3))}
    state = TrainState(jnp.int32(0), params, {}, sgd(RATE).init(params))
    batch = (np.ones((4, 2), np.float32), np.zeros(4, np.int32), np.zeros(4, bool))
    if axis_name is not None:
        step = jax.vmap(step, in_axes=(None, 0), axis_name=axis_name)
        batch = jax.tree.map(lambda leaf: leaf[None], batch)
    new, metrics = jax.jit(step)(state, batch)
    np.testing.assert_array_equal(new.params["w"].reshape(2, 3), params["w"])
    assert metrics.examples.sum() == 0
