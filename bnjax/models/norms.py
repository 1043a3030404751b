"""Normalizations as arguments of networks: by name, or as anything that makes a Flax layer."""

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Literal

import flax.linen as nn
import jax
from flax.typing import Dtype

from bnjax.linen import BatchNorm, BatchRenorm

Norm = Callable[..., nn.Module]
"""Makes a normalization layer: its class, a `functools.partial` of that, or a function.

It is called with `name="norm"` if it takes that. `use_running_average` (or `train`) and the
network's `dtype` reach the layer wherever it takes them: in this call if the parameter is spelled
out, else as a field that still has its default, else as an argument of `__call__`. What the maker
sets itself, it keeps.
"""

Activation = Callable[[jax.Array], jax.Array]

_FUSED: dict[Activation, Literal["relu", "sigmoid"]] = {nn.relu: "relu", nn.sigmoid: "sigmoid"}

_KINDS: dict[str, tuple[type[nn.Module], str | None]] = {  # the layer, and what the number sets
    "batch": (BatchNorm, None),
    "ghost": (BatchNorm, "batch"),
    "group": (nn.GroupNorm, "num_groups"),
    "layer": (nn.LayerNorm, None),
    "instance": (nn.InstanceNorm, None),
    "rms": (nn.RMSNorm, None),
    "batch_renorm": (BatchRenorm, None),
}


def norm_by_name(name: str, **options: Any) -> Norm | None:
    """The normalization of a name, for the `norm` of a network, which takes the name as well.

    | name | layer | values that share a mean |
    | --- | --- | --- |
    | `"batch"` | `bnjax.linen.BatchNorm` | a feature's, of all examples |
    | `"ghost:32"` | the same with `batch=32` | a feature's, of 32 examples |
    | `"group:8"` | `flax.linen.GroupNorm` | an example's, of an eighth of the features |
    | `"layer"` | `flax.linen.LayerNorm` | an example's, of all features at one position |
    | `"instance"` | `flax.linen.InstanceNorm` | an example's, of one feature |
    | `"rms"` | `flax.linen.RMSNorm` | as `"layer"`, but no mean is subtracted and no bias added |
    | `"batch_renorm"` | `bnjax.linen.BatchRenorm` | a feature's, of all batches so far |
    | `"none"` | None | |

    `"group:1"` takes all features of all positions together, which some call layer normalization
    of images. The number of groups must divide the channels of every layer: no other number is
    taken in its place.

    Args:
        name: of the table, with any positive number.
        **options: other arguments of the layer, such as `epsilon`, `momentum` or `use_scale`.

    Returns:
        A `functools.partial` of the layer's class; None for `"none"`.

    Raises:
        ValueError: for an unknown name, or a number that is missing, superfluous or not positive.
        TypeError: for an option that the layer does not have.

    Example:
        >>> norm_by_name("group:8", epsilon=1e-3).keywords
        {'num_groups': 8, 'epsilon': 0.001}
        >>> print(norm_by_name("none"))
        None
    """
    if name == "none" and not options:
        return None
    layer, number = _parse(name)
    taken = {field.name for field in fields(layer)} - {"parent", "name", *number}
    if unknown := sorted(options.keys() - taken):
        raise TypeError(
            f"norm {name!r} has no option {unknown[0]!r}; it has {', '.join(sorted(taken))}."
        )
    return functools.partial(layer, **number, **options)


def _parse(name: str) -> tuple[type[nn.Module], dict[str, int]]:
    """The class of a named normalization, and the field that the number sets."""
    kind, colon, number = name.partition(":")
    if kind not in _KINDS:
        names = [kind if field is None else f"{kind}:N" for kind, (_, field) in _KINDS.items()]
        raise ValueError(
            f"there is no norm {name!r} with such options: choose from {', '.join(names)} with a "
            "number for N, or 'none' without options; or give what makes the layer, such as "
            "functools.partial(flax.linen.GroupNorm, num_groups=8)."
        )
    layer, field = _KINDS[kind]
    if field is None:
        if colon:
            raise ValueError(f"norm {kind!r} takes no number, got {name!r}.")
        return layer, {}
    if not (number.isascii() and number.isdigit() and int(number)):
        raise ValueError(f"norm {kind!r} needs a positive number, as in '{kind}:8', got {name!r}.")
    return layer, {field: int(number)}


_by_name_alone = functools.cache(norm_by_name)  # so that networks with the same name are equal


def find_norm(norm: Norm | str | None) -> Norm | None:
    """The normalization that a network's `norm` stands for.

    Raises:
        ValueError: for a name that `norm_by_name` does not know.
        TypeError: for a layer, which cannot stand in several places, or what makes none.
    """
    if isinstance(norm, str):
        return _by_name_alone(norm)
    if isinstance(norm, nn.Module):
        raise TypeError(
            f"norm is one {type(norm).__name__} layer, but each place needs its own: give the "
            "class, or functools.partial(flax.linen.GroupNorm, num_groups=8) to set its arguments."
        )
    if norm is not None and not callable(norm):
        raise TypeError(f"norm must be a name, None, or make a layer when called, got {norm!r}.")
    return norm


class WithNorm(nn.Module):
    """A module with a field `norm`; where that is a name, what the name stands for replaces it."""

    def __post_init__(self) -> None:
        self.norm: Norm | str | None = find_norm(self.norm)
        super().__post_init__()


def accepts(norm: Norm, parameter: str) -> bool:
    """Whether what makes a normalization can be called with a keyword argument of that name."""
    parameters = inspect.signature(norm).parameters.values()
    return any(each.name == parameter or each.kind is each.VAR_KEYWORD for each in parameters)


def linear(x: jax.Array) -> jax.Array:
    """The activation that is none."""
    return x


