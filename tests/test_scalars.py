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
