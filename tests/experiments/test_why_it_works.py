"""Explanations of batch normalization: identities hold within their bounds, observations show."""

import json
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, repeat

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow_but
from matplotlib.figure import Figure

from bnjax.data import in_memory, open_data
from bnjax.linen import BatchNorm
from bnjax.models import MLP
from experiments.why_it_works.along_training import AlongTraining
from experiments.why_it_works.experiment import QUESTIONS, Config
from experiments.why_it_works.gradient_growth import linear_factor, relu_factor
from experiments.why_it_works.layer_jacobians import singular_values, spread_of
from experiments.why_it_works.noise_after import NoisyBatchNorm
from experiments.why_it_works.precise_statistics import average_moments
from experiments.why_it_works.question import float64
from experiments.why_it_works.regularizers import DropoutGain
from experiments.why_it_works.side_by_side import seeds_of

ALONG_TRAINING = tuple(q.name for q in QUESTIONS if isinstance(q, AlongTraining))
GAINS = tuple(q.name for q in QUESTIONS if isinstance(q, DropoutGain))
SMALL = {  # settings with which a question takes a second or two
    "layer_gradient": {},
    "gradient_growth": {"batches": (16,), "depth": 12, "width": 256, "draws": 4},
    "residual_stream": {"depth": 10, "width": 300, "examples": 100, "draws": 6},
    "exponential_rate": {"steps": 40},
    "equilibrium": {"steps": 300, "decay": 0.2, "momentum_decay": 0.15},
    "dropout_before": {"examples": 5_000, "units": 200, "kept": (0.5,)},
    "least_squares": {},
    "rank_collapse": {"depth": 60, "width": 64},
    "edge_of_stability": {},
    "stable_rate": {"depths": (10,), "rates": (0.1, 1.0), "steps": 100},
    "renorm_identity": {},
    "renorm_small_batches": {"networks": 2, "steps": 600, "tests": 1, "widths": (50,)},
    "renorm_sorted_batches": {"networks": 1, "steps": 200, "tests": 1, "widths": (50,)},
    **{name: {"networks": 1, "depth": 3, "steps": 30} for name in ALONG_TRAINING},
    "noise_after": {"networks": 1, "steps": 300, "tests": 1},
    "group_size": {"networks": 1, "groups": (2, 100), "steps": 100, "widths": (50,)},
    "precise_statistics": {"networks": 1, "tests": 10, "widths": (50,)},
    "layer_jacobians": {"networks": 1, "depth": 3, "width": 32, "steps": 30},
    "group_normalization": {"networks": 1, "examples": (2, 32), "steps": 100, "rates": (0.1,)},
    "group_normalization_convolutions": {"networks": 1, "examples": (2, 16), "steps": 20},
    "ghost_batches": {"networks": 1, "steps": 20, "large": 128},
    "scale_bias_alone": {"networks": 1, "steps": 50, "widths": (50, 50)},
    "scale_bias_last": {"networks": 1, "steps": 50, "widths": (50, 50)},
    "random_labels": {"networks": 1, "examples": 50, "steps": 100},
    **{name: {"networks": 1, "steps": 50, "widths": (50,)} for name in GAINS},
}
LOOSER = {
    "equilibrium": 0.15,
    "gradient_growth": 0.05,
    "dropout_before": 0.02,
    "residual_stream": 0.15,
}
"""Bounds of statistical deviations at these sizes, where they are larger than the question's."""
BY_NAME = {question.name: question for question in QUESTIONS}


@pytest.fixture(scope="module")
def data():
    return in_memory(open_data("mnist5k", data_dir=None))


def small(name, **changed):
    return replace(BY_NAME[name], **SMALL[name], **changed)


def answer(name, data, **changed):
    question = small(name, **changed)
    with float64() if question.in_float64 else nullcontext():
        return question.answer(0, data)


def test_each_question_is_tried_here():
    assert set(SMALL) == set(BY_NAME)


FAST = ("gradient_growth", "layer_gradient", "least_squares", "renorm_identity", "residual_stream")
HOLDS = (*(q.name for q in QUESTIONS if q.exact), "edge_of_stability")
SHOWS = (
    *("rank_collapse", "stable_rate", "renorm_small_batches", "renorm_sorted_batches"),
    *("noise_after", "group_normalization"),
)


DIRECTED = (*ALONG_TRAINING, "group_size", "precise_statistics", "layer_jacobians")


