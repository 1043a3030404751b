"""The README and the guides: their programs run as they stand, and print what stands below them."""

import re
from pathlib import Path

import jax
import made_weights
import pytest

ROOT = Path(__file__).parent.parent
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
PROGRAM = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)
LINES = 150
"""A README is read from its first line to its last."""


def run(page, capsys):
    """Runs a page's programs one after the other, as a reader would paste them."""
    names = {"__name__": page.stem}
    for program, output in PROGRAM.findall(page.read_text(encoding="utf-8")):
        exec(compile(program, page.name, "exec"), names)
        printed = capsys.readouterr().out
        assert not output or printed == output, f"{page}:\n{program}"
    return names


@pytest.fixture
def googlenet(tmp_path, monkeypatch):
    """A reader's folder, with a file of torchvision."""
    monkeypatch.chdir(tmp_path)
    made_weights.save(tmp_path / "googlenet.pth", made_weights.googlenet(1000))


@pytest.mark.slow
@pytest.mark.usefixtures("googlenet")
@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_a_guides_programs_print_what_it_says(page, capsys):
    names = run(page, capsys)
    if page.stem == "fine_tune":
        assert jax.eval_shape(names["predict"], names["images"]).main.shape == (2, 1000)


def test_the_readme_runs_and_is_short(capsys):
    page = ROOT / "README.md"
    assert len(page.read_text(encoding="utf-8").splitlines()) < LINES
    names = run(page, capsys)
    assert names["y"].shape == (60, 100)


def test_the_tests_that_pages_name_exist():
    page = (ROOT / "docs" / "others.md").read_text(encoding="utf-8")
    rows = re.findall(r"\[\S+\]\(\.\./(tests/\S+\.py)\)(?: `(\w+)`)?", page)
    assert len(rows) > 15
    for path, test in rows:
        text = (ROOT / path).read_text(encoding="utf-8")
        assert not test or f"def {test}(" in text, f"{path} has no {test}"
