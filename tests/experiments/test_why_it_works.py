"""Explanations of batch normalization: identities hold within their bounds, observations show."""

from dataclasses import replace

import numpy as np
import pytest
from events import scalars

from bnjax.data import in_memory, open_data
from bnjax.evidence.records import Run, read_record
from experiments.harness.compute import Compute
from experiments.harness.runs import complete_all
from experiments.verify import verify
from experiments.why_it_works.answers import Answers, verdict
from experiments.why_it_works.experiment import EXPERIMENT, QUESTIONS, Config
from experiments.why_it_works.gradient_growth import linear_factor, relu_factor
from experiments.why_it_works.question import float64

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


def answer(name, data, **changed):
    with float64():
        return replace(BY_NAME[name], **SMALL[name], **changed).answer(0, data)


def test_each_question_is_tried_here():
    assert set(SMALL) == set(BY_NAME)


@pytest.mark.parametrize("name", [q.name for q in QUESTIONS if q.exact])
def test_what_is_exact_holds(name, data):
    for check in answer(name, data).checks:
        assert check.deviation <= max(check.bound, LOOSER.get(name, 0) * (check.bound > 1e-6))


@pytest.mark.parametrize(
    "name", ["rank_collapse", pytest.param("stable_rate", marks=pytest.mark.slow)]
)
def test_what_is_observed_shows(name, data):
    assert answer(name, data).effect > 0


@pytest.mark.slow
def test_sharpness_hovers_at_two_over_the_rate(data):
    for check in answer("edge_of_stability", data).checks:
        assert check.deviation <= check.bound


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


def test_precision_is_put_back_after_an_error():
    import jax

    with pytest.raises(ZeroDivisionError), float64():
        raise ZeroDivisionError
    assert not jax.config.jax_enable_x64


@pytest.fixture
def measured(tmp_path):
    config = Config(arms=("layer_gradient",), seeds=2)
    complete_all(EXPERIMENT, config, tmp_path, compute=Compute(tensorboard=True))
    return tmp_path


def test_a_measurement_is_a_run_that_is_reported_and_repeated(measured):
    report = Answers(QUESTIONS)
    summary = report.summarize(measured)
    found = summary["questions"]["layer_gradient"]
    assert (found["seeds"], found["verdict"]) == (2, "holds exactly")
    assert "holds exactly" in report.tables(measured, summary)[0]
    assert [path.name for path in report.draw(measured)] == ["answers.png"]
    assert verify(measured / "layer_gradient-s0").bitwise
    numbers = read_record(measured / "layer_gradient-s1")["final"]["numbers"]
    shown = scalars(measured / "tensorboard" / "layer_gradient-s1")
    assert shown == {name.replace(" ", "_"): {1: pytest.approx(numbers[name])} for name in numbers}


def changed_record(folder, to, change):
    """A copy of a run whose record says something else, sealed anew."""
    record = read_record(folder)
    header = {name: record[name] for name in record if name not in ("final", "finished", "sha256")}
    change(header, record["final"])
    run = Run(to / folder.name, header)
    (to / folder.name / "metrics.jsonl").write_text((folder / "metrics.jsonl").read_text())
    run.finish(record["final"])
    return to / folder.name


def test_elsewhere_a_theorem_must_hold_again(measured, tmp_path):
    def change(header, final):
        header["environment"]["versions"]["jax"] = "0.0.1"
        final["curves"]["measured"][0] += 1.0

    verdict = verify(changed_record(measured / "layer_gradient-s0", tmp_path / "other", change))
    assert (verdict.agrees, verdict.bitwise) == (True, False)
    assert "holds within its bounds" in verdict.lines[0]


@pytest.mark.parametrize(
    ("effects", "said"),
    [
        ([1.0, 1.1, 0.9], "holds in small"),
        ([-1.0, -1.1, -0.9], "contradicted"),
        ([1.0, -1.0, 0.1], "not seen"),
        ([1.0], "one seed: no verdict"),
    ],
)
def test_a_verdict_follows_from_the_interval(effects, said):
    assert verdict(effects) == said


def test_images_that_are_no_digits_are_refused():
    with pytest.raises(ValueError, match=r"data must be one of mnist5k, .*, got 'cifar10'"):
        Config(data="cifar10")


def test_no_seed_is_refused():
    with pytest.raises(ValueError, match=r"seeds must be >= 1, got 0"):
        Config(seeds=0)