def by_claim(name, found):
    """The effect by what else the answer tells: above zero where the claim holds."""
    if name in ALONG_TRAINING and not name.startswith("covariate_shift"):
        # Of one network: its curves are what was measured.
        return np.mean(np.log10(found.curves["without"]) - np.log10(found.curves["with"]))
    more, less = {
        "covariate_shift": ("cosine of the gradients, with", "cosine of the gradients, without"),
        "group_size": ("gap, groups of 2", "gap, groups of 100"),
        "precise_statistics": ("accuracy, precise", "accuracy, running"),
        "layer_jacobians": ("mean |log|, trained, without", "mean |log|, trained, with"),
    }[name.removesuffix("_fast").removesuffix("_slow")]
    return found.numbers[more] - found.numbers[less]


@pytest.mark.parametrize("name", ALONG_TRAINING)
def test_an_effect_is_above_zero_where_the_claim_holds(name):
    """Of made-up measurements. Seen red the other way round, and by logarithms of means."""
    few, many = np.array([[0.1, 10.0]]), np.array([[10.0, 10.0]])
    if name.startswith("covariate_shift"):  # a cosine, which the claim has larger
        assert BY_NAME[name].compared(many, few) == pytest.approx(4.95)
    else:
        assert BY_NAME[name].compared(few, many) == pytest.approx(1)


@dataclass(frozen=True, kw_only=True)
class Normalized(AlongTraining):
    """Measures whether there is normalization."""

    shown = "normalized"

    def measure(self, loss, params, batch):
        return {"normalized": jnp.float32("hidden1" in params)}

    def compared(self, with_norm, without):
        return float(with_norm.mean() - without.mean())


def test_networks_with_normalization_come_first(data):
    """Seen red with the kinds exchanged."""
    question = Normalized(name="normalized", networks=1, depth=1, width=4, steps=1, every=1)
    found = question.answer(0, data)
    assert found.effect == 1
    assert found.curves == {"step": [0], "with": [1], "without": [0]}


TINY = {"networks": 1, "steps": 4}
TINIEST = {
    "group_size": TINY | {"groups": (2, 100), "widths": (4,)},
    "precise_statistics": TINY | {"tests": 2, "batches": 2, "widths": (4,)},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TINIEST)
def test_an_effect_has_the_direction_of_its_claim(name, data):
    """Seen red with each difference the other way round."""
    found = replace(BY_NAME[name], **TINIEST[name]).answer(0, data)
    assert found.effect == pytest.approx(by_claim(name, found))
    assert found.effect != 0


@pytest.mark.parametrize("name", slow_but((*FAST, "rank_collapse"), [*SMALL]))
def test_a_question_is_answered_by_numbers_and_a_panel(name, data):
    """Of what is exact each bound is kept; of SHOWS the effect is there in small, too."""
    found = answer(name, data)
    if name in HOLDS:
        for check in found.checks:
            assert check.deviation <= max(check.bound, LOOSER.get(name, 0) * (check.bound > 1e-6))
    if name in SHOWS:
        assert found.effect > 0
    if name in DIRECTED:
        assert found.effect == pytest.approx(by_claim(name, found), rel=1e-3)  # curves are rounded
        assert found.effect != 0
    assert found.checks or np.isfinite(found.effect)
    assert all(map(np.isfinite, found.numbers.values()))
    axes = Figure().add_subplot()
    small(name).draw(axes, [json.loads(json.dumps(found._asdict()))])
    assert axes.lines


def test_sorted_batches_have_one_class_each(data):
    labels = data.train.labels
    order = replace(BY_NAME["renorm_sorted_batches"], networks=2, steps=30).order(1, labels)
    assert order.shape == (2, 30, 40)
    classes = labels[np.asarray(order)]
    np.testing.assert_array_equal(classes.max(-1), classes.min(-1))
    assert len(np.unique(classes)) == 10


@pytest.mark.slow
def test_an_epsilon_breaks_the_exponential_rate(data):
    """Else the comparison could not see that the loss changes with the length of the weights."""
    found = answer("exponential_rate", data, epsilon=1e-2)
    assert found.numbers["deviation with epsilon 0.01"] > 1e-6


def test_the_growth_of_gradients_tends_to_its_limits():
    """By Yang et al. 2019: pi / (pi - 1) for ReLU and 1 without."""
    np.testing.assert_allclose(relu_factor(10**6), np.pi / (np.pi - 1), rtol=1e-5)
    np.testing.assert_allclose(linear_factor(10**6), 1, rtol=1e-5)


