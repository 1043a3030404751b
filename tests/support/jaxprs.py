"""What a traced program consists of."""

import jax


def equations(jaxpr):
    """Those of a program and of the programs inside."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
        ):
            if hasattr(value, "eqns"):
                yield from equations(value)
