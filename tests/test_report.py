"""Documents and figures are those of the committed results; links lead somewhere."""

import re
from pathlib import Path

import pytest

from bnjax.evidence.report import fill
from experiments.report import drift

ROOT = Path(__file__).parent.parent


def test_nothing_has_drifted_from_the_results():
    assert drift() == [], "run: python -m experiments.report"


def test_fill_replaces_between_markers_and_nothing_else():
    text = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb"
    assert fill(text, {"x": r"n\1w"}) == "a\n<!-- begin x -->\nn\\1w\n<!-- end x -->\nb"


def test_fill_refuses_missing_or_double_markers():
    pair = "<!-- begin x --><!-- end x -->"
    for text in ("", pair + pair):
        with pytest.raises(ValueError, match="one pair of the markers"):
            fill(text, {"x": "new"})


def test_readme_links_lead_somewhere():
    for document in ROOT.glob("**/README.md"):
        if ".venv" in document.parts:
            continue
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document}: {target}"
