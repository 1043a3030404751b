"""Notebooks run from top to bottom in a fresh kernel, and are committed as they ran.

`python tests/test_notebooks.py` runs them again and writes their outputs into the files, and the
set-up cell, which is one for all of them. What that cell installs: tests/test_set_up.py; on
Colab's versions: tests/colab.
"""

import base64
import io
import json
import os
import re
import tempfile
import tomllib
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from experiments.harness.found import experiments

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SET_UP = ROOT / "notebooks" / "set_up_cell.py"
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
REMEDY = "run `python tests/test_notebooks.py` to write the outputs anew"
LIMIT = 400_000  # bytes a file
LESS = {"BNJAX_ARMS": "bn_x5 bn_x30", "BNJAX_STEPS": "20"}
"""What notebook 02 trains in the test: two networks, which share their compiled programs."""

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def badge(path):
    """The link that opens a notebook on Colab."""
    colab = "https://colab.research.google.com"
    place = REPOSITORY.removeprefix("https://github.com/")
    page = f"{colab}/github/{place}/blob/main/{path.relative_to(ROOT).as_posix()}"
    return f"[![Open in Colab]({colab}/assets/colab-badge.svg)]({page})"


def run(path, folder, **environ):
    """The notebook after a run in a fresh kernel, on CPU, without network, in a clone of links."""
    for entry in ("bnjax", "experiments", "notebooks", "pyproject.toml", "CITATION.cff"):
        (folder / entry).symlink_to(ROOT / entry)
    return execute(nbformat.read(path, as_version=4), folder, PIP_NO_INDEX="1", **environ)


def execute(notebook, folder, **environ):
    """The notebook after a run in a fresh kernel, on CPU, in this folder."""
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    apart = {"IPYTHONDIR": str(folder), "JAX_PLATFORMS": "cpu"}
    apart["TFDS_DATA_DIR"] = "prepared"  # in that folder: holds nothing
    apart["TF_CPP_MIN_LOG_LEVEL"] = "3"  # XLA says on stderr that a busy machine compiles slowly
    return client.execute(env=os.environ | apart | environ)


def write(path, notebook):
    """Writes a notebook that ran: images in 64 colours, without what differs between machines."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    code_cells(notebook)[0].source = SET_UP.read_text().rstrip()
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", ()):
                output.data["image/png"] = fewer_colours(output.data["image/png"])
    nbformat.write(notebook, path)


def fewer_colours(png):
    """A figure of lines and text looks the same, at a third of the size. Both in base64."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(64)
    small = io.BytesIO()
    image.save(small, "png", optimize=True)
    return base64.b64encode(small.getvalue()).decode() + "\n"


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def streams(notebook, name):
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return [o.text for o in outputs if o.output_type == "stream" and o.name == name]


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


if __name__ == "__main__":
    for notebook_path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as empty:
            write(notebook_path, run(notebook_path, Path(empty)))
