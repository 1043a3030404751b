"""python -m experiments.rethinking_inception sizes: how large and how costly each network is."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from bnjax.data.sets import FACTS
from bnjax.evidence.environment import environment, require_commit
from bnjax.evidence.tables import table
from bnjax.paths import writable_folder
from experiments.harness.command_line import ending
from experiments.rethinking_inception.arms import ARMS
from experiments.rethinking_inception.config import PRESETS, Config

FILE = "sizes.json"
RESULTS = Path(__file__).parent / "results"
_OF = ("paper", "tiny")
_HEADS = ("image", "parameters", "multiply-adds")

Sizes = dict[str, dict[str, dict[str, int]]]
"""By preset and arm: `image_size`, `parameters` and `multiply_adds`."""


@dataclass(frozen=True)
class Arguments:
    """Parameters, and multiply-adds of an image, of every network of the presets paper and tiny.

    Side heads are left out; nothing is trained.
    """

    out: Path | None = None
    """Folder for sizes.json; by default nowhere."""


def main(argv: Sequence[str]) -> None:
    """Reads the command line after `sizes`; counts, prints a table."""
    with ending("experiments.rethinking_inception"):
        prog = "python -m experiments.rethinking_inception sizes"
        out = tyro.cli(Arguments, prog=prog, args=argv).out
        folder = None if out is None else writable_folder("--out", out)
        if folder is not None:
            require_commit(folder, RESULTS)
        sizes = {preset: _sizes(PRESETS[preset]) for preset in _OF}
        if folder is not None:
            result = {"environment": environment(), "sizes": sizes}
            (folder / FILE).write_text(json.dumps(result, indent=1) + "\n")
        print(sizes_table(sizes))


def _sizes(config: Config) -> dict[str, dict[str, int]]:
    classes = FACTS[config.data].classes
    return {
        arm.name: {
            "image_size": arm.image_size(config),
            **arm.network_size(config, classes=classes),
        }
        for arm in ARMS
    }


def read_sizes(results: Path) -> Sizes:
    """Reads what `sizes --out` wrote."""
    sizes: Sizes = json.loads((results / FILE).read_text(encoding="utf-8"))["sizes"]
    return sizes


def sizes_table(sizes: Sizes) -> str:
    """Returns a line for each network, beside the cost that the paper gives."""
    heads = ["network", *(f"{preset}: {head}" for preset in _OF for head in _HEADS)]
    rows = [
        [
            arm.label,
            *(f"{number:,}" for preset in _OF for number in sizes[preset][arm.name].values()),
            arm.paper.get("cost, 1e9", ""),
        ]
        for arm in ARMS
    ]
    return table([*heads, "in the paper, 1e9"], rows)