def test_the_growth_of_gradients_is_that_of_single_layers():
    """The expectation itself, by drawing inputs and gradients in NumPy."""
    batch, draws = 6, 400_000
    rng = np.random.default_rng(0)
    h, g = rng.normal(size=(2, draws, batch))
    centred = h - h.mean(1, keepdims=True)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    back = (g - g.mean(1, keepdims=True)) * (unit > 0)
    back -= back.mean(1, keepdims=True) + unit * np.sum(unit * back, 1, keepdims=True)
    positive = np.maximum(unit, 0) * np.sqrt(batch)
    # h's own covariance across the batch comes from the layer below: its diagonal less the rest.
    pair = np.mean(positive[:, 0] * positive[:, 1])
    variance = np.mean(positive[:, 0] ** 2) - pair
    kept = np.mean(np.sum(back**2, 1)) / (batch - 1)
    expected = batch / (variance * (batch - 3)) * kept
    np.testing.assert_allclose(relu_factor(batch), expected, rtol=0.01)  # of so many draws


def test_along_the_gradient_of_a_quadratic_the_landscape_is_its_hessian():
    """Of w' H w / 2: the gradient at w - a g is g - a H g. Seen red with a difference of norms."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 5))
    hessian, w = root @ root.T, rng.normal(size=5)
    question = replace(BY_NAME["loss_range_fast"], rate=0.01)

    def loss(params, batch):
        return params["w"] @ jnp.asarray(hessian) @ params["w"] / 2

    with float64():
        seen = question.measure(loss, {"w": jnp.asarray(w)}, None)
    g = hessian @ w
    lengths = 0.01 * np.array([0, *question.multiples])
    losses = [(w - a * g) @ hessian @ (w - a * g) / 2 for a in lengths]
    bend = np.linalg.norm(hessian @ g)
    expected = {
        "range of the loss": max(losses) - min(losses),
        "change of the gradient": lengths[-1] * bend,
        "change over distance": bend / np.linalg.norm(g),
        "change over the gradient's length": lengths[-1] * bend / np.linalg.norm(g),
    }
    assert seen.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(seen[name], value)


@pytest.mark.slow
def test_covariate_shift_is_that_of_the_layers_below():
    """Of (u' B C v)^2 / 2, three layers. Seen red with the layer's own step among those below."""
    rng = np.random.default_rng(0)
    u, b, c = rng.normal(size=3), rng.normal(size=(3, 4)), rng.normal(size=(4, 2))
    v, rate = rng.normal(size=2), 0.01
    question = replace(BY_NAME["covariate_shift_fast"], depth=2, rate=rate)

    def loss(params, batch):
        layers = [params[name]["kernel"] for name in ("dense1", "dense2", "logits")]
        return jnp.square(layers[0] @ layers[1] @ layers[2] @ jnp.asarray(v)) / 2

    with float64():
        kernels = zip(("dense1", "dense2", "logits"), (u, b, c), strict=True)
        params = {name: {"kernel": jnp.asarray(kernel)} for name, kernel in kernels}
        seen = question.measure(loss, params, None)
    s = u @ b @ c @ v
    later_u, later_b = u - rate * s * b @ c @ v, b - rate * s * np.outer(u, c @ v)
    pull_b, pull_c = later_u @ b @ c @ v, later_u @ later_b @ c @ v
    pairs = [
        (s * np.outer(u, c @ v), pull_b * np.outer(later_u, c @ v)),
        (s * np.outer(u @ b, v), pull_c * np.outer(later_u @ later_b, v)),
    ]
    shifts = [np.linalg.norm(g - other) / np.linalg.norm(g) for g, other in pairs]
    lengths = [np.linalg.norm(g) * np.linalg.norm(other) for g, other in pairs]
    cosines = [np.sum(g * other) / n for (g, other), n in zip(pairs, lengths, strict=True)]
    np.testing.assert_allclose(seen["shift over the gradient's length"], np.mean(shifts))
    np.testing.assert_allclose(seen["cosine of the gradients"], np.mean(cosines))


def test_no_two_seeds_share_a_network():
    assert [*seeds_of(0, 3), *seeds_of(1, 3)] == list(range(6))


@pytest.mark.slow
def test_noise_has_moments_that_each_call_draws():
    layer = NoisyBatchNorm(False, shift=0.5, spread=0.1)
    x = jax.random.normal(jax.random.key(0), (1_000, 200))
    calls = []
    for seed in (1, 2):
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(seed)}
        y, _ = layer.init_with_output(keys, x)
        calls.append(np.asarray(y, np.float64))
    shifts = calls[1].mean(0) - calls[0].mean(0)
    np.testing.assert_allclose(np.sqrt(np.mean(shifts**2)), np.sqrt(2 / 3) * 0.5, rtol=0.15)
    scales = np.sqrt(calls[0].var(0) - 0.1**2 / 3 - 0.1**2)
    assert 0.97 < scales.min() < 1.03
    assert 1.22 < scales.max() < 1.28


def small_network(**settings):
    """A model with normalization, and its variables with scales that are not one."""
    model = MLP((6, 6), norm=partial(BatchNorm, **settings), activation=jax.nn.relu)
    variables = model.init(jax.random.key(0), IMAGES[:2], train=False)
    scale = variables["params"]["hidden1"]["norm"]["scale"]
    scale += jnp.arange(6, dtype=jnp.float32)
    variables["params"]["hidden1"]["norm"]["scale"] = scale
    return model, variables


IMAGES = jax.random.uniform(jax.random.key(1), (40, 3, 3, 1))


def first_layer(variables, images):
    return np.asarray(images, float).reshape(len(images), -1) @ np.asarray(
        variables["params"]["dense1"]["kernel"], float
    )


@pytest.mark.slow
def test_precise_statistics_average_the_moments_of_batches():
    """Seen red with a running average."""
    model, variables = small_network(averaging="cumulative")
    rows = jnp.asarray(np.random.default_rng(0).permutation(40).reshape(4, 10), jnp.int32)
    stats = average_moments(model, variables["params"], variables["batch_stats"], IMAGES, rows)[
        "hidden1"
    ]["norm"]
    h = first_layer(variables, IMAGES)[np.asarray(rows)]
    np.testing.assert_allclose(stats["mean"], h.mean(1).mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], h.var(1).mean(0), rtol=1e-5)


def test_jacobians_are_those_of_the_layers_as_the_batch_normalizes_them():
    """By differentiation with the moments held fixed. Seen red without the scale."""
    model, variables = small_network()
    params = variables["params"]
    h = first_layer(variables, IMAGES)
    xhat = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5)
    scale, bias = (np.asarray(params["hidden1"]["norm"][name]) for name in ("scale", "bias"))
    kernel = np.asarray(params["dense2"]["kernel"], float)
    z = np.maximum(xhat * scale + bias, 0) @ kernel

    def layer(active):  # of an example whose units are all active
        return (active * scale + bias) @ kernel / np.sqrt(z.var(0))

    jacobian = np.stack([layer(row) - layer(np.zeros(6)) for row in np.eye(6)])
    expected = np.linalg.svd(jacobian, compute_uv=False)
    found = singular_values(model, variables, IMAGES)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert spread_of(np.array([np.e, 1 / np.e])) == pytest.approx(1)


def test_precision_is_put_back_after_an_error():
    with pytest.raises(ZeroDivisionError), float64():
        raise ZeroDivisionError
    assert not jax.config.jax_enable_x64


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_bound_of_least_squares_is_not_held_by_numbers_that_overflow(data):
    """Seen red: a comparison that left NaN out had nothing to take the largest of."""
    (check,) = answer("least_squares", data, condition=1e120).checks
    assert np.isnan(check.deviation)


@pytest.mark.slow
def test_directions_that_are_no_numbers_are_not_the_same(data, monkeypatch):
    """Of all layers but the first. Seen red: Python's max knows no NaN."""
    deviations = chain([0.0], repeat(np.nan))
    module = sys.modules[type(BY_NAME["exponential_rate"]).__module__]
    monkeypatch.setattr(module, "deviation", lambda measured, expected: next(deviations))
    _, directions = answer("exponential_rate", data).checks
    assert np.isnan(directions.deviation)


def test_images_that_are_no_digits_are_refused():
    with pytest.raises(ValueError, match=r"data must be one of mnist5k, .*, got 'cifar10'"):
        Config(data="cifar10")


def test_no_seed_is_refused():
    with pytest.raises(ValueError, match=r"seeds must be >= 1, got 0"):
        Config(seeds=0)
