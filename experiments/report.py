"""python -m experiments.report: figures and tables, made from committed results."""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from bnjax.command import command
from bnjax.evidence.report import fill, same_picture
from experiments.benchmarks.__main__ import BENCHMARKS
from experiments.claims import claims_table
from experiments.compiled import tables as compiled_tables
from experiments.harness.command_line import ending
from experiments.harness.experiment import ROOT, Experiment
from experiments.harness.found import experiments

_SPEED = ROOT / "experiments" / "benchmarks"
_COMPILED = ROOT / "experiments" / "compiled"


@dataclass(frozen=True)
class Arguments:
    """Writes figures, summaries and tables anew from the committed results."""

    check: bool = False
    """Write nothing; exit with 1 and name what has drifted from the results."""


@command()
def main() -> None:
    """Reads the command line; writes, or checks."""
    with ending("experiments.report"):
        if not tyro.cli(Arguments, prog="python -m experiments.report").check:
            for results, draw in figures():
                draw(results)
            for path, text in documents():
                path.write_text(text, encoding="utf-8")
            return
        drifted = drift()
        if drifted:
            sys.exit(
                f"drifted from the results: {', '.join(drifted)}; run python -m experiments.report"
            )
        print("figures, summaries and tables are those of the results.")


def documents() -> Iterator[tuple[Path, str]]:
    """Yields each document that holds results, and what it must say."""
    for experiment in _with_results():
        for path, summary in experiment.page.summaries(experiment.results):
            yield path, json.dumps(summary, indent=1) + "\n"
        blocks = experiment.page.blocks(experiment.results)
        folder = experiment.results.parent
        if experiment.name == "imagenet_inception":
            blocks["dry_run"] = compiled_tables.dry_run_table(_result(folder, "dry_run"))
        yield _filled(folder / "README.md", blocks)
    yield _filled(_SPEED / "README.md", _speed())
    compiled = {
        "normalization": compiled_tables.normalization_table(_result(_COMPILED, "normalization")),
        "memory": compiled_tables.memory_table(_result(_COMPILED, "memory")),
    }
    yield _filled(_COMPILED / "README.md", compiled)
    yield _filled(ROOT / "README.md", {"claims": claims_table()})


def _with_results() -> list[Experiment]:
    """The experiments that have committed results; a new one has none yet."""
    return [experiment for experiment in experiments() if experiment.results.exists()]


def _speed() -> dict[str, str]:
    """The tables of the benchmarks' results, on CPUs and on a GPU, where there are any."""
    tables = {}
    for name, benchmark in BENCHMARKS.items():
        for file, marker in ((name, name), (f"gpu/{name}", f"{name}_gpu")):
            if (_SPEED / "results" / f"{file}.json").exists():
                tables[f"{marker}_benchmark"] = benchmark.table(_result(_SPEED, file))
    return tables


def figures() -> Iterator[tuple[Path, Callable[..., list[Path]]]]:
    """Yields each folder of results that has figures, and what draws them."""
    for experiment in _with_results():
        for folder in experiment.page.drawn:
            yield experiment.results / folder, experiment.page.report.draw


def drift() -> list[str]:
    """The documents and figures that are not what the results make them."""
    drifted = [
        path
        for path, text in documents()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    with tempfile.TemporaryDirectory() as folder:
        for results, draw in figures():
            for fresh in draw(results, Path(folder)):
                committed = results / fresh.name
                if not committed.exists() or not same_picture(fresh, committed):
                    drifted.append(committed)
    return [str(path.relative_to(ROOT)) for path in drifted]


def _result(folder: Path, name: str) -> Any:
    return json.loads((folder / "results" / f"{name}.json").read_text())


def _filled(path: Path, blocks: dict[str, str]) -> tuple[Path, str]:
    if not path.exists():
        raise ValueError(
            f"{path} is missing: write it, with `<!-- begin NAME -->` and `<!-- end NAME -->` "
            f"where tables belong; NAME is one of {', '.join(blocks)}."
        )
    try:
        return path, fill(path.read_text(encoding="utf-8"), blocks)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


if __name__ == "__main__":
    main()
