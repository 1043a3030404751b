"""What the README claims: a line each, with the committed numbers that it rests on.

A claim says on which side of zero its difference lies. Records that say otherwise are an error:
then the sentence has to change.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from bnjax.evidence.statistics import steps_to
from bnjax.evidence.tables import table
from experiments.benchmarks.tables import ratio_by_turn
from experiments.harness.differences import (
    Difference,
    Side,
    confidence_95,
    points,
    side,
    times,
)
from experiments.harness.experiment import ROOT
from experiments.harness.found import experiment
from experiments.harness.results import Runs, load_rates, load_runs, load_sweep
from experiments.harness.sweeps import at_best_rate
from experiments.mnist_lenet.summary import path_lengths

_HEADS = ("claim", "result (95 % interval, or quartiles)", "runs")


class Finding(NamedTuple):
    """What pairs of runs say.

    Attributes:
        text: the difference with its interval, for the table.
        side: of zero, on which the whole interval lies; "unclear" if it holds zero.
        runs: how many of each, in words.
    """

    text: str
    side: Side
    runs: str


class Claim(NamedTuple):
    """A sentence of the README.

    Attributes:
        text: what is claimed.
        page: the folder of its page in `experiments`.
        side: of zero, on which its difference lies.
        find: reads the difference from committed results.
    """

    text: str
    page: str
    side: Side
    find: Callable[[], Finding]


def findings() -> dict[Claim, Finding]:
    """Returns what the committed results say to each claim.

    Raises:
        ValueError: they contradict it.
    """
    found = {claim: claim.find() for claim in CLAIMS}
    for claim, finding in found.items():
        if finding.side != claim.side:
            raise ValueError(
                f"the README claims {claim.text!r}, {claim.side}; the results in {claim.page} say "
                f"{finding.text}, {finding.side}: change CLAIMS in experiments/claims.py."
            )
    return found


def claims_table(found: Mapping[Claim, Finding]) -> str:
    """Returns a line for each claim, with its page, for the README."""
    rows = [
        [
            claim.text,
            text,
            runs,
            f"[{claim.page}](experiments/{claim.page}/README.md#in-the-readme)",
        ]
        for claim, (text, _, runs) in found.items()
    ]
    return table([*_HEADS, "more"], rows, left=4)


def claims_of(page: str, found: Mapping[Claim, Finding]) -> str:
    """Returns the lines whose numbers are of a page; empty if there are none."""
    rows = [
        [claim.text, text, runs] for claim, (text, _, runs) in found.items() if claim.page == page
    ]
    return table(_HEADS, rows, left=3) if rows else ""


def of_pairs(difference: Difference) -> Finding:
    """Returns what a paired difference says."""
    return Finding(difference.text, difference.side, f"{difference.seeds} pairs")


def _best(name: str, first: str, second: str) -> Finding:
    """The best accuracies of two arms, each behind its folder below an experiment's results."""
    return of_pairs(points(_arm(name, first).best(), _arm(name, second).best()))


def _arm(name: str, place: str) -> Runs:
    folder, _, arm = place.rpartition("/")
    found = experiment(name)
    return load_runs(found.arms, found.results / folder)[arm]


def _final(name: str, first: str, second: str) -> Finding:
    """The same of the accuracies at the end."""
    return of_pairs(points(_arm(name, first).last(), _arm(name, second).last()))


def _steps(name: str, first: str, second: str, target: float) -> Finding:
    """How many times fewer steps the first arm takes to an accuracy."""
    taken = []
    for arm in (_arm(name, first), _arm(name, second)):
        rows = zip(arm.seeds, arm.steps, arm.accuracy, strict=True)
        reached = {seed: steps_to(target, at, values) for seed, at, values in rows}
        taken.append({seed: float(steps) for seed, steps in reached.items() if steps})
        if len(taken[-1]) < len(arm.seeds):
            raise ValueError(f"not all runs of {arm.label} come to {target:.0%}.")
    return of_pairs(times(taken[1], taken[0], "fewer steps"))


def _best_rates(
    rates: Mapping[str, Sequence[Runs]],
    arms: tuple[str, str],
    reached: Callable[[Runs], dict[int, float]] = Runs.best,
) -> Finding:
    """What two arms come to, each at its best rate."""
    first, second = (reached(at_best_rate(rates[arm], reached)) for arm in arms)
    return of_pairs(points(first, second))


def _sweep(name: str) -> dict[str, list[Runs]]:
    found = experiment(name)
    return load_sweep(found.arms, found.results / "sweep")


def _rates(name: str, folder: str) -> dict[str, list[Runs]]:
    found = experiment(name)
    return load_rates(found.arms, found.results / folder)


def _mnist_paths() -> Finding:
    """How far median inputs travel, normalized as at inference, over those without."""
    first, second = (_arm(_MNIST, arm) for arm in _SIGMOID)
    return of_pairs(times(path_lengths(first, "p50_running"), path_lengths(second), "as far"))


def _largest_rate() -> Finding:
    """How many times the largest rate is, at which the deepest networks train."""
    found = experiment("why_it_works")
    answers: Any = found.page.report
    finals = answers.load(found.results)["stable_rate"]
    effects = [final["effect"] for final in finals]
    low, high = confidence_95(effects)
    mean, *ends = (f"{10**value:.0f}" for value in (np.mean(effects), low, high))
    apart = max(after / before for before, after in pairwise(finals[0]["curves"]["rate"]))
    spread = f" ({' to '.join(ends)})" if low < high else " in each seed"
    text = f"{mean} times as high{spread}, of rates tried {apart:.1f} times apart"
    return Finding(text, side(low, high), f"{len(effects)} seeds")


