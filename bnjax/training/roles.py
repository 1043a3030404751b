"""The roles of parameters, told by their paths; the switches "train" and "decay" name roles."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, get_args

import jax
from jax.tree_util import GetAttrKey, KeyPath, keystr

Tree = Any

Role = Literal["kernel", "bias", "scale", "normalization bias"]
"""A `"kernel"` multiplies activations, its layer adds the `"bias"`. A normalization has a
`"scale"` (gamma) and a `"normalization bias"` (beta)."""

ROLES: tuple[Role, ...] = get_args(Role)

Roles = Callable[[Tree], Tree]
"""A tree of parameters to the same tree of roles: `parameter_roles`, or one with `named` given."""


def parameter_roles(params: Tree, named: Mapping[str, Role] | None = None) -> Tree:
    """Returns the role of each parameter.

    A `kernel` of rank 2 or more and a `scale` are what they are called. A `bias` belongs to a
    normalization beside a `scale`, to a layer beside anything else. Where it is alone, as in a
    normalization without scale, the module must have `norm` in its name, or begin with `bn`.

    Args:
        params: those of a Linen model (`variables["params"]`) or an NNX model (`nnx.state(model,
            nnx.Param)`); arrays, or their shapes.
        named: roles of parameters with other names, for example `{"embedding": "kernel"}`.

    Returns:
        The tree with a `Role` in the place of each array.

    Raises:
        ValueError: with the path of the first parameter whose role is unknown.

    Example:
        >>> params = {"conv": {"kernel": jnp.ones((3, 3, 1, 2))}}
        >>> params["norm"] = {"scale": jnp.ones(2), "bias": jnp.zeros(2)}
        >>> parameter_roles(params)["norm"]
        {'bias': 'normalization bias', 'scale': 'scale'}
    """
    named = {} if named is None else named
    check_roles("named", named.values())
    siblings: dict[tuple[str, ...], set[str]] = {}
    for path, _ in jax.tree_util.tree_leaves_with_path(params):
        *parents, leaf = _names(path)
        siblings.setdefault(tuple(parents), set()).add(leaf)

    def role(path: KeyPath, value: Any) -> Role:
        *parents, leaf = _names(path)
        beside = siblings[tuple(parents)] - {leaf}
        if leaf in named:
            return named[leaf]
        if leaf == "kernel" and value.ndim >= 2:
            return "kernel"
        if leaf == "scale":
            return "scale"
        if leaf == "bias" and "scale" in beside:
            return "normalization bias"
        if leaf == "bias" and beside:
            return "bias"
        if leaf == "bias" and parents and _is_normalization(parents[-1]):
            return "normalization bias"
        raise ValueError(
            f"the role of params{keystr(path)} of shape {value.shape} is unknown: it is no kernel "
            "of rank 2 or more, no scale, and no bias of either; give it by name, for example "
            f"named={{{leaf!r}: 'kernel'}}."
        )

    return jax.tree.map_with_path(role, params)


def role_mask(chosen: Collection[Role], roles: Roles = parameter_roles) -> Callable[[Tree], Tree]:
    """Makes a function from parameters to a tree of bools, True where chosen, for `optax.masked`.

    Raises:
        ValueError: for an unknown role.

    Example:
        >>> decayed = role_mask({"kernel"})
        >>> decayed({"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}})
        {'dense': {'bias': False, 'kernel': True}}
        >>> tx = optax.add_decayed_weights(1e-4, mask=decayed)
    """
    check_roles("chosen", chosen)
    return lambda params: jax.tree.map(lambda role: role in chosen, roles(params))


def check_roles(name: str, given: Collection[str]) -> None:
    """Raises ValueError unless this is a collection of roles, and not a single string."""
    unknown = [given] if isinstance(given, str) else [role for role in given if role not in ROLES]
    if unknown:
        raise ValueError(f"{name} must hold roles out of {ROLES}, got {unknown[0]!r}.")


def _names(path: KeyPath) -> tuple[str, ...]:
    """Returns the keys of a path, without the `value` that NNX adds to it."""
    if isinstance(path[-1], GetAttrKey) and path[-1].name == "value":
        path = path[:-1]
    return tuple(keystr((key,), simple=True) for key in path)


def _is_normalization(module: str) -> bool:
    return "norm" in module.lower() or module.lower().startswith("bn")
