"""Notebooks run from top to bottom in a fresh kernel, and are committed as they ran.

What their set-up cell installs: tests/test_set_up.py; on Colab's versions: tests/colab.
"""

import json
import os
import re
import subprocess
import sys

import nbformat
import pytest
from notebook_runs import (
    LESS,
    NOTEBOOKS,
    REPOSITORY,
    ROOT,
    SET_UP,
    code_cells,
    every_notebook,
    run,
    streams,
)

from experiments.harness.found import experiments

REMEDY = "run `python tests/support/notebook_runs.py` to write the outputs anew"
LIMIT = 400_000  # bytes a file


def badge(path):
    """The link that opens a notebook on Colab."""
    colab = "https://colab.research.google.com"
    place = REPOSITORY.removeprefix("https://github.com/")
    page = f"{colab}/github/{place}/blob/main/{path.relative_to(ROOT).as_posix()}"
    return f"[![Open in Colab]({colab}/assets/colab-badge.svg)]({page})"


def output_kinds(notebook):
    """What each cell puts out: the stream's name or the media types, not the contents."""
    return [
        [(o.output_type, o.get("name"), sorted(o.get("data", ()))) for o in cell.outputs]
        for cell in code_cells(notebook)
    ]


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.slow
@every_notebook
def test_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    executed = run(path, tmp_path, **LESS)
    assert not streams(executed, "stderr")
    committed = nbformat.read(path, as_version=4)
    assert output_kinds(executed) == output_kinds(committed), REMEDY


@every_notebook
def test_is_committed_as_it_ran(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1)), REMEDY
    assert any(cell.outputs for cell in cells), REMEDY
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert "error" not in kinds
    assert not streams(notebook, "stderr"), REMEDY


def test_it_ran_on_the_committed_results():
    (path,) = (path for path in NOTEBOOKS if path.stem == "07_read_the_results")
    outputs = [o for cell in code_cells(nbformat.read(path, as_version=4)) for o in cell.outputs]
    tables = "".join(output.get("data", {}).get("text/markdown", "") for output in outputs)
    for each in experiments():
        runs = len([*each.results.rglob("record.json")])
        assert f"| {each.name} | {runs} |" in tables, REMEDY


@every_notebook
def test_file_is_small_and_names_no_machine(path):
    assert path.stat().st_size < LIMIT, REMEDY
    notebook = nbformat.read(path, as_version=4)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}, REMEDY
    assert notebook.metadata.kernelspec.name == "python3", REMEDY
    assert set(notebook.metadata.language_info) == {"name"}, REMEDY
    for cell in notebook.cells:
        assert not cell.metadata, REMEDY  # times of execution among them
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop("image/png", None)  # base64, which spells any word
    paths = r"(/(work|tmp|root|home|Users|usr|opt|var|mnt|content)\b[\w./-]*|[A-Z]:\\\\)"
    assert not re.findall(paths, json.dumps(notebook))


@every_notebook
def test_the_set_up_cell_is_one_for_all(path):
    notebook = nbformat.read(path, as_version=4)
    assert code_cells(notebook)[0].source == SET_UP.read_text().rstrip(), REMEDY
    assert f'REPOSITORY = "{REPOSITORY}"  # @param' in code_cells(notebook)[0].source


@every_notebook
def test_a_badge_opens_it_on_colab(path):
    assert badge(path) in nbformat.read(path, as_version=4).cells[0].source.splitlines()
    assert badge(path) in (ROOT / "README.md").read_text()


@every_notebook
def test_no_cell_installs_jax(path):
    for cell in code_cells(nbformat.read(path, as_version=4)):
        assert not re.search(r"^\s*[%!]", cell.source.replace("%matplotlib inline", ""), re.M)
        for line in cell.source.splitlines():
            assert not re.search(r"install.*\b(jax|jaxlib|flax)\b(?! is missing)", line), line


def test_colabs_test_is_collected_before_bnjax_is_installed():
    absent = ("bnjax", "experiments", "flax", "jax", "tyro")
    code = (
        f"import sys\nsys.modules.update(dict.fromkeys({absent}))\nimport test_notebooks_on_colab"
    )
    folders = os.pathsep.join(str(ROOT / "tests" / folder) for folder in ("colab", "support"))
    environ = os.environ | {"PYTHONPATH": folders}
    subprocess.run([sys.executable, "-c", code], env=environ, check=True)
