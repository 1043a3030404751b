"""The page: tables that need no script, and the runs' curves as data for BokehJS."""

import base64
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bnjax.evidence.statistics import spread
from bnjax.evidence.tables import plain
from bnjax.extras import extra
from experiments.harness.citations import Origin, bibtex
from experiments.harness.differences import confidence_95, interval
from experiments.results_page.groups import Group, Pair, Series, ShownRun, pairs, varying

with extra("page"):
    # BokehJS draws: 1.4 MB of script in the page, where Plotly's has 4.8 and Vega's comes in a
    # package of 33 MB. Jinja fills in and escapes.
    from bokeh.resources import Resources
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

Json = Any
_HERE = Path(__file__).parent
_NUMBERS = ("best accuracy, %", "final, %", "by Algorithm 2, %", "final loss", "effect")
_DIGITS = {"final loss": 4, "effect": 4}


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
        text: what it shows.
        value: by what a column is sorted, where that is not the text.
        link: address in the page, or none.
        title: what a pointer at it shows, or nothing.
    """

    text: str
    value: float | None = None
    link: str = ""
    title: str = ""


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        cells: as many as there are heads.
        groups: numbers of the groups that it is of, by which it is filtered.
        seed: that it is of, or none.
    """

    cells: list[Cell]
    groups: list[int]
    seed: int | None = None


class Table(NamedTuple):
    """A table of the page."""

    name: str
    heads: list[str]
    rows: list[Row]

    @property
    def numbers(self) -> list[bool]:
        """Whether each column holds numbers."""
        return [
            any(row.cells[column].value is not None for row in self.rows)
            for column in range(len(self.heads))
        ]


def page(groups: Sequence[Group], figures: Iterable[tuple[str, Path]] = ()) -> str:
    """Returns the page, whole: it asks no network for anything.

    Args:
        groups: what it shows, in this order.
        figures: SVG files, each with its title.

    Raises:
        MissingExtraError: without the extra `page`.
    """
    surroundings = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    numbered = list(enumerate(groups))
    compared = list(pairs(groups))
    return surroundings.get_template("page.html").render(
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
        script=(_HERE / "page.js").read_text(encoding="utf-8"),
        bokeh=Resources(mode="inline", components=["bokeh", "bokeh-api"]).js_raw,
        data=json.dumps(curves(groups), separators=(",", ":"), allow_nan=False).replace(
            "<", "\\u003c"
        ),
        counts=_counts(groups),
        networks=_networks(groups),
        differences=_difference_table(groups, compared),
        runs=_runs(groups),
        cards=[_card(number, group, run) for number, group in numbered for run in group.runs],
        citations=[_citation(number, group) for number, group in numbered],
        figures=[(title, _address(path)) for title, path in figures],
    )


def curves(groups: Sequence[Group]) -> dict[str, Json]:
    """Returns what the script draws and filters, JSON values; what is no number is None.

    Many runs are evaluated at the same steps: a curve names its `steps` by their place.
    """
    steps: list[list[float]] = []

    def drawn(series: Series) -> dict[str, Json]:
        if series.x not in steps:
            steps.append(series.x)
        values = [float(f"{y:.6g}") if math.isfinite(y) else None for y in series.y]
        return {"name": series.name, "x": steps.index(series.x), "y": values}

    def run_of(run: ShownRun) -> dict[str, Json]:
        of = {measure: list(map(drawn, several)) for measure, several in run.curves.items()}
        fault = run.final.get("diverged") or {}
        return {"seed": run.seed, "diverged": fault.get("step"), "curves": of}

    names = varying(groups)
    shown = [
        {
            "experiment": group.experiment,
            "folder": group.folder,
            "label": group.label,
            "changed": group.changed,
            "color": group.arm.color,
            "fields": {name: _shown(group.fields[name]) for name in names if name in group.fields},
            "runs": list(map(run_of, group.runs)),
        }
        for group in groups
    ]
    return {"fields": names, "steps": steps, "groups": shown}