def _explanations() -> Finding:
    """How many explanations hold, and how many do not: numbers that no side is claimed of."""
    found = experiment("why_it_works")
    report: Any = found.page.report
    questions = report.summarize(found.results)["questions"]
    claimed = {question.claim for question in report.questions if question.name in questions}
    verdicts = Counter(question["verdict"] for question in questions.values())
    parts = [f"{verdict} {count}" for verdict, count in verdicts.most_common()]
    seeds = sorted({question["seeds"] for question in questions.values()})
    runs = f"{seeds[0]} seeds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    text = f"{len(questions)} questions on {len(claimed)} claims: {', '.join(parts)}"
    return Finding(text, "unclear", runs)


def _speed(file: str, cell: Mapping[str, Any], peer: str) -> Finding:
    """The time of a step over a peer's, turn by turn."""
    path = ROOT / "experiments" / "benchmarks" / "results" / f"{file}.json"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    (own,) = (each["seconds"] for each in cells if cell.items() <= each.items())
    ratio = ratio_by_turn(own, "ours", peer)
    low, high = np.log([ratio.low, ratio.high])
    text = f"{ratio.median:.2f} of the time (quartiles {ratio.low:.2f} to {ratio.high:.2f})"
    return Finding(text, side(low, high), f"{len(own['ours'])} turns")


_SIGMOID = ("mlp_bn", "mlp")
_RECIPE = ("left_out_learning_rate_factor", "recipe_x1")
_MNIST = "mnist_lenet"
_INCEPTION = "imagenet_inception"
_NORMS = "norms"
_WHY = "why_it_works"
_SPEED = "benchmarks"

CLAIMS = (
    Claim(
        "MNIST: the paper's sigmoid network reaches 90 % sooner with BN",
        _MNIST,
        "above",
        lambda: _steps(_MNIST, *_SIGMOID, 0.9),
    ),
    Claim(
        "It ends a little higher, at one learning rate for both",
        _MNIST,
        "above",
        lambda: _final(_MNIST, *_SIGMOID),
    ),
    Claim(
        "A little remains with each at its best of seven rates",
        _MNIST,
        "above",
        lambda: _best_rates(_sweep(_MNIST), _SIGMOID, Runs.last),
    ),
    Claim(
        "Inputs of its last hidden layer wander *more*, normalized as at inference",
        _MNIST,
        "above",
        _mnist_paths,
    ),
    Claim(
        "CIFAR-10: Inception, half as wide, becomes better by BN alone, at the paper's rate",
        _INCEPTION,
        "above",
        lambda: _best(_INCEPTION, "wide/bn_baseline", "wide/inception"),
    ),
    Claim(
        "*Without* BN, at five times that rate and in 2.5 times the steps, it cannot be told from "
        "BN-x5",
        _INCEPTION,
        "unclear",
        lambda: _best(_INCEPTION, "wide/bn_x5", "wide/inception_x5/inception"),
    ),
    Claim(
        "An eighth as wide, on smaller feature maps, it cannot be told from the one without",
        _INCEPTION,
        "unclear",
        lambda: _best(_INCEPTION, "bn_baseline", "inception"),
    ),
    Claim(
        "There, BN-x5 cannot be told from its whole recipe without BN",
        _INCEPTION,
        "unclear",
        lambda: _best(_INCEPTION, "bn_x5", "recipe_x5/inception"),
    ),
    Claim(
        "Nor can the two with each at its best of three rates",
        _INCEPTION,
        "unclear",
        lambda: _best_rates(_rates(_INCEPTION, "tuned"), _RECIPE),
    ),
    Claim(
        "There, *without* BN, five times the rate is better (the paper: infinity)",
        _INCEPTION,
        "above",
        lambda: _best(_INCEPTION, "inception_x5/inception", "inception"),
    ),
    Claim(
        "There, with sigmoids, it trains with BN, and stays at chance without",
        _INCEPTION,
        "above",
        lambda: _best(_INCEPTION, "sigmoid/bn_x5_sigmoid", "sigmoid/recipe_x5"),
    ),
    Claim(
        "On larger feature maps, after eight epochs, BN-x5 is better than its recipe without BN",
        _INCEPTION,
        "above",
        lambda: _best(_INCEPTION, "eight_epochs/bn_x5", "eight_epochs/recipe_x5"),
    ),
    Claim(
        "And with each at its best of the rates tried",
        _INCEPTION,
        "above",
        lambda: _best_rates(_rates(_INCEPTION, "eight_epochs"), ("bn_x5", "recipe_x5")),
    ),
    Claim(
        "Digits, the narrow network, one rate: BN is ahead of no normalization",
        _NORMS,
        "above",
        lambda: _best(_NORMS, "batch", "none"),
    ),
    Claim(
        "Layer normalization there cannot be told from none",
        _NORMS,
        "unclear",
        lambda: _best(_NORMS, "layer", "none"),
    ),
    Claim("Perceptrons of 20 layers train at higher rates with BN", _WHY, "above", _largest_rate),
    Claim(
        "The paper's explanations and later ones, asked in small", _WHY, "unclear", _explanations
    ),
    Claim(
        "Training BN-Inception in bfloat16 on an H100, a step is faster than with Flax's layer",
        _SPEED,
        "below",
        lambda: _speed("gpu/train_step", {"dtype": "bfloat16"}, "flax"),
    ),
    Claim(
        "On two CPU cores, it is slower than PyTorch's",
        _SPEED,
        "above",
        lambda: _speed("networks", {"size": "full"}, "torch"),
    ),
)
"""To add a claim is one entry."""
