"""The notebooks as Colab runs them, set-up cell included; it may add packages, and moves none.

`pytest tests/colab -m colab`, in an environment with Colab's versions and without bnjax, made by
`pip install -r constraints-colab.txt pytest nbclient ipykernel`. The last commit is fetched.
"""

import subprocess
import sys
from importlib import metadata

import nbformat
import pytest
from notebook_runs import LESS, REPOSITORY, ROOT, code_cells, every_notebook, execute, streams

pytestmark = pytest.mark.colab

DRIVE = """from pathlib import Path

def mount(folder):
    (Path(folder) / "MyDrive").mkdir(parents=True)
"""


def installed() -> dict[str, str]:
    code = "from importlib.metadata import distributions as all\n"
    code += "for d in all(): print(d.metadata['Name'], d.version)"
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return dict(line.split() for line in lines.stdout.splitlines())


@pytest.fixture(scope="module")
def before():
    """What is there first; the first notebook adds bnjax."""
    there = installed()
    there.pop("bnjax", None)
    return there


def test_these_are_colabs_versions(before):
    for line in (ROOT / "constraints-colab.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, _, version = line.partition("==")
            assert metadata.version(name) == version, name


@every_notebook
def test_runs_from_the_first_cell_to_the_last(path, tmp_path, before):
    notebook = nbformat.read(path, as_version=4)
    cell = code_cells(notebook)[0]
    for line, here in (
        (f'REPOSITORY = "{REPOSITORY}"', f'REPOSITORY = "{ROOT}"'),
        ('REF = "main"', 'REF = "HEAD"'),
    ):
        assert line in cell.source
        cell.source = cell.source.replace(line, here)
    packages, content = tmp_path / "packages", tmp_path / "content"
    (packages / "google" / "colab").mkdir(parents=True)
    (packages / "google" / "colab" / "drive.py").write_text(DRIVE)
    content.mkdir()
    executed = execute(
        notebook, content, COLAB_RELEASE_TAG="release", PYTHONPATH=str(packages), **LESS
    )
    assert not streams(executed, "stderr")
    assert (content / "bnjax-clone/experiments/mnist_lenet/results").is_dir()
    after = installed()
    assert {name: after.get(name) for name in before} == before
    assert "bnjax" in after
