"""python -m experiments.report: figures and tables, made from committed results."""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from bnjax.command import command
from bnjax.evidence.report import fill, same_picture
from bnjax.paths import writable_folder
from experiments.benchmarks.__main__ import BENCHMARKS
from experiments.claims import claims_of, claims_table, findings
from experiments.compiled import tables as compiled_tables
from experiments.harness.citations import made_by
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
    html: Path | None = None
    """Write nothing but DIR/index.html: one page of all committed runs, their curves, tables and
    differences, which needs no network; needs the extra `page`."""


@command()
def main() -> None:
    """Reads the command line; writes, or checks."""
    with ending("experiments.report"):
        arguments = tyro.cli(Arguments, prog="python -m experiments.report")
        if arguments.html is not None:
            if arguments.check:
                raise ValueError("--check and --html: give one of them.")
            print(write_page(arguments.html))
            return
        if not arguments.check:
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


def write_page(folder: Path) -> Path:
    """Writes the page of all committed runs, and returns its file.

    Raises:
        MissingExtraError: without the extra `page`.
        ValueError: the folder cannot be made or written.
    """
    # Before the extra: a wrong folder is no reason to install it.
    out = writable_folder("--html", folder) / "index.html"
    from experiments.results_page.groups import read_groups
    from experiments.results_page.page import page

    groups = [
        group
        for experiment in _with_results()
        for group in read_groups(experiment.name, experiment.results, experiment.arms)
    ]
    with tempfile.TemporaryDirectory() as drawn:
        pictures = []
        for number, (results, draw) in enumerate(figures()):
            to = Path(drawn, str(number))
            to.mkdir()
            of = results.relative_to(ROOT / "experiments").as_posix().replace("/results", "")
            pictures += [(f"{of}: {file.stem}", file) for file in draw(results, to, form="svg")]
        out.write_text(page(groups, pictures), encoding="utf-8")
    return out


def documents() -> Iterator[tuple[Path, str]]:
    """Yields each document that holds results, and what it must say."""
    found = findings()
    for experiment in _with_results():
        for path, summary in experiment.page.summaries(experiment.results):
            yield path, json.dumps(summary, indent=1) + "\n"
        blocks = experiment.page.blocks(experiment.results)
        folder = experiment.results.parent
        if (experiment.results / "dry_run.json").exists():
            result = _result(folder, "dry_run")
            blocks["dry_run"] = compiled_tables.dry_run_table(result, experiment.arms)
        if claims := claims_of(experiment.name, found):
            blocks["in_the_readme"] = claims
        results = experiment.results
        sources = {name: experiment.page.sources(results, name) for name in blocks}
        yield _filled(folder / "README.md", _with_origins(blocks, sources))
    speed = _speed() | {"in_the_readme": claims_of(_SPEED.name, found)}
    made = {name: (file,) for name, file in _speed_files().items()} | {"in_the_readme": (_SPEED,)}
    yield _filled(_SPEED / "README.md", _with_origins(speed, made))
    compiled = {
        "normalization": compiled_tables.normalization_table(_result(_COMPILED, "normalization")),
        "memory": compiled_tables.memory_table(_result(_COMPILED, "memory")),
    }
    files = {name: (_COMPILED / "results" / f"{name}.json",) for name in compiled}
    yield _filled(_COMPILED / "README.md", _with_origins(compiled, files))
    yield _filled(ROOT / "README.md", {"claims": claims_table(found)})


def _with_results() -> list[Experiment]:
    """The experiments that have committed results; a new one has none yet."""
    return [experiment for experiment in experiments() if experiment.results.exists()]


def _with_origins(
    blocks: dict[str, str], sources: Mapping[str, tuple[Path, ...]]
) -> dict[str, str]:
    """The blocks, and below those with a table what made it and how to cite it."""
    tables = [name for name, text in blocks.items() if "| ---" in text]
    lines = {made: made_by(*made) for made in {sources[name] for name in tables}}
    below = {name: f"{blocks[name]}\n\n{lines[sources[name]]}".rstrip() for name in tables}
    return blocks | below


def _speed() -> dict[str, str]:
    """The tables of the benchmarks' results, on CPUs and on a GPU, where there are any."""
    return {
        marker: BENCHMARKS[file.stem].table(_read(file)) for marker, file in _speed_files().items()
    }


def _speed_files() -> dict[str, Path]:
    """The files of the benchmarks' results, by marker."""
    files = {}
    for name in BENCHMARKS:
        for file, marker in ((name, name), (f"gpu/{name}", f"{name}_gpu")):
            path = _SPEED / "results" / f"{file}.json"
            if path.exists():
                files[f"{marker}_benchmark"] = path
    return files


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
    return _read(folder / "results" / f"{name}.json")


def _read(file: Path) -> Any:
    return json.loads(file.read_text())


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