def normalize_and_activate(
    module: nn.Module,
    x: jax.Array,
    norm: Norm | str | None,
    activation: Activation,
    *,
    train: bool,
    dtype: Dtype | None = None,
) -> jax.Array:
    """The nonlinearity of the normalized `x`, in the compact method of `module`.

    The normalization is a submodule with the name `norm`, whatever it is. The nonlinearity's input
    is kept as `preactivation` in the collection `intermediates`, if mutable; otherwise bnjax's
    batch normalization applies the nonlinearity where it can, see `fuses_activation`.
    """
    norm = find_norm(norm)
    if norm is not None:
        settings = {"use_running_average": not train, "train": train}
        layer, settings = _make(norm, settings if dtype is None else {**settings, "dtype": dtype})
        changes = _open_fields(layer, settings)
        if not module.is_mutable_collection("intermediates") and _fuses(layer, activation):
            changes["activation"] = _FUSED[activation]
            activation = linear
        layer = _placed(layer, module, changes)
        _check_values_per_mean(layer, x.shape)
        x = layer(x, **_call_arguments(layer, settings))
    module.sow("intermediates", "preactivation", x)
    return activation(x)


def fuses_activation(norm: Norm | str | None, activation: Activation) -> bool:
    """Whether the normalization applies the nonlinearity itself, which saves memory in training.

    The backward pass then keeps one array for both. It is so for `flax.linen.relu` and
    `flax.linen.sigmoid` themselves (not for functions around them), after a
    `bnjax.linen.BatchNorm` or `BatchRenorm`, however it is made, or a subclass that does not
    override `__call__`, without an `activation` of its own. The values are the same within
    rounding. A pass with a mutable collection `intermediates` keeps the two apart.

    Raises:
        ValueError, TypeError: as `find_norm`.

    Example:
        >>> fuses_activation("batch", nn.relu), fuses_activation("layer", nn.relu)
        (True, False)
    """
    norm = find_norm(norm)
    if norm is None:
        return False
    layer, _ = _make(norm, {"use_running_average": True, "train": False})
    return _fuses(layer, activation)


def _fuses(layer: nn.Module, activation: Activation) -> bool:
    return (
        activation in _FUSED
        and isinstance(layer, BatchNorm)
        and type(layer).__call__ in (BatchNorm.__call__, BatchRenorm.__call__)
        and layer.activation is None
    )


def _make(norm: Norm, settings: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """A layer, and the settings that are not the maker's own.

    Only parameters that are spelled out are told: behind a function's `**options` may be any layer,
    also one that does not take them. What the layer lacks then is for the caller to see.
    """
    own = norm.keywords if isinstance(norm, functools.partial) else {}
    settings = {name: value for name, value in settings.items() if name not in own}
    parameters = inspect.signature(norm).parameters
    told = {name: value for name, value in settings.items() if name in parameters}
    if accepts(norm, "name"):
        told["name"] = "norm"
    layer = norm(**told)
    if not isinstance(layer, nn.Module):
        raise TypeError(
            f"norm must make a flax.linen.Module, got {layer!r} of type {type(layer).__name__}."
        )
    return layer, settings


def _open_fields(layer: nn.Module, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that are fields of the layer and that nothing has set."""
    defaults = {field.name: field.default for field in fields(layer) if field.init}
    return {
        name: value
        for name, value in settings.items()
        if name in defaults and getattr(layer, name) is defaults[name]
    }


def _call_arguments(layer: nn.Module, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that `__call__` takes; not those that are fields too, for one of both is all."""
    parameters = inspect.signature(type(layer).__call__).parameters
    taken = parameters.keys() - {field.name for field in fields(layer)}
    return {name: value for name, value in settings.items() if name in taken}


def _placed(layer: nn.Module, module: nn.Module, changes: dict[str, Any]) -> Any:
    """The layer with other fields, as the submodule `norm` of `module`."""
    if layer.parent is not module or layer.name != "norm":
        return layer.clone(parent=module, name="norm", **changes)
    # Flax gives a name away only once: a copy takes over the scope that came with it.
    return layer.clone(parent=layer.scope, **changes) if changes else layer


def _check_values_per_mean(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """Refuses groups that do not fit, and means of one value, which would leave only zeros."""
    where = f"{type(layer).__name__} at {'/'.join(layer.path)}"
    values = None
    if isinstance(layer, nn.GroupNorm) and layer.reduction_axes is None:
        values = math.prod(shape[1:]) // _groups(layer, shape[-1], where)
    elif isinstance(layer, nn.InstanceNorm) and layer.feature_axes == -1:
        values = math.prod(shape[1:-1])
    elif isinstance(layer, nn.LayerNorm) and layer.reduction_axes == -1:
        values = shape[-1]
    if values == 1 and layer.axis_name is None:
        raise ValueError(
            f"{where}: an input of shape {shape} has one value for each mean, and any output would "
            "be zero: use another norm, such as 'batch' or 'group:1', or larger images."
        )


def _groups(layer: nn.GroupNorm, channels: int, where: str) -> int:
    """How many groups the channels make; Flax's own errors do not name the layer."""
    sizes = {"num_groups": layer.num_groups, "group_size": layer.group_size}
    given = {name: size for name, size in sizes.items() if size is not None}
    if len(given) != 1:
        raise ValueError(
            f"{where}: give num_groups, or num_groups=None and group_size; got {sizes}."
        )
    ((name, size),) = given.items()
    if size < 1 or channels % size:
        divisors = [str(n) for n in range(1, channels + 1) if not channels % n]
        raise ValueError(
            f"{where}: {name}={size} does not divide the {channels} channels here: use a number "
            f"that divides those of every layer (here {', '.join(divisors)}), or another width."
        )
    return size if name == "num_groups" else channels // size
