"""docs/flax.md: it speaks of every argument of Flax's layers, and the tests that it names exist."""

import dataclasses
import inspect
import re
from pathlib import Path

import flax.linen as nn
from flax import nnx

ROOT = Path(__file__).parents[1]
TABLE = (ROOT / "docs" / "flax.md").read_text(encoding="utf-8")


def first_column(section: str) -> set[str]:
    """What it names in backticks."""
    rows = re.findall(r"^\| (`.*?) \|", TABLE.split(f"## {section}\n")[1].split("\n## ")[0], re.M)
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def test_every_argument_has_a_row():
    fields = {f.name for f in dataclasses.fields(nn.BatchNorm)} - {"parent", "name"}
    parameters = set(inspect.signature(nnx.BatchNorm.__init__).parameters) - {"self"}
    assert fields | parameters <= first_column("Constructor")
    for layer in (nn.BatchNorm, nnx.BatchNorm):
        call = set(inspect.signature(layer.__call__).parameters) - {"self"}
        assert call == first_column("Call")


def test_every_row_names_tests_that_exist():
    files = dict(re.findall(r"(L|LE|LF|LS|N|NF|NT) (?:is )?`(test_\w+\.py)`", TABLE))
    assert len(files) == 7
    rows = [row for row in TABLE.splitlines() if re.match(r"\| (?!---|Argument|Behaviour \|)", row)]
    assert len(rows) > 30
    for row in rows:
        tests = re.findall(r"\b(L|LE|LF|LS|N|NF|NT) `(\w+)`", row)
        assert tests, row
        for file, test in tests:
            source = (ROOT / "tests" / files[file]).read_text(encoding="utf-8")
            assert f"\ndef {test}(" in source, (file, test)
