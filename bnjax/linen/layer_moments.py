"""The moments of every layer of a model, for new statistics; and what a model must be for them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bnjax.linen.layers import BatchNorm, BatchRenorm, keep
from bnjax.normalization.meshes import is_mapped, mapped_names
from bnjax.normalization.moments import Moments

Variables = Any


def model_moments(model: nn.Module, variables: Variables, *args: Any, **kwargs: Any) -> Any:
    """Returns the moments of one batch in every `BatchNorm` of a model in training mode.

    `BatchRenorm` normalizes by the batch alone meanwhile: not towards statistics that are old.
    Layers under `nn.scan`, `nn.vmap`, `nn.remat` and the like count if `batch_stats` is lifted with
    a variable axis, as training needs it. Of a layer's `axis_name`, axes that nothing maps are left
    out: the batch that is given is then the whole one; or, with `batch="device"`, a device's.

    Args:
        model: a module that contains `BatchNorm` layers.
        variables: its variables; not changed.
        *args: arguments of the model, as for `model.apply`.
        **kwargs: the same, by name; whatever puts the model in training mode.

    Returns:
        The tree of `batch_stats`, with `Moments` in the place of each layer's statistics: what
        `bnjax.population_stats` averages.

    Raises:
        TypeError: `model` is no Linen module, `variables` no dict, or one of `args` a dict that the
            model cannot take.
        ValueError: `variables` are `params` alone; or a layer is called twice: its population is
            not that of either batch; or it has `axis_index_groups` of axes that nothing maps.

    Example:
        >>> layer, x = BatchNorm(use_running_average=False), jnp.arange(12.0).reshape(4, 3)
        >>> model_moments(layer, layer.init(jax.random.key(0), x), x).mean.tolist()
        [4.5, 5.5, 6.5]
    """
    check_linen(model)
    check_variables(variables)
    with naming_dicts(model, args):
        return moments_and_frozen(model, variables, *args, **kwargs)[0]


def check_linen(model: Any) -> None:
    """Raises TypeError for a model that is no Linen module, such as one of NNX."""
    if isinstance(model, nn.Module):
        return
    given = model if isinstance(model, type) else type(model)
    what = "the class " if isinstance(model, type) else ""
    raise TypeError(
        f"model must be a Linen module, an instance of flax.linen.Module, got {what}"
        f"{given.__module__}.{given.__qualname__}; bnjax has no counterpart for NNX."
    )


def check_variables(variables: Any) -> None:
    """Raises an error for what are no collections, such as `params` alone; there may be none."""
    said = (
        "variables must have collections, {'params': ..., 'batch_stats': ...}, as model.init "
        "returns them"
    )
    if not isinstance(variables, Mapping):
        raise TypeError(f"{said}, got {type(variables).__name__}.")
    if variables and not {"params", "batch_stats"} & variables.keys():
        raise ValueError(f"{said}, got a dict of {', '.join(map(str, variables))}.")


@contextmanager
def naming_dicts(model: nn.Module, args: Sequence[Any]) -> Iterator[None]:
    """Has the errors of a model that a dict reaches, in place of an array, say so."""
    try:
        yield
    except (AttributeError, IndexError, TypeError) as error:  # of `x.ndim`, `x.shape[-1]`, `x + 1`
        given = next((arg for arg in args if isinstance(arg, Mapping)), None)
        if given is None or isinstance(error, jax.errors.JAXTypeError):
            raise
        raise TypeError(
            f"a dict goes to {type(model).__name__} whole, as one argument, and fails there "
            f"({error}): give arrays, for example batch[{next(iter(given), 'image')!r}]."
        ) from error


def moments_and_frozen(
    model: nn.Module, variables: Variables, *args: Any, **kwargs: Any
) -> tuple[Any, dict[str, None]]:
    """Returns `model_moments`, and the paths of layers, of any library, that move nothing."""
    frozen: dict[str, None] = {}
    reported: set[tuple[str, ...]] = set()

    def keep_and_report(layer: BatchNorm, moments: Moments) -> None:
        reported.add(layer.path)
        _keep_moments(layer, moments)

    def intercept(next_call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        layer = context.module
        if context.method_name != "__call__":
            return next_call(*args, **kwargs)
        if isinstance(layer, BatchNorm) and layer.axis_name is not None:
            mapped = _mapped(layer)
            if mapped != layer.axis_name:
                batch = "all" if mapped is None and layer.batch == "device" else layer.batch
                here = layer.clone(parent=layer.scope, axis_name=mapped, batch=batch)
                return here(*args, **kwargs)
        if isinstance(layer, BatchNorm) and layer.has_variable("batch_stats", "moments"):
            raise _called_twice(layer.path)
        if isinstance(layer, BatchRenorm):
            kwargs = {**kwargs, "r_max": 1.0, "d_max": 0.0}
        before = _statistics(layer)
        y = next_call(*args, **kwargs)
        if before and before == _statistics(layer) and layer.path not in reported:
            frozen["/".join(layer.path)] = None
        return y

    keeping = keep.set(keep_and_report)
    # The collection has no variables: it only keeps nn.jit from taking what it traced in training.
    try:
        with nn.intercept_methods(intercept):
            _, updates = model.apply(
                variables, *args, mutable=["batch_stats", "batch_moments"], **kwargs
            )
    except TypeError as error:
        if reported and "'moments'" in str(error):  # of a loop that carries batch_stats
            raise _called_twice(*sorted(reported)) from error
        raise
    finally:
        keep.reset(keeping)
    return _moments_in(updates.get("batch_stats", {})), frozen


def _called_twice(*paths: tuple[str, ...]) -> ValueError:
    names = " or ".join("/".join(path) or "(top)" for path in paths)
    return ValueError(
        f"BatchNorm at {names} is called twice in a pass, and has one pair of statistics for two "
        "populations: give each call its own layer."
    )


def _keep_moments(layer: BatchNorm, moments: Moments) -> None:
    """Keeps them beside the statistics: what lifts those (nn.scan, nn.vmap) then lifts both."""
    if layer.is_mutable_collection("batch_stats"):
        size = jnp.broadcast_to(moments.size, moments.mean.shape)
        layer.put_variable("batch_stats", "moments", moments._replace(size=size))


def _statistics(layer: nn.Module) -> tuple[int, ...]:
    """Returns the identities of the arrays: others, when a call has moved the statistics."""
    return tuple(
        id(layer.get_variable("batch_stats", name))
        for name in ("mean", "var")
        if layer.scope is not None and layer.has_variable("batch_stats", name)
    )


def _mapped(layer: BatchNorm) -> Any:
    """Returns the axes of the layer's `axis_name` that are mapped here."""
    names = mapped_names(layer.axis_name)
    mapped = tuple(filter(is_mapped, names))
    if len(mapped) == len(names):
        return layer.axis_name
    if layer.axis_index_groups is not None:
        raise ValueError(
            f"BatchNorm at {'/'.join(layer.path) or '(top)'}: axis_index_groups are of the devices "
            f"along {layer.axis_name!r}, which nothing maps here: call under shard_map or pmap."
        )
    return mapped or None


def _moments_in(tree: Any) -> Any:
    """Returns the `Moments` that were kept, by the path of their layer."""
    if isinstance(tree.get("moments"), Moments):
        return tree["moments"]
    found = {key: _moments_in(node) for key, node in tree.items() if isinstance(node, Mapping)}
    return {key: node for key, node in found.items() if node}
