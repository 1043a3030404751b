"""Documents and figures are those of the committed results; links lead somewhere."""

import re
from pathlib import Path
from unittest.mock import patch

import matplotlib
import numpy as np
import pytest

from bnjax.evidence.figures import Curve, learning_curves, new_figure, save
from bnjax.evidence.report import fill, same_picture
from experiments import report
from experiments.report import drift

ROOT = Path(__file__).parent.parent


def test_nothing_has_drifted_from_the_results():
    assert drift() == [], "run: python -m experiments.report"


def test_a_document_that_is_missing_has_drifted(monkeypatch):
    """That of new results, say: red where it ends the check without the names of the others."""
    absent = report.ROOT / "experiments" / "norms" / "results" / "summary.json.absent"
    monkeypatch.setattr(report, "documents", lambda: [(absent, "{}")])
    monkeypatch.setattr(report, "figures", lambda: [])
    assert drift() == [str(absent.relative_to(report.ROOT))]


def test_fill_replaces_between_markers_and_nothing_else():
    text = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb"
    assert fill(text, {"x": r"n\1w"}) == "a\n<!-- begin x -->\nn\\1w\n<!-- end x -->\nb"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<!-- begin x --><!-- end x -->" * 2, "must begin and end once"),
        ("<!-- begin x -->", "must begin and end once"),
        ("<!-- end x -->", "must begin and end once"),
        ("<!-- begin y --><!-- end y -->", "nothing to fill the marker 'y' with"),
    ],
)
def test_fill_refuses_markers_that_are_not_filled(text, words):
    with pytest.raises(ValueError, match=words):
        fill(text, {"x": "new"})


def curve(path, y=(0.1, 0.5), label="BN", color="#0072b2", version=matplotlib.__version__):
    """A figure as this version of matplotlib draws it, by the name of another."""
    figure, (axes,) = new_figure((3,))
    curves = [Curve(label, color, np.arange(2), np.asarray([y]))]
    learning_curves(axes, curves, lowest=0)
    with patch.object(matplotlib, "__version__", version):
        return save(figure, path)


@pytest.mark.parametrize("version", [matplotlib.__version__, "0.0"])
@pytest.mark.parametrize("change", [{"y": (0.1, 0.51)}, {"label": "none"}, {"color": "#d55e00"}])
def test_pictures_are_told_apart(tmp_path, version, change):
    """Red across versions for a mean difference of pixels below one level."""
    committed = curve(tmp_path / "committed.png")
    assert same_picture(curve(tmp_path / "same.png", version=version), committed)
    assert not same_picture(curve(tmp_path / "other.png", version=version, **change), committed)


def anchors(document):
    """What links may name of a page: its headings, as GitHub spells them."""
    heads = re.findall(r"^#+ (.+)$", document.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_links_lead_somewhere():
    pages = [*ROOT.glob("**/README.md"), *ROOT.glob("docs/**/*.md"), ROOT / "CONTRIBUTING.md"]
    for document in pages:
        if {".venv", "build"} & set(document.parts):
            continue  # copies
        for link in re.findall(r"\]\((?!https?:)([^)]+)\)", document.read_text()):
            target, _, anchor = link.partition("#")
            path = document.parent / target if target else document
            assert path.exists(), f"{document}: {link}"
            assert not anchor or anchor in anchors(path), f"{document}: {link}"
