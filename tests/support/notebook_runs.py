"""The notebooks, and runs of them from top to bottom in fresh kernels.

`python tests/support/notebook_runs.py` runs them again and writes their outputs into the files, and
the set-up cell, which is one for all of them. Needs Jupyter and Pillow, nothing of bnjax: Colab
has those before a notebook's first cell installs it.
"""

import base64
import io
import os
import tempfile
import tomllib
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SET_UP = ROOT / "notebooks" / "set_up_cell.py"
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
LESS = {"BNJAX_ARMS": "bn_x5 bn_x30", "BNJAX_STEPS": "20"}
"""What notebook 02 trains in the test: two networks, which share their compiled programs."""

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


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


if __name__ == "__main__":
    for notebook_path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as empty:
            write(notebook_path, run(notebook_path, Path(empty)))
