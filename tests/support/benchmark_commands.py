"""Runs of `python -m experiments.benchmarks`, and what each leaves behind."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from experiments.benchmarks.__main__ import main

ROOT = Path(__file__).parents[2]


def call(patch: pytest.MonkeyPatch, argv: str) -> None:
    """Runs the command in this process."""
    patch.setattr(sys, "argv", ["benchmarks", *argv.split()])
    main()


def hide(patch: pytest.MonkeyPatch, folder: Path, *packages: str) -> None:
    """Makes this process find that packages are not installed, by files in a folder."""
    for name in packages:
        (folder / f"{name}.py").write_text("raise ImportError('hidden by the test')\n")
        patch.delitem(sys.modules, name, raising=False)
    patch.syspath_prepend(folder)


def call_without(folder: Path, hidden: tuple[str, ...], argv: str) -> tuple[str, str]:
    """Runs it in a process that starts in a folder and finds the hidden packages not installed.

    Returns:
        Its standard output and its standard error.
    """
    for name in hidden:
        (folder / f"{name}.py").write_text("raise ImportError('hidden by the test')\n")
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benchmarks", *argv.split()],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def result_in(folder: Path, benchmark: ModuleType) -> Any:
    """The result of a benchmark, whose JSON must be that of all benchmarks."""
    name = benchmark.__name__.rpartition(".")[2]
    result = json.loads((folder / f"{name}.json").read_text(), parse_constant=pytest.fail)
    assert (result["schema"], result["benchmark"]) == (1, name)
    return result


def table_in(folder: Path, shown: str, benchmark: ModuleType) -> str:
    """The table of the result, which the other file and the terminal must hold, too."""
    text = benchmark.table(result_in(folder, benchmark))
    document = folder / f"{benchmark.__name__.rpartition('.')[2]}.md"
    assert document.read_text(encoding="utf-8") == text + "\n"
    assert text in shown
    return text