def _counts(groups: Sequence[Group]) -> str:
    experiments = len({group.experiment for group in groups})
    runs = sum(len(group.runs) for group in groups)
    return f"{experiments} experiments, {len(groups)} networks and questions, {runs} runs"


def _networks(groups: Sequence[Group]) -> Table:
    """Mean and spread over seeds of what each group came to."""
    heads = ["experiment", "runs", "network or question", "seeds", "steps", *_NUMBERS]
    heads += ["bounds held", "diverged", "made by"]
    rows = []
    for number, group in enumerate(groups):
        record = group.runs[0].record
        rows.append(
            Row(
                [
                    Cell(group.experiment),
                    Cell(group.folder or "results"),
                    Cell(group.label, title=group.changed),
                    _number(len(group.runs)),
                    _number(record["identity"]["schedule"]["steps"]),
                    *(_mean(group, head) for head in _NUMBERS),
                    Cell(" / ".join(dict.fromkeys(run.checks for run in group.runs))),
                    Cell(_diverged(group.runs)),
                    Cell(_made_by(group.origin), link=f"#cite-{number}"),
                ],
                [number],
            )
        )
    return Table("networks", heads, rows)


def _difference_table(groups: Sequence[Group], compared: Sequence[Pair]) -> Table:
    """Accuracies of a pair, paired by seed, in points, with intervals of 95 %."""
    heads = ["experiment", "this", "minus this", "differ in", "seeds"]
    heads += ["best accuracy, points", "95 % interval", "final, points", "95 % interval"]
    numbers = {id(group): number for number, group in enumerate(groups)}
    rows = []
    for pair in compared:
        own = [numbers[id(group)] for group in (pair.first, pair.second)]
        seeds = max(difference["seeds"] for difference in pair.differences.values())
        cells = [
            Cell(pair.first.experiment),
            *(
                Cell(_placed(group), link=f"#cite-{number}", title=group.changed)
                for number, group in zip(own, (pair.first, pair.second), strict=True)
            ),
            Cell(", ".join(pair.differ) or "nothing"),
            _number(seeds),
        ]
        for head in ("best accuracy, %", "final, %"):
            cells += _compared(pair.differences.get(head))
        rows.append(Row(cells, own))
    return Table("differences", heads, rows)


def _compared(difference: dict[str, Any] | None) -> list[Cell]:
    """A mean difference and its interval, of those that there are."""
    if difference is None:
        return [Cell(""), Cell("")]
    mean, ends = difference["mean"], interval(difference)
    between = Cell("") if ends is None else Cell(f"{ends[0]:+.2f} to {ends[1]:+.2f}", ends[0])
    return [Cell(f"{mean:+.2f}", mean), between]


def _runs(groups: Sequence[Group]) -> Table:
    """What each run came to."""
    heads = ["experiment", "runs", "network or question", "seed", *_NUMBERS, "bounds held"]
    heads += ["diverged", "seconds", "record"]
    rows = []
    for number, group in enumerate(groups):
        for run in group.runs:
            cells = [
                Cell(group.experiment),
                Cell(group.folder or "results"),
                Cell(group.label, title=group.changed),
                _number(run.seed),
                *(_value(run, head) for head in _NUMBERS),
                Cell(run.checks),
                Cell(_diverged([run])),
                Cell(f"{run.final['wall_seconds']:,.0f}", run.final["wall_seconds"]),
                Cell("record", link=f"#{_anchor(group, run)}"),
            ]
            rows.append(Row(cells, [number], run.seed))
    return Table("runs", heads, rows)


