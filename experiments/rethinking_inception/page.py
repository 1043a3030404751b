"""What the experiment's README holds: the rows, and each change beside the paper's."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from bnjax.evidence.tables import table
from experiments.harness.comparison import Comparison
from experiments.harness.differences import in_points, paired, told, verdict, with_interval
from experiments.harness.images import evaluation_table
from experiments.harness.images.evaluation_table import Published
from experiments.harness.page import Page
from experiments.harness.results import Runs
from experiments.rethinking_inception.arms import ARMS
from experiments.rethinking_inception.sizes import read_sizes, sizes_table


class Change(NamedTuple):
    """A change of the paper, by two arms that differ in it.

    Attributes:
        text: what it is.
        after: name of the arm with it; by the paper it is the better one.
        before: name of the arm without.
        paper: what it gains there, points of top-1 accuracy.
    """

    text: str
    after: str
    before: str
    paper: str = "no number"


CHANGES = (
    Change("Table 3: batch normalization, its rate, no LRN", "bn_googlenet", "googlenet", "+2.2"),
    Change("Table 3: BN-Inception", "bn_inception", "bn_googlenet", "+1.6"),
    Change("Table 3: Inception-v2", "inception_v2", "bn_inception", "+1.8"),
    Change("Table 3: RMSProp", "rmsprop", "inception_v2", "+0.3"),
    Change("Table 3: label smoothing", "label_smoothing", "rmsprop", "+0.3"),
    Change("Table 3: factorized 7x7", "factorized_7x7", "label_smoothing", "+1.2"),
    Change("Table 3: BN-auxiliary", "inception_v3", "factorized_7x7", "+0.4"),
    Change("Table 3: BN-Inception to v3", "inception_v3", "bn_inception", "+4.0"),
    Change("Table 3, all of it", "inception_v3", "googlenet", "+7.8"),
    Change("Table 2: 299 pixels, not 151", "inception_v3", "half_resolution", "+0.2"),
    Change("Table 2: 299 pixels, not 79", "inception_v3", "quarter_resolution", "+1.4"),
    Change("Figure 2: ReLU between factors", "inception_v3", "linear_factors", "+1.0"),
    Change("Section 3: two 3x3, not 5x5", "bn_inception", "bn_inception_5x5"),
    Change("Section 3: n = 7, not 5", "inception_v3", "factorized_5"),
    Change("Section 3: n = 7, not 3", "inception_v3", "factorized_3"),
    Change("Section 5: pool in parallel, not first", "inception_v3", "pool_first"),
    Change("Section 5: pool in parallel, not last", "inception_v3", "pool_last"),
    Change("Section 4: a plain side head", "factorized_7x7", "no_side_head"),
    Change("Section 4: a normalized side head", "inception_v3", "no_side_head"),
    Change("Section 7: label smoothing", "inception_v3", "unsmoothed", "+0.2"),
    Change("Section 8: RMSProp with clipping, not momentum", "inception_v3", "momentum"),
)
PUBLISHED = (  # Tables 3 to 5, validation; the ensemble's top-5 error on the test set is 3.58
    Published("GoogLeNet", "224", "1", "1", "29", "9.2"),
    Published("GoogLeNet", "224", "10", "1", "", "9.15"),
    Published("GoogLeNet", "224", "144", "1", "", "7.89"),
    Published("BN-Inception", "224", "1", "1", "25.2", "7.8"),
    Published("BN-Inception", "224", "144", "1", "22", "5.82"),
    Published("Inception-v3", "299", "1", "1", "21.2", "5.6"),
    Published("Inception-v3", "299", "12", "1", "19.47", "4.48"),
    Published("Inception-v3", "299", "144", "1", "18.77", "4.2"),
    Published("Inception-v3, ensemble", "299", "144", "4", "17.2", "3.46"),
)
_HEADS = ("change", "runs", "seeds", "best accuracy, points (95 % interval)", "says", "paper")
_SIDE_HEADS = ("factorized_7x7", "inception_v3")
_PARTS = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Rows(Comparison):
    """Arms compared, and the changes between them."""

    block_names: ClassVar[tuple[str, ...]] = (*Comparison.block_names, "changes", "side_heads")

    def tables(self, out: Path, summary: dict[str, Any]) -> list[str]:
        """Returns what the command prints."""
        runs = self.load(out)
        return [*super().tables(out, summary), changes_table(runs), side_heads_table(runs)]

    def blocks(self, out: Path) -> dict[str, str]:
        """Returns what a README holds of the runs below `out`, by `block_names`."""
        runs = self.load(out)
        own = {"changes": changes_table(runs), "side_heads": side_heads_table(runs)}
        return super().blocks(out) | own


def changes_table(runs: Mapping[str, Runs]) -> str:
    """Returns a line for each change whose two arms have runs, paired by seed; empty for none."""
    rows = []
    for change in CHANGES:
        if change.after in runs and change.before in runs:
            after, before = runs[change.after], runs[change.before]
            difference = told(paired(after.best(), before.best()), in_points)
            if difference.seeds:
                pair = f"{after.label} against {before.label}"
                says = [str(difference.seeds), difference.text, verdict(difference.side)]
                rows.append([change.text, pair, *says, change.paper])
    return table(_HEADS, rows, left=2) if rows else ""


def side_heads_table(runs: Mapping[str, Runs]) -> str:
    """Returns what side heads gain at the last evaluation of each quarter of training.

    A quarter without one, but for that before the first step, has no row; without the runs, the
    table is empty.
    """
    without = runs.get("no_side_head")
    heads = [runs[name] for name in _SIDE_HEADS if name in runs]
    if without is None or not heads:
        return ""
    steps = max(without.steps, key=len)
    last = dict.fromkeys(int(steps[steps <= part * steps[-1]][-1]) for part in _PARTS)
    rows = []
    for step in filter(None, last):
        pairs = [paired(_at(step, head), _at(step, without)) for head in heads]
        rows.append(
            [
                f"{step:,}",
                *(with_interval(pair, in_points) if pair["seeds"] else "" for pair in pairs),
            ]
        )
    titles = (f"{head.label} minus {without.label}, points" for head in heads)
    return table(["step", *titles], rows)


def _at(step: int, runs: Runs) -> dict[int, float]:
    """The accuracy of each run after a step, or at its last evaluation before, by seed."""
    return {
        seed: float(values[np.flatnonzero(at <= step)[-1]])
        for seed, at, values in zip(runs.seeds, runs.steps, runs.accuracy, strict=True)
    }


REPORT = Rows(ARMS, reference="googlenet")
TABLE_2 = "table2"
"""Folder of the runs at three resolutions, whose stem has another stride than those of the rows."""
CIFAR = "cifar"
"""Folder of the runs on CIFAR-10."""


def more(results: Path) -> dict[str, str]:
    """Returns the tables of crops and of sizes."""
    return {
        "evaluation": evaluation_table.table(
            json.loads((results / "evaluation.json").read_text(encoding="utf-8")), ARMS, PUBLISHED
        ),
        "sizes": sizes_table(read_sizes(results)),
    }


PAGE = Page(REPORT, folders=("", TABLE_2, CIFAR), drawn=("", CIFAR), more=more)
