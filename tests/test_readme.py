"""The README: its programs run, and the tests that it names exist."""

import re
from pathlib import Path

import jax
import made_weights

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_its_programs_run_and_print_what_they_claim(capsys, monkeypatch, tmp_path):
    """One after the other, as a reader would paste them, who has a file of torchvision."""
    monkeypatch.chdir(tmp_path)
    made_weights.save(tmp_path / "googlenet.pth", made_weights.googlenet(1000))
    names = {"__name__": "readme"}
    for program in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(program, "README.md", "exec"), names)
    assert capsys.readouterr().out.split() == ["True", "True"]
    assert names["logits"].shape == (60, 10)
    assert jax.eval_shape(names["predict"], names["photos"]).main.shape == (2, 1000)
    assert names["table"].startswith("GoogLeNet\nlayer ")
    assert names["loaded"].variables.keys() == {"params", "batch_stats"}


def test_the_tests_that_it_names_exist():
    rows = re.findall(r"\[\S+\]\((tests/\S+\.py)\)(?: `(\w+)`)?", README)
    assert len(rows) > 15
    for path, test in rows:
        text = (ROOT / path).read_text(encoding="utf-8")
        assert not test or f"def {test}(" in text, f"{path} has no {test}"
