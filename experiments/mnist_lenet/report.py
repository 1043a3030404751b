"""What is made of the runs: the summary, the tables, Figure 1."""

from pathlib import Path
from typing import Any

from bnjax.evidence.figures import Form
from experiments.harness.comparison import unlike_text
from experiments.harness.page import Page, Report
from experiments.mnist_lenet.figures import draw
from experiments.mnist_lenet.summary import summarize
from experiments.mnist_lenet.table import (
    arms_table,
    best_rates_text,
    differences_text,
    divergence_text,
    drift_text,
    sweep_table,
)


class MnistReport(Report):
    """The report of the experiment; each part is a pure function of the runs' folders."""

    def summarize(self, out: Path) -> dict[str, Any]:
        """Returns all numbers of the tables, JSON values."""
        return summarize(out)

    def tables(self, out: Path, summary: dict[str, Any]) -> list[str]:
        """Returns what the command prints."""
        drift = drift_text(summary)
        if drift:
            drift = (
                f"Path of the median input to the last nonlinearity, mean over units:\n\n{drift}"
            )
        return [
            arms_table(summary) if summary["arms"] else "",
            differences_text(summary),
            drift,
            sweep_table(summary),
            best_rates_text(summary),
            divergence_text(summary),
            unlike_text(summary),
        ]

    def blocks(self, out: Path) -> dict[str, str]:
        """Returns what the experiment's README holds."""
        summary = summarize(out)
        return {
            "arms": "\n\n".join(filter(None, (arms_table(summary), unlike_text(summary)))),
            "differences": differences_text(summary),
            "drift": drift_text(summary),
            "sweep": sweep_table(summary),
        }

    def draw(self, out: Path, to: Path | None = None, *, form: Form = "png") -> list[Path]:
        """Draws what the runs allow; returns the files."""
        return draw(out, to, form=form)


PAGE = Page(MnistReport())
