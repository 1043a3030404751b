"""Errors over crops and ensembles in the form of the paper's Figure 4, from `evaluation.json`."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from bnjax.evidence.statistics import spread
from bnjax.evidence.tables import percent
from bnjax.evidence.tables import table as lines
from experiments.harness.arm import Arm, by_name

_HEADS = (
    "model",
    "statistics",
    "resolution",
    "crops",
    "models",
    "top-1 error, %",
    "top-5 error, %",
)
_STATISTICS = {"running": "running", "population": "Algorithm 2", None: ""}

Result = dict[str, Any]


class Published(NamedTuple):
    """A row of a paper's table, of ImageNet; cells as they are printed.

    Attributes:
        model: the network.
        size: height and width of its images, pixels.
        crops: of each image.
        models: networks whose predictions are averaged.
        top_1, top_5: errors, in %.
    """

    model: str
    size: str
    crops: str
    models: str
    top_1: str
    top_5: str


def table(result: Result, arms: Sequence[Arm], published: Sequence[Published]) -> str:
    """A line for each arm, mean ± sd over its runs, and each ensemble; the paper's; notes."""
    rows = [*_rows(result, arms)]
    rows += [[f"paper, ImageNet: {model}", "", *rest] for model, *rest in published]
    notes = [f"- {note}" for note in _notes(result, arms, published)]
    return "\n".join([lines(_HEADS, rows, left=2), "", *notes])


def _rows(result: Result, known: Sequence[Arm]) -> Iterator[list[str]]:
    arms = [run["arm"] for run in result["runs"]]
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for each in result["evaluations"]:
        of = tuple(dict.fromkeys(arms[run] for run in each["runs"]))
        key = (each["crops"], each["statistics"], len(each["runs"]), of)
        groups.setdefault(key, []).append(each)
    for (crops, kind, models, of), evaluations in groups.items():
        name = by_name(known, of[0]).label
        if models > 1:
            names = (by_name(known, arm).label.removeprefix("ensemble, ") for arm in of)
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


def _notes(result: Result, arms: Sequence[Arm], published: Sequence[Published]) -> Iterator[str]:
    data = result["data"]
    yield (
        f"Data: {data['name']}, {data['classes']:,} classes, each of the {data['validation']:,} "
        "validation images once. Probabilities are averaged over the crops, then over the models."
    )
    if result.get("left_out"):
        yield f"Of them {result['left_out']:,} do not count, by a blacklist."
    elif data["name"] == "imagenet2012":
        yield (
            "All of them count. Szegedy et al. 2016 leave 1,762 out, and state that errors are 0.2 "
            "(top-1) and 0.1 (top-5) points higher with them: --blacklist."
        )
    if published and data["name"] != "imagenet2012":
        yield (
            "The paper's numbers are of other images, of 1,000 classes: to compare is what crops "
            "and ensembles gain, not the errors."
        )
    for run in result["runs"]:
        if run["diverged"]:
            yield (
                f"{by_name(arms, run['arm']).label}, seed {run['seed']}, diverged at step "
                f"{run['diverged']['step']:,}: evaluated are the last finite weights."
            )
