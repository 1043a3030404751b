"""Arguments are checked in one wording, that of normalization, which stands for itself, too."""

import re
from typing import Literal

import numpy as np
import pytest

from bnjax import scalars
from bnjax.normalization import settings


@pytest.mark.parametrize("check_choice", [scalars.check_choice, settings.check_choice])
@pytest.mark.parametrize("value", ["c", 1, ["a"], np.ones(2)])
def test_unknown_choices_are_refused_with_those_that_are_known(check_choice, value):
    said = f"how must be one of 'a', 'b', got {value!r}."
    for choices in (Literal["a", "b"], ("a", "b"), {"a": 1, "b": 2}):
        check_choice("how", "b", choices)
        with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
            check_choice("how", value, choices)


def test_integers_have_a_lower_bound():
    assert scalars.integer("count", np.int32(2), least=2) == 2
    assert scalars.integer("count", -1) == -1
    with pytest.raises(ValueError, match=r"^count must be >= 2, got 1\.$"):
        scalars.integer("count", np.int32(1), least=2)
    for value in (True, 2.0, "2", None):
        with pytest.raises(ValueError, match=r"^count must be an integer, got "):
            scalars.integer("count", value, least=0)
