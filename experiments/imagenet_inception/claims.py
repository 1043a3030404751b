"""What section 4.2 of the paper claims, and what pairs of committed runs say to it."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from bnjax.evidence.tables import table
from experiments.harness.comparison import Comparison, match_steps
from experiments.harness.differences import Difference, points, times, verdict
from experiments.harness.identities import identity_of
from experiments.harness.results import Runs


class PaperClaim(NamedTuple):
    """A claim of the paper.

    Attributes:
        text: what is claimed.
        paper: its numbers there.
        setting: what a pair must differ in, and in nothing else, to get a verdict.
        measure: by what a pair is compared.
        pairs: of arms, each behind its folder below the results; by the claim the first is better.
    """

    text: str
    paper: str
    setting: str
    measure: Callable[[Runs, Runs], Difference]
    pairs: tuple[tuple[str, str], ...] = ()


def best_accuracy(first: Runs, second: Runs) -> Difference:
    """Best accuracies, in points."""
    return points(first.best(), second.best())


def fewer_steps(first: Runs, second: Runs) -> Difference:
    """Steps to the best of the second run of a seed: how many times fewer than its own.

    The interval is of the ratio's logarithm. A run that never comes to it has no ratio, and those
    of the others alone would say too much: then there is no interval.
    """
    own, theirs = match_steps(first, second), match_steps(second, second)
    if not all([*own.values(), *theirs.values()]):  # never, or before the first step
        reached = sum(steps is not None for steps in own.values())
        return Difference(len(own), f"{reached} of {len(own)} reach it", "unclear")
    before, after = ({seed: at for seed, at in steps.items() if at} for steps in (theirs, own))
    return times(before, after, "fewer")


def _one_change(text: str, paper: str, setting: str) -> PaperClaim:
    """What section 4.2.1 says of a change: held against BN-x5 without it."""
    pair = ("left_out/bn_x5", f"left_out/left_out_{setting}")
    return PaperClaim(text, paper, setting, best_accuracy, (pair,))


_NORMALIZED = (
    ("bn_baseline", "inception"),
    ("wide/bn_baseline", "wide/inception"),
    ("bn_x5", "recipe_x5/inception"),
    ("bn_x30", "recipe_x30/inception"),
    ("eight_epochs/bn_x5", "eight_epochs/recipe_x5"),
    ("bn_x5", "inception"),
    ("bn_x30", "inception"),
    ("wide/bn_x5", "wide/inception"),
    ("wide/bn_x30", "wide/inception"),
)
CLAIMS = (
    PaperClaim(
        "Fewer steps to the best of the network without normalization",
        "BN-Baseline 2.3, BN-x5 14.8, BN-x30 11.5 times fewer",
        "normalized",
        fewer_steps,
        _NORMALIZED,
    ),
    PaperClaim(
        "A higher maximum",
        "BN-Baseline +0.5, BN-x5 +0.8, BN-x30 +2.6 points",
        "normalized",
        best_accuracy,
        _NORMALIZED,
    ),
    PaperClaim(
        "Higher learning rates can be used",
        "BN-x30 minus BN-x5: +1.8 points",
        "learning_rate_factor",
        best_accuracy,
        (
            ("bn_x30", "bn_x5"),
            ("wide/bn_x30", "wide/bn_x5"),
            ("left_out/bn_x5", "left_out/left_out_learning_rate_factor"),
        ),
    ),
    PaperClaim(
        "Without normalization they cannot",
        "Inception at x5 reaches infinity",
        "learning_rate_factor",
        best_accuracy,
        (
            ("inception", "inception_x5/inception"),
            ("wide/inception", "wide/inception_x5/inception"),
            ("wide/inception", "wide/inception_x30/inception"),
            ("recipe_x1/inception", "recipe_x5/inception"),
            ("recipe_x1/inception", "recipe_x30/inception"),
        ),
    ),
    _one_change("Dropout is not needed", "no number", "dropout"),
    _one_change("Less L2 is better", "no number", "l2"),
    _one_change("The rate should decay sooner", "6 times; no number", "decay_speed"),
    _one_change("Local response normalization is not needed", "no number", "local_response_norm"),
    _one_change("Shuffling within shards is better", "about +1 %", "shuffle"),
    _one_change("Fewer distortions are better", "no number", "photometric"),
    PaperClaim(
        "Sigmoid trains, and without normalization does not",
        "69.8 %, without at most 0.1 %",
        "normalized",
        best_accuracy,
        (("sigmoid/bn_x5_sigmoid", "sigmoid/recipe_x5"),),
    ),
)
"""To add a pair is one line: (folder/arm, folder/arm), the one that is to be better in front."""
_MADE_BY = ("versions", "processor", "device_kind")


def paper_claims_table(results: Path, report: Comparison) -> str:
    """Returns each claim with its pairs, a line each; a function of the runs below `results`."""
    load = cache(lambda folder: report.load(folder))
    rows = []
    for claim in CLAIMS:
        stated = [claim.text, claim.paper]
        for names in claim.pairs or [()]:
            arms = [results / name for name in names]
            pair = [load(arm.parent)[arm.name] for arm in arms if arm.name in load(arm.parent)]
            runs = " against ".join(f"`{name}`" for name in names)
            if len(pair) == 2:
                rows.append([*stated, runs, *_judged(claim, pair)])
            else:
                rows.append([*stated, runs, "", "", "", "no such pair yet"])
            stated = ["", ""]
    heads = ["claim", "in the paper", "runs", "differ in", "seeds", "difference (95 % interval)"]
    return table([*heads, "verdict"], rows, left=4)


def _judged(claim: PaperClaim, pair: Sequence[Runs]) -> list[str]:
    """Returns what a pair differs in, its seeds, how much better the first is, the verdict.

    Versions and machines, those of the first seed, are told and do not change the verdict.
    """
    difference = claim.measure(*pair)
    first, second = map(_identity, pair)
    changed = [name for name in first | second if first.get(name) != second.get(name)]
    differ = ", ".join(f"`{name}`" for name in changed)
    if len(changed) > 3:
        differ = f"the whole recipe, {len(changed)} settings"
    made = [runs.record["environment"] for runs in pair]
    elsewhere = [name for name in _MADE_BY if made[0].get(name) != made[1].get(name)]
    differ = "; ".join(filter(None, (differ, ", ".join(elsewhere))))
    says = verdict(difference.side) if changed == [claim.setting] else "none: more differs"
    return [differ, str(difference.seeds), difference.text, says]


def _identity(runs: Runs) -> dict[str, Any]:
    """Returns what the numbers of an arm's runs depend on, by name, but for the seed."""
    identity = identity_of(runs.record)
    parts = identity["config"] | identity["schedule"] | identity["settings"]
    return parts | {"data": identity["data_sha256"]}
