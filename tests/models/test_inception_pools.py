"""Max pools of stride 2 at odd and even sizes, against their definitions."""

import jax.numpy as jnp
import numpy as np
import pytest

from bnjax.models.inception import halve

ROWS = {  # first and last row of each window, of 3 or 2 rows, before they are cut at the border
    ("SAME", 6, 3): [(0, 2), (2, 4), (4, 6)],
    ("CEIL", 6, 3): [(0, 2), (2, 4), (4, 6)],
    ("SAME", 7, 3): [(-1, 1), (1, 3), (3, 5), (5, 7)],
    ("CEIL", 7, 3): [(0, 2), (2, 4), (4, 6)],
    ("SAME", 7, 2): [(0, 1), (2, 3), (4, 5), (6, 7)],
    ("CEIL", 7, 2): [(0, 1), (2, 3), (4, 5), (6, 7)],
    ("CEIL", 3, 3): [(0, 2)],
    ("CEIL", 1, 2): [(0, 1)],
}


@pytest.mark.parametrize(("rule", "rows", "size"), ROWS)
def test_windows_lie_where_the_rule_says(rule, rows, size):
    """All values are negative, so that a border of zeros would show; columns have another size."""
    x = -1 - np.random.default_rng(0).random((2, rows, 8, 3), np.float32)
    y = np.asarray(halve(jnp.asarray(x), size, rule))
    assert y.shape == (2, len(ROWS[rule, rows, size]), 4, 3)
    for i, (first, last) in enumerate(ROWS[rule, rows, size]):
        for j in range(4):
            window = x[:, max(0, first) : last + 1, 2 * j : 2 * j + size]
            np.testing.assert_array_equal(y[:, i, j], window.max((1, 2)))
