"""CONTRIBUTING.md: its recipes, followed to the letter in a copy of the repository, work.

A block after a line that is a path alone is that file, or (`diff`) what changes in it; other
Python programs are run as they stand. The copy's tests are the recipes' own, and those that hold
what a recipe promises.
"""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
RECIPES = TEXT.partition("## How to add")[2]
MOST_FILES = 3
"""Beside the recipe's own test."""


QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
"""XLA compiles soon, and what runs slowly: there is little to run."""


class Block(NamedTuple):
    """A program of the text.

    Attributes:
        recipe: the heading above it.
        path: the file that it is of; empty for none.
        kind: "python" or "diff".
        code: its lines.
    """

    recipe: str
    path: str
    kind: str
    code: str


def blocks() -> list[Block]:
    """All programs of the recipes, in their order."""
    found = []
    for part in RECIPES.split("\n### ")[1:]:
        recipe = part.partition("\n")[0]
        for path, kind, code in re.findall(
            r"(?:^`(\S+)`\n\n)?^```(python|diff)\n(.*?)^```", part, re.DOTALL | re.MULTILINE
        ):
            found.append(Block(recipe, path, kind, code))
    return found


BLOCKS = blocks()
TESTS = [b.path for b in BLOCKS if b.path.startswith("tests/") and b.kind == "python"]
MODULES = [
    block.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    for block in BLOCKS
    if block.path and not block.path.startswith("tests/")
]
HELD = (
    "tests/experiments/test_norms_experiment.py",
    "tests/normalization/test_settings.py",
    "tests/test_linen.py::test_constructor_is_flaxs_and_more",
    "tests/test_nnx.py::test_signatures_are_flaxs_and_more",
    "tests/test_layout.py::test_every_module_says_what_it_is",
    *(f"tests/test_layout.py::test_arrows_run_one_way[{module}]" for module in MODULES),
)
"""Tests of the repository that hold what recipes promise."""


def changed(text: str, diff: str) -> str:
    """The text with the changes of a diff whose hunks begin with `@@`.

    Raises:
        ValueError: if the lines of a hunk, without those it adds, stand in the text not once.
    """
    for hunk in re.split(r"^@@.*\n", diff, flags=re.MULTILINE)[1:]:
        lines = [(line[:1] or " ", line[1:]) for line in hunk.splitlines()]
        old, new = (
            "".join(f"{line}\n" for sign, line in lines if sign in signs) for signs in (" -", " +")
        )
        places = [place.start() for place in re.finditer(rf"^{re.escape(old)}", text, re.MULTILINE)]
        if len(places) != 1:
            raise ValueError(f"{len(places)} times in the file, not once:\n{old}")
        text = text[: places[0]] + new + text[places[0] + len(old) :]
    return text


def followed() -> dict[str, str]:
    """The text of every file that the recipes make or change, by its path."""
    files: dict[str, str] = {}
    for block in BLOCKS:
        if not block.path:
            continue
        place = ROOT / block.path
        if block.kind == "diff":
            text = files.get(block.path) or place.read_text(encoding="utf-8")
            files[block.path] = changed(text, block.code)
            continue
        new = not place.exists() and block.path not in files
        assert new, f"{block.recipe}: {block.path} is there already"
        files[block.path] = block.code
    return files


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the repository, without results, in which all recipes were followed."""
    clone = tmp_path_factory.mktemp("clone")
    ignored = shutil.ignore_patterns("__pycache__", "results")
    for name in ("bnjax", "experiments", "docs", "tests"):
        shutil.copytree(ROOT / name, clone / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", clone)
    for path, text in followed().items():
        (clone / path).parent.mkdir(exist_ok=True)
        (clone / path).write_text(text, encoding="utf-8")
    programs = [textwrap.indent(block.code, "    ") for block in BLOCKS if not block.path]
    tests = [f"def test_program_{i}():\n{code}" for i, code in enumerate(programs)]
    (clone / "tests" / "test_programs.py").write_text("\n\n".join(tests))
    return clone


def python(clone: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Runs Python in the copy."""
    command = [sys.executable, *arguments]
    environ = os.environ | {"PYTHONPATH": str(clone), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK}
    return subprocess.run(
        command, cwd=clone, env=environ, capture_output=True, text=True, timeout=300
    )


def test_each_recipe_costs_at_most_three_files():
    recipes = {block.recipe for block in BLOCKS}
    assert len(recipes) == RECIPES.count("\n### ") >= 7
    for recipe in recipes:
        files = {block.path for block in BLOCKS if block.recipe == recipe} - {""}
        code = {path for path in files if not path.startswith("tests/")}
        assert len(code) <= MOST_FILES, recipe


def test_every_change_still_fits():
    """Red for a line of the repository that a recipe quotes and that has changed since."""
    for path, text in followed().items():
        if path.endswith(".py"):
            compile(text, path, "exec")


@pytest.mark.slow
def test_what_the_recipes_make_passes_their_tests_and_ours(clone):
    assert len(TESTS) >= 4
    ended = python(clone, "-m", "pytest", "-n", "0", "tests/test_programs.py", *TESTS, *HELD)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_files_that_it_names_exist():
    made = {block.path for block in BLOCKS}
    for text in (TEXT, DESIGN):
        for path in re.findall(r"`((?:bnjax|experiments|tests|docs)/[\w./]+)`", text):
            assert path in made or (ROOT / path).exists() or "NAME" in path, path


def test_the_rooms_that_the_design_shows_exist():
    """Names begin a line, and lie in the folder of the last line that is indented less."""
    tree = DESIGN.partition("## 2. The rooms")[2].split("```")[1]
    above: dict[int, Path] = {-1: ROOT}
    seen = 0
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        for name in line.split():
            if not re.fullmatch(r"\w+(/|\.py)", name):
                break
            folder = above[max(depth for depth in above if depth < indent)]
            assert (folder / name).exists(), f"{folder}: {name}"
            seen += 1
            if name.endswith("/"):
                above = {d: p for d, p in above.items() if d < indent} | {indent: folder / name}
    assert seen > 40


def test_a_hunk_must_fit():
    diff = "@@\n a\n-b\n+c\n"
    assert changed("a\nb\nd\n", diff) == "a\nc\nd\n"
    for text in ("a\n", "a\nb\na\nb\n", "aa\nb\n"):
        with pytest.raises(ValueError, match="not once"):
            changed(text, diff)
