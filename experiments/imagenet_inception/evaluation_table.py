"""Errors over crops and ensembles in the form of the paper's Figure 4, from `evaluation.json`."""

import statistics
from collections.abc import Iterator
from typing import Any

_HEAD = (
    "model",
    "resolution",
    "crops",
    "models",
    "statistics",
    "top-1 error, %",
    "top-5 error, %",
)
_PAPER = (
    ("paper, ImageNet: BN-Inception single crop", "224", "1", "1", "", "25.2", "7.82"),
    ("paper, ImageNet: BN-Inception multicrop", "224", "144", "1", "", "21.99", "5.82"),
    ("paper, ImageNet: BN-Inception ensemble", "224", "144", "6", "", "20.1", "4.9"),
)
_NAMES = {
    "inception": "Inception",
    "bn_baseline": "BN-Baseline",
    "bn_x5": "BN-x5",
    "bn_x30": "BN-x30",
    "bn_x5_sigmoid": "BN-x5-Sigmoid",
}
_STATISTICS = {"running": "running", "population": "Algorithm 2", None: ""}

Result = dict[str, Any]


def table(result: Result) -> str:
    """A line for each arm, mean ± sd over its runs, and each ensemble; the paper's; notes."""
    lines = [_row(_HEAD), _row(["---"] + ["---:"] * 3 + ["---"] + ["---:"] * 2)]
    lines += map(_row, _rows(result))
    lines += map(_row, _PAPER)
    return "\n".join([*lines, "", *(f"- {note}" for note in _notes(result))])


def _rows(result: Result) -> Iterator[list[str]]:
    arms = [run["arm"] for run in result["runs"]]
    keys = [(each["crops"], each["statistics"]) for each in result["evaluations"]]
    for crops, kind in dict.fromkeys(keys):
        these = [
            each
            for each, key in zip(result["evaluations"], keys, strict=True)
            if key == (crops, kind)
        ]
        alone = [each for each in these if len(each["runs"]) == 1]
        middle = [str(result["image_size"]), str(crops)]
        for arm in dict.fromkeys(arms[each["runs"][0]] for each in alone):
            of_arm = [each for each in alone if arms[each["runs"][0]] == arm]
            name = _name(arm)
            if len(of_arm) > 1:
                name += f", mean of {len(of_arm)} seeds"
            errors = [_spread(of_arm, "top_1"), _spread(of_arm, "top_5")]
            yield [name, *middle, "1", _STATISTICS[kind], *errors]
        for each in these:
            if len(each["runs"]) == 1:
                continue
            names = dict.fromkeys(_name(arms[run]) for run in each["runs"])
            errors = [_spread([each], "top_1"), _spread([each], "top_5")]
            count = str(len(each["runs"]))
            yield [f"ensemble: {', '.join(names)}", *middle, count, _STATISTICS[kind], *errors]


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
                f"{_name(run['arm'])}, seed {run['seed']}, diverged at step "
                f"{run['diverged']['step']:,}: evaluated are the last finite weights."
            )


def _spread(evaluations: list[Result], name: str) -> str:
    percent = [100 * each[name] / each["examples"] for each in evaluations]
    text = f"{statistics.fmean(percent):.2f}"
    return text if len(percent) == 1 else f"{text} ± {statistics.stdev(percent):.2f}"


def _name(arm: str) -> str:
    kind, _, number = arm.partition("_")
    return f"member {number}" if kind == "ensemble" else _NAMES[arm]


def _row(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"
