"""What is made of the answers: a table of explanations with verdicts, and a figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bnjax.evidence.figures import Form, save
from bnjax.evidence.records import check_log_digest
from bnjax.evidence.tables import table
from experiments.harness.differences import confidence_95, side
from experiments.harness.identities import check_alike
from experiments.harness.page import Report
from experiments.harness.results import ELSEWHERE, runs_below
from experiments.why_it_works.question import Question

_COLUMNS = 4
FIGURE = "answers.png"
_NOT_FINITE = "not finite"
"""The verdict where a measurement reached infinity: of it nothing follows."""


@dataclass(frozen=True)
class Answers(Report):
    """The report of an experiment whose arms are questions."""

    questions: Sequence[Question]

    def load(self, out: Path) -> dict[str, list[dict[str, Any]]]:
        """Reads what finished runs below a folder came to, by question, in order of seeds."""
        found: dict[str, dict[int, dict[str, Any]]] = {}
        finished = [run for run in runs_below(out) if run[1]["finished"]]
        check_alike(finished, ELSEWHERE)
        for folder, record in finished:
            check_log_digest(folder, record)
            found.setdefault(record["arm"], {})[record["seed"]] = record["final"]
        names = [question.name for question in self.questions]
        return {
            name: [found[name][s] for s in sorted(found[name])] for name in names if name in found
        }

    def summarize(self, out: Path) -> dict[str, Any]:
        """Returns the largest deviations and the mean effects, JSON values."""
        exact = {question.name: question.exact for question in self.questions}
        found = self.load(out)
        return {"questions": {name: _summary(found[name], exact[name]) for name in found}}

    def tables(self, out: Path, summary: dict[str, Any]) -> list[str]:
        """Returns what the command prints."""
        return [self.table(summary), self.deviations(summary), self.numbers(summary)]

    def blocks(self, out: Path) -> dict[str, str]:
        """Returns what the page holds."""
        parts = self.tables(out, self.summarize(out))
        return dict(zip(("answers", "deviations", "numbers"), parts, strict=True))

    def table(self, summary: dict[str, Any]) -> str:
        """Returns a line for each explanation: what was measured, and the verdict."""
        rows = []
        for question, found in self._found(summary):
            said = [question.claim, question.source, question.label, str(found["seeds"])]
            rows.append([*said, _measured(question, found), found["verdict"]])
        heads = ["explanation", "source", "panel", "seeds", "measured (95 % interval)", "verdict"]
        return table(heads, rows, left=6)

    def deviations(self, summary: dict[str, Any]) -> str:
        """Returns the largest deviation of each identity over seeds, and its bound."""
        rows = []
        for question, found in self._found(summary):
            for check in found["checks"]:
                deviation, bound = (f"{check[name]:.1e}" for name in ("deviation", "bound"))
                rows.append([question.label, check["what"], deviation, bound])
        return table(["of", "held against what is said", "largest deviation", "bound"], rows)

    def numbers(self, summary: dict[str, Any]) -> str:
        """Returns what else was measured, means over seeds; what several tell alike, once."""
        lines: dict[str, str] = {}
        for question, found in self._found(summary):
            said = "; ".join(f"{name} {value:.4g}" for name, value in found["numbers"].items())
            if said:
                lines.setdefault(said, f"- {question.label}: {said}.")
        return "\n".join(lines.values())

    def draw(self, out: Path, to: Path | None = None, *, form: Form = "png") -> list[Path]:
        """Writes the panels, if a question was answered."""
        panels = self.panels(out)
        return [save(panels, ((to or out) / FIGURE).with_suffix(f".{form}"))] if panels.axes else []

    def panels(self, out: Path) -> Figure:
        """Draws a panel for each question that was answered."""
        found = self.load(out)
        shown = [question for question in self.questions if question.name in found]
        columns, rows = min(_COLUMNS, len(shown)) or 1, -(-len(shown) // _COLUMNS) or 1
        figure = Figure(figsize=(3.1 * columns, 3.0 * rows), layout="constrained")
        for position, question in enumerate(shown, start=1):
            axes = figure.add_subplot(rows, columns, position)
            axes.spines[["top", "right"]].set_visible(False)
            question.draw(axes, found[question.name])
            axes.set_title(question.label, fontsize=10)
        return figure

    def _found(self, summary: dict[str, Any]) -> list[tuple[Question, dict[str, Any]]]:
        found = summary["questions"]
        return [(each, found[each.name]) for each in self.questions if each.name in found]


def _measured(question: Question, found: dict[str, Any]) -> str:
    """Returns the effect with its interval; of checks, the one that comes closest to its bound."""
    if "effect" in found:
        said = f"{found['effect']:+.3g} {question.effect}".rstrip()
        if "confidence_95" not in found:
            return said
        low, high = found["confidence_95"]
        if low == high:  # no interval: it would say that seeds never differ
            return f"{said}, in each seed"
        return f"{said} ({low:+.3g} to {high:+.3g})"
    checks = found["checks"]
    worst = checks[np.argmax(list(map(_share_of_bound, checks)))]  # NaN is the worst
    closest = f", closest of {len(checks)}" if len(checks) > 1 else ""
    return f"off by {worst['deviation']:.1e}, bound {worst['bound']:.1e}{closest}"


def _share_of_bound(check: dict[str, Any]) -> float:
    return check["deviation"] / check["bound"] if check["bound"] else check["deviation"]


def _summary(finals: Sequence[dict[str, Any]], exact: bool) -> dict[str, Any]:
    checks = [
        {**same[0], "deviation": float(np.max([check["deviation"] for check in same]))}
        for same in zip(*(final["checks"] for final in finals), strict=True)
    ]
    numbers = {
        name: float(f"{np.mean([final['numbers'][name] for final in finals]):.6g}")
        for name in finals[0]["numbers"]
    }
    summary: dict[str, Any] = {"seeds": len(finals), "checks": checks, "numbers": numbers}
    if checks:
        if not np.isfinite([check["deviation"] for check in checks]).all():
            return summary | {"verdict": _NOT_FINITE}
        holds = all(check["deviation"] <= check["bound"] for check in checks)
        yes = "holds exactly" if exact else "holds in small"
        return summary | {"verdict": yes if holds else "contradicted"}
    effects = [final["effect"] for final in finals]
    summary["effect"] = round(float(np.mean(effects)), 6)
    if len(effects) > 1 and np.isfinite(effects).all():
        summary["confidence_95"] = confidence_95(effects)
    return summary | {"verdict": verdict_of_effects(effects)}


def verdict_of_effects(effects: Sequence[float]) -> str:
    """Returns what effects of several seeds, above zero where a claim holds, say to it."""
    if not np.isfinite(effects).all():
        return _NOT_FINITE
    if len(effects) == 1:
        return "one seed: no verdict"
    said = {"above": "holds in small", "below": "contradicted", "unclear": "not seen"}
    return said[side(*confidence_95(effects))]