def _card(number: int, group: Group, run: ShownRun) -> dict[str, Json]:
    """All about a run: facts by name, what repeats it, how to cite it."""
    record, source = run.record, run.origin
    where = record["environment"]
    facts = {
        "record": run.path,
        "bnjax": ", ".join(source.versions),
        "commit": ", ".join(source.commits),
        "data": f"{record['data']['name']}, SHA-256 {record['data']['sha256']}",
        "machine": f"{where['device_count']} x {where['device_kind']}; {where.get('processor')}",
        "versions": ", ".join(f"{k} {v}" for k, v in where["versions"].items()),
        "begun": record.get("started", ""),
        "outcome": _outcome(run),
        "settings": ", ".join(
            f"{k} {_shown(v)}" for k, v in run.fields.items() if not k.startswith("data")
        ),
        "SHA-256 of the record": source.digest,
    }
    return {
        "anchor": _anchor(group, run),
        "title": f"{group.experiment}: {_placed(group)}, seed {run.seed}",
        "group": number,
        "seed": run.seed,
        "facts": facts,
        "command": f"python -m experiments.verify {run.path}",
        "bibtex": bibtex(source),
    }


def _citation(number: int, group: Group) -> dict[str, Json]:
    """How to cite the runs of a group, and what repeats them."""
    source = group.origin
    verify = "python -m experiments.verify"
    return {
        "anchor": f"cite-{number}",
        "title": f"{group.experiment}: {_placed(group)}",
        "group": number,
        "line": source.line,
        "commands": "\n".join(f"{verify} {run.path}" for run in group.runs),
        "records": [(f"#{_anchor(group, run)}", f"seed {run.seed}") for run in group.runs],
        "bibtex": bibtex(source),
    }


def _made_by(source: Origin) -> str:
    """Versions and commits in the width of a column."""
    return f"{', '.join(source.versions)} at {', '.join(source.short_commits)}"


def _outcome(run: ShownRun) -> str:
    """What the record's end says, sums with their counts."""
    parts = []
    for name, value in run.final.items():
        if isinstance(value, dict) and {"correct", "examples"} <= value.keys():
            right, of = value["correct"], value["examples"]
            parts.append(f"{name}: {right:,} of {of:,} right, loss {value['loss'] / of:.6g}")
    for check in run.final.get("checks") or ():
        parts.append(f"{check['what']}: {check['deviation']:.2g}, bound {check['bound']:.2g}")
    parts += [f"{k}: {v:.6g}" for k, v in (run.final.get("numbers") or {}).items()]
    return "; ".join(parts)


def _mean(group: Group, head: str) -> Cell:
    """Mean ± standard deviation; of an effect, the mean and its interval."""
    values = list(group.values(head).values())
    if not values:
        return Cell("")
    if not all(map(math.isfinite, values)):
        return Cell("not finite")
    own = spread(values)
    text = plain(own, _DIGITS.get(head, 2))
    if head == "effect" and own["sd"]:
        low, high = confidence_95(values)
        text = f"{own['mean']:.3g} ({low:.3g} to {high:.3g})"
    return Cell(text, own["mean"])


def _value(run: ShownRun, head: str) -> Cell:
    if head not in run.numbers:
        return Cell("")
    value = run.numbers[head]
    text = f"{value:.{_DIGITS.get(head, 2)}f}"
    return Cell(text, value if math.isfinite(value) else None)


def _number(value: int) -> Cell:
    return Cell(f"{value:,}", float(value))


def _diverged(runs: Sequence[ShownRun]) -> str:
    steps = [run.final["diverged"]["step"] for run in runs if run.final.get("diverged")]
    return f"{len(steps)} of {len(runs)}, at {min(steps):,}" if steps else ""


def _address(path: Path) -> str:
    """A picture as an address that holds it, without digits of points that no screen shows."""

    def shorter(match: re.Match[str]) -> str:
        return re.sub(r"(\.\d)\d+", r"\1", match.group())

    text = re.sub(r' d="[^"]*"', shorter, path.read_text(encoding="utf-8"))
    return f"data:image/svg+xml;base64,{base64.b64encode(text.encode()).decode()}"


def _placed(group: Group) -> str:
    return f"{group.label} [{group.folder}]" if group.folder else group.label


def _anchor(group: Group, run: ShownRun) -> str:
    return "-".join(filter(None, (group.experiment, *group.folder.split("/"), run.folder.name)))


def _shown(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value)
