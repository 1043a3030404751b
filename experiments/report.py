"""python -m experiments.report: figures and tables, made from committed results."""

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from bnjax.command import command
from bnjax.evidence.report import fill, same_picture
from experiments.benchmarks import (
    batch_norm,
    input_pipeline,
    mnist,
    networks,
    train_step,
)
from experiments.command_line import ending
from experiments.compiled import tables as compiled_tables
from experiments.finished import read_result
from experiments.imagenet_inception import evaluation_table
from experiments.imagenet_inception import figures as imagenet_figures
from experiments.imagenet_inception import summary as imagenet_summary
from experiments.imagenet_inception import table as imagenet_table
from experiments.mnist_lenet import figures as mnist_figures
from experiments.mnist_lenet import summary as mnist_summary
from experiments.mnist_lenet.table import arms_table, differences_text, drift_text, sweep_table

ROOT = Path(__file__).parent.parent
MNIST = ROOT / "experiments" / "mnist_lenet"
IMAGENET = ROOT / "experiments" / "imagenet_inception"
LONG = IMAGENET / "results" / "long" / "bn_x5-s0"
CONTROLS = ("recipe_x5", "inception_x5", "wide", "wide/inception_x5", "wide/inception_x30")
"""Folders of further runs, each with a table."""
FIGURES = {
    MNIST / "results": mnist_figures.draw,
    IMAGENET / "results": imagenet_figures.draw,
    IMAGENET / "results" / "wide": imagenet_figures.draw,
}
"""What draws the figures of a folder of runs."""
BENCHMARKS = ROOT / "experiments" / "benchmarks"
COMPILED = ROOT / "experiments" / "compiled"
SPEED = {
    "mnist": mnist,
    "batch_norm": batch_norm,
    "train_step": train_step,
    "networks": networks,
    "input_pipeline": input_pipeline,
}
"""Benchmarks whose result is committed."""
GPU = {"batch_norm": batch_norm, "train_step": train_step, "networks": networks}
"""The same on a GPU."""


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
            for folder, draw in FIGURES.items():
                draw(folder)
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
    """Each document that holds results, and what it must say."""
    summary = mnist_summary.summarize(MNIST / "results")
    yield MNIST / "results" / "summary.json", json.dumps(summary, indent=1) + "\n"
    blocks = _mnist_blocks(summary)
    yield MNIST / "README.md", _filled(MNIST / "README.md", blocks)
    summary = imagenet_summary.summarize(IMAGENET / "results")
    yield IMAGENET / "results" / "summary.json", json.dumps(summary, indent=1) + "\n"
    imagenet = _imagenet_blocks(summary)
    for name in CONTROLS:
        summary = imagenet_summary.summarize(IMAGENET / "results" / name)
        yield IMAGENET / "results" / name / "summary.json", json.dumps(summary, indent=1) + "\n"
        imagenet[f"imagenet_{name.replace('/', '_')}"] = imagenet_table.arms_table(summary)
    imagenet |= _imagenet_differences()
    yield IMAGENET / "README.md", _filled(IMAGENET / "README.md", imagenet)
    speed = {
        f"{name}_benchmark": benchmark.table(_result(BENCHMARKS, name))
        for name, benchmark in SPEED.items()
    } | {
        f"{name}_gpu_benchmark": benchmark.table(_result(BENCHMARKS, f"gpu/{name}"))
        for name, benchmark in GPU.items()
    }
    yield BENCHMARKS / "README.md", _filled(BENCHMARKS / "README.md", speed)
    compiled = {
        "normalization": compiled_tables.normalization_table(_result(COMPILED, "normalization")),
        "memory": compiled_tables.memory_table(_result(COMPILED, "memory")),
    }
    yield COMPILED / "README.md", _filled(COMPILED / "README.md", compiled)
    short = {name: blocks[name] for name in ("mnist_arms", "mnist_differences")}
    short["imagenet_wide"] = imagenet["imagenet_wide"]
    yield ROOT / "README.md", _filled(ROOT / "README.md", short)


def drift() -> list[str]:
    """The documents and figures that are not what the results make them."""
    drifted = [path for path, text in documents() if path.read_text(encoding="utf-8") != text]
    with tempfile.TemporaryDirectory() as folder:
        for results, draw in FIGURES.items():
            for fresh in draw(results, Path(folder)):
                committed = results / fresh.name
                if not committed.exists() or not same_picture(fresh, committed):
                    drifted.append(committed)
    return [str(path.relative_to(ROOT)) for path in drifted]


def _result(folder: Path, name: str) -> Any:
    return json.loads((folder / "results" / f"{name}.json").read_text())


def _mnist_blocks(summary: dict[str, Any]) -> dict[str, str]:
    return {
        "mnist_arms": arms_table(summary),
        "mnist_differences": differences_text(summary),
        "mnist_drift": drift_text(summary),
        "mnist_sweep": sweep_table(summary),
    }


def _imagenet_blocks(summary: dict[str, Any]) -> dict[str, str]:
    return {
        "imagenet_arms": imagenet_table.arms_table(summary),
        "imagenet_dry_run": compiled_tables.dry_run_table(_result(IMAGENET, "dry_run")),
        "imagenet_divergence": imagenet_table.divergence_text(summary),
        "imagenet_memory": imagenet_table.memory_text(read_result(LONG).record),
        "imagenet_evaluation": evaluation_table.table(_result(IMAGENET, "evaluation")),
    }


def _imagenet_differences() -> dict[str, str]:
    """Every comparison of best accuracies, with its interval."""

    def runs(name: str) -> dict[str, imagenet_summary.Runs]:
        return imagenet_summary.load_runs(IMAGENET / "results" / name)

    narrow, wide = runs(""), runs("wide")
    pairs = {
        "differences": [(arm, narrow["inception"]) for arm in list(narrow.values())[1:]],
        "wide_differences": [(arm, wide["inception"]) for arm in list(wide.values())[1:]],
        "control_differences": [
            (narrow["bn_x5"], runs(name)["inception"]) for name in ("recipe_x5", "inception_x5")
        ],
        "wide_control_differences": [
            (wide[arm], runs(f"wide/inception_{arm.removeprefix('bn_')}")["inception"])
            for arm in ("bn_x5", "bn_x30")
        ],
    }
    return {f"imagenet_{name}": imagenet_table.differences_text(of) for name, of in pairs.items()}


def _filled(path: Path, blocks: dict[str, str]) -> str:
    return fill(path.read_text(encoding="utf-8"), blocks)


if __name__ == "__main__":
    main()
