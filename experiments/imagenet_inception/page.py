"""What the experiment's README holds: the tables of its runs, their controls, what they took."""

import json
from pathlib import Path
from typing import Any

from experiments.harness.arm import by_name
from experiments.harness.comparison import Comparison, differences_text
from experiments.harness.images import evaluation_table
from experiments.harness.images.evaluation_table import Published
from experiments.harness.page import Page
from experiments.harness.results import Runs, load_rates, read_result
from experiments.imagenet_inception.arms import ARMS
from experiments.imagenet_inception.claims import paper_claims_table
from experiments.imagenet_inception.rates import rate_text, rates_text, tuned_text

PUBLISHED = (  # Figure 4
    Published("BN-Inception single crop", "224", "1", "1", "25.2", "7.82"),
    Published("BN-Inception multicrop", "224", "144", "1", "21.99", "5.82"),
    Published("BN-Inception ensemble", "224", "144", "6", "20.1", "4.9"),
)
REPORT = Comparison(ARMS, reference="inception", figure="figure2.png", batch=32)


def more(results: Path) -> dict[str, str]:
    """Returns comparisons across folders, memory, crops and ensembles."""

    def load(folder: str) -> dict[str, Runs]:
        return REPORT.load(results / folder)

    narrow, wide = load(""), load("wide")
    controls = [
        (narrow[arm], load(folder)["inception"])
        for arm, folder in (
            ("bn_x5", "recipe_x5"),
            ("bn_x30", "recipe_x30"),
            ("bn_x5", "inception_x5"),
        )
    ]
    wide_controls = [
        (wide[f"bn_{rate}"], load(f"wide/inception_{rate}")["inception"]) for rate in ("x5", "x30")
    ]
    longer = load("eight_epochs")
    tuned, longer_rates = (load_rates(ARMS, results / name) for name in ("tuned", "eight_epochs"))
    return {
        "control_differences": differences_text(controls),
        "wide_control_differences": differences_text(wide_controls),
        "eight_epochs_pair": differences_text([(longer["bn_x5"], longer["recipe_x5"])]),
        "claims": paper_claims_table(results, REPORT),
        "rates": rates_text(lambda name: load(str(Path(name).parent))[Path(name).name]),
        "tuned": tuned_text(tuned["left_out_learning_rate_factor"], tuned["recipe_x1"]),
        "eight_epochs_rates": "\n\n".join(
            [
                tuned_text(longer_rates["bn_x5"], longer_rates["recipe_x5"]),
                rate_text(longer_rates["bn_x5"], longer["bn_x5"].learning_rate),
            ]
        ),
        "memory": memory_text(read_result(results / "long" / "bn_x5-s0").record),
        "evaluation": evaluation_table.table(_json(results / "evaluation.json"), ARMS, PUBLISHED),
    }


def memory_text(record: dict[str, Any]) -> str:
    """Returns what a run's process and its arrays held once all was compiled.

    That is from the second evaluation on.
    """
    memory, length = record["final"]["memory"], record["identity"]["schedule"]["steps"]
    host, arrays = ([size / 1e6 for size in memory[name][1:]] for name in ("host", "arrays"))
    return (
        f"{by_name(ARMS, record['arm']).label} over {length:,} steps: the process held "
        f"{host[0]:,.0f} MB at the second evaluation, {host[-1]:,.0f} MB at the last, "
        f"{max(host):,.0f} MB at most; its arrays {min(arrays):.2f} to {max(arrays):.2f} MB."
    )


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


PAGE = Page(
    REPORT,
    folders=(
        *("", "recipe_x1", "recipe_x5", "recipe_x30", "inception_x5", "left_out", "sigmoid"),
        *("eight_epochs", "wide", "wide/inception_x5", "wide/inception_x30"),
    ),
    drawn=("", "eight_epochs", "wide"),
    more=more,
    made_from={"eight_epochs_rates": ("eight_epochs", "eight_epochs/sweep")},
)
