"""Errors over crops and ensembles in the form of the paper's Figure 4, from `evaluation.json`."""

from collections.abc import Iterator, Sequence
from typing import Any

from bnjax.evidence.statistics import spread
from bnjax.evidence.tables import percent
from bnjax.evidence.tables import table as lines
from experiments.harness.arm import by_name
from experiments.imagenet_inception.arms import ARMS

_HEADS = (
    "model",
    "statistics",
    "resolution",
    "crops",
    "models",
    "top-1 error, %",
    "top-5 error, %",
)
_PAPER = (
    ("paper, ImageNet: BN-Inception single crop", "", "224", "1", "1", "25.2", "7.82"),
    ("paper, ImageNet: BN-Inception multicrop", "", "224", "144", "1", "21.99", "5.82"),
    ("paper, ImageNet: BN-Inception ensemble", "", "224", "144", "6", "20.1", "4.9"),
)
_STATISTICS = {"running": "running", "population": "Algorithm 2", None: ""}

Result = dict[str, Any]


def table(result: Result) -> str:
    """A line for each arm, mean ± sd over its runs, and each ensemble; the paper's; notes."""
    notes = [f"- {note}" for note in _notes(result)]
    return "\n".join([lines(_HEADS, [*_rows(result), *_PAPER], left=2), "", *notes])


def _rows(result: Result) -> Iterator[list[str]]:
    arms = [run["arm"] for run in result["runs"]]
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for each in result["evaluations"]:
        of = tuple(dict.fromkeys(arms[run] for run in each["runs"]))
        key = (each["crops"], each["statistics"], len(each["runs"]), of)
        groups.setdefault(key, []).append(each)
    for (crops, kind, models, of), evaluations in groups.items():
        name = by_name(ARMS, of[0]).label
        if models > 1:
            names = (by_name(ARMS, arm).label.removeprefix("ensemble, ") for arm in of)
            name = f"ensemble of {', '.join(names)}"
        elif len(evaluations) > 1:
            name += f", mean of {len(evaluations)} seeds"
        yield [
            name,
            _STATISTICS[kind],
            *map(str, (result["image_size"], crops, models)),
            *(_errors(evaluations, count) for count in ("top_1", "top_5")),
        ]


def _errors(evaluations: Sequence[Result], count: str) -> str:
    return percent(spread([each[count] / each["examples"] for each in evaluations]))


def _notes(result: Result) -> Iterator[str]:
    data = result["data"]
    yield (
        f"Data: {data['name']}, {data['classes']:,} classes, each of the {data['validation']:,} "
        "validation images once. Probabilities are averaged over the crops, then over the models."
    )
    if data["name"] != "imagenet2012":
        yield (
            "The paper's numbers are of other images, of 1,000 classes: to compare is what crops "
            "and ensembles gain, not the errors."
        )
    for run in result["runs"]:
        if run["diverged"]:
            yield (
                f"{by_name(ARMS, run['arm']).label}, seed {run['seed']}, diverged at step "
                f"{run['diverged']['step']:,}: evaluated are the last finite weights."
            )
