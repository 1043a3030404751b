"""The README: its programs run, and the tests that it names exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_its_programs_run_and_print_what_they_claim(capsys):
    """One after the other, as a reader would paste them."""
    names = {"__name__": "readme"}
    for program in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(program, "README.md", "exec"), names)
    assert capsys.readouterr().out.split() == ["True", "True"]
    assert names["logits"].shape == (60, 10)


def test_the_tests_that_it_names_exist():
    rows = re.findall(r"\[\S+\]\((tests/\S+\.py)\)(?: `(\w+)`)?", README)
    assert len(rows) > 15
    for path, test in rows:
        text = (ROOT / path).read_text(encoding="utf-8")
        assert not test or f"def {test}(" in text, f"{path} has no {test}"
