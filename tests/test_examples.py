"""The examples in docstrings run as they stand, and the first names have one.

They assume what a reader has imported: JAX, NumPy, Flax and optax by their usual short names, and
the names of the module.
"""

import doctest
import importlib
import inspect
import pkgutil
import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bnjax
import bnjax.data
import bnjax.models
import bnjax.normalization

IMPORTED = {"jax": jax, "jnp": jnp, "np": np, "nn": nn, "nnx": nnx, "optax": optax}
IMPORTED |= {"partial": partial}
MODULES = [
    importlib.import_module(info.name)
    for info in pkgutil.walk_packages(bnjax.__path__, "bnjax.")
    if not info.name.endswith("__main__")
]
FINDER = doctest.DocTestFinder(exclude_empty=True)
EXAMPLES = {
    module.__name__: found
    for module in MODULES
    if (found := [t for t in FINDER.find(module, globs={}) if t.examples])
}
SLOW = {f"bnjax.models.{name}" for name in ("bn_inception", "googlenet", "inception_v3")}
SLOW |= {"bnjax.inference", "bnjax.models.training_mode", "bnjax.whitening.layer"}
SLOW |= {"bnjax.training.objectives", "bnjax.training.steps"}
"""Modules whose examples take seconds to trace or compile."""
WITHOUT = {"DataError", "Pretrained", "Saved", "Split"}
"""What others return or raise; their examples show it."""


class Digits(doctest.OutputChecker):
    """Numbers agree to the digits that an example shows, and all else but spaces is the same."""

    NUMBER = re.compile(r"-?\d+(?:\.\d*)?(?:e[-+]?\d+)?")

    def check_output(self, want, got, optionflags):
        if super().check_output(want, got, optionflags):
            return True
        texts = ["".join(self.NUMBER.sub("#", text).split()) for text in (want, got)]
        shown, found = (self.NUMBER.findall(text) for text in (want, got))
        return texts[0] == texts[1] and all(map(self.agree, shown, found))

    @staticmethod
    def agree(shown, found):
        places = len(shown.partition(".")[2])
        return abs(float(shown) - float(found)) <= 0.51 * 10.0**-places


@pytest.mark.parametrize(
    "module",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in EXAMPLES],
)
def test_examples_print_what_they_say(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(
        Digits(), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    said: list[str] = []
    for test in EXAMPLES[module]:
        test.globs = {**IMPORTED, **vars(importlib.import_module(module))}
        runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)


def test_first_names_have_an_example():
    rooms = (bnjax, bnjax.normalization, bnjax.models, bnjax.data)
    named = {
        f"{room.__name__}.{name}": getattr(room, name) for room in rooms for name in room.__all__
    }
    lacking = [
        name
        for name, value in named.items()
        if (inspect.isfunction(value) or inspect.isclass(value))
        and name.rpartition(".")[2] not in WITHOUT
        and ">>>" not in (inspect.getdoc(value) or "")
    ]
    assert not lacking
