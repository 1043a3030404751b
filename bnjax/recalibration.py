"""Statistics for given weights, from fresh batches: precise BN for Linen models.

Averaged weights (EMA, SWA) need it: no training step ever saw their activations.

    variables = {"params": averaged, "batch_stats": state.batch_stats}
    variables = recalibrate(model, variables, itertools.islice(batches, 200), train=True)
"""

import dataclasses
import inspect
from collections.abc import Hashable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bnjax.linen import check_linen, check_variables, moments_and_frozen, naming_dicts
from bnjax.normalization.complex_numbers import as_complex
from bnjax.normalization.meshes import divided_like
from bnjax.normalization.moments import Moments
from bnjax.normalization.population import (
    Estimator,
    add_batch,
    check_choices,
    finish_estimate,
    start_estimate,
)
from bnjax.normalization.settings import RunningVar

Variables = Mapping[str, Any]


def recalibrate(
    model: nn.Module,
    variables: Variables,
    batches: Iterable[Any],
    *,
    estimator: Estimator = "batchwise",
    running_var: RunningVar = "unbiased",
    rngs: Mapping[str, jax.Array] | None = None,
    **settings: Hashable,
) -> dict[str, Any]:
    """Returns the variables with new statistics in each `bnjax.linen.BatchNorm`, by forward passes.

    Every layer runs in training mode, on what the layers below made of the same batch, normalized
    by that batch's moments: use batches as large as in training, and shuffled. Weights and the
    statistics passed in are not changed, hence evaluating in the middle of training is safe. One
    step is compiled for each shape of a batch, and kept for the next call with an equal model.

    On several devices: place each batch sharded by examples, and the variables replicated. Layers
    then share the batch as one, whatever their `axis_name`, and the statistics are those of one
    device. Under `pmap` or `shard_map`, see `bnjax.population_stats`.

    Args:
        model: contains `BatchNorm` layers, which `nn.scan`, `nn.vmap` and the like may lift.
        variables: `params`, and any other collection the model reads. `batch_stats` may be absent.
        batches: read once, one at a time, and need not fit into memory. A tuple holds positional
            arguments of the model; anything else is its only one: drop labels beforehand, with
            `(batch["image"] for batch in loader)`. Limit an endless one with `itertools.islice`.
        estimator: see `bnjax.population_stats`. `"batchwise"` counts a smaller last batch as much
            as any other; `"weighted"` and `"pooled"` weigh it by its count.
        running_var: `"unbiased"` as in Algorithm 2, or `"biased"`.
        rngs: keys for dropout and the like; folded with the number of the batch.
        **settings: keyword arguments of the model, hashable; what puts it into training mode. Also
            those of `apply`, such as `method`.

    Returns:
        `variables` with other `batch_stats`. Layers that are not in training mode (frozen) keep
        theirs, and so do features that are masked in all batches; `count` stays as it is.

    Raises:
        ValueError: if there is no batch, if no layer is in training mode, if one is called twice,
            for layers of `batch_stats` that cannot be recalibrated (of another library, or not
            called), for `params` alone as `variables`, or for a bad choice.
        TypeError: if `model` is no Linen module, `variables` no dict, `batches` one batch alone, a
            tuple more than the model takes, a dict where it takes an array, or if a setting cannot
            be hashed.

    Example:
        >>> from bnjax.linen import BatchNorm
        >>> model, x = BatchNorm(momentum=0.9), jnp.arange(12.0).reshape(4, 3)
        >>> variables = model.init(jax.random.key(0), x, True)
        >>> batches = [x, x + 2]
        >>> precise = recalibrate(model, variables, batches, use_running_average=False)
        >>> precise["batch_stats"]["mean"].tolist()  # the mean of both batches
        [5.5, 6.5, 7.5]
    """
    check_linen(model)
    check_variables(variables)
    check_choices(estimator, running_var)
    _check_iterable(batches)
    static = _Static(model), tuple(sorted(settings.items()))
    try:
        hash(static)
    except TypeError as error:
        raise TypeError(
            f"settings {sorted(settings)} must be hashable ({error}): give arrays with the "
            "batches, as a tuple of the model's arguments, and tuples instead of lists."
        ) from error

    add = partial(_add, estimator=estimator, running_var=running_var)
    estimate = None
    for index, batch in enumerate(batches):
        arguments = batch if isinstance(batch, tuple) else (batch,)
        _check_arguments(model, arguments, settings)
        # Otherwise batches would pile up before a slower device. The next one is loaded meanwhile.
        jax.block_until_ready(estimate)
        with naming_dicts(model, arguments):
            moments, frozen = _moments(*static, variables, arguments, dict(rngs or {}), index)
        if estimate is None:
            _check_layers(_paths(variables.get("batch_stats", {})), moments, frozen, settings)
            estimate = start_estimate(moments, estimator)
        estimate = add(estimate, moments)
    if estimate is None:
        raise ValueError("batches is empty: recalibrate needs one batch or more.")
    population = finish_estimate(estimate, estimator=estimator, running_var=running_var)
    return {**variables, "batch_stats": _replace(variables.get("batch_stats", {}), population)}


def _check_iterable(batches: Any) -> None:
    """Refuses one batch alone, whose examples would each be taken for a batch."""
    if isinstance(batches, Mapping | jax.Array | np.ndarray):
        shape = "" if isinstance(batches, Mapping) else f" of shape {batches.shape}"
        raise TypeError(
            f"batches must be an iterable of batches, got one {type(batches).__name__}{shape}: "
            "pass [x] for one batch x, list(x) for a stack of them."
        )


def _check_arguments(
    model: nn.Module, arguments: tuple[Any, ...], settings: Mapping[str, Any]
) -> None:
    """Refuses a tuple with more than the model takes, such as labels."""
    method = _method(model, settings.get("method"))
    if len(arguments) < 2 or not callable(method):  # what is no method, `apply` refuses
        return
    try:
        taken = inspect.signature(method).bind_partial(model, *arguments).arguments
        if twice := sorted(settings.keys() & taken.keys()):
            raise TypeError(f"it gives {', '.join(twice)}, too")
    except TypeError as error:
        raise TypeError(
            "a batch that is a tuple holds positional arguments of the model, and "
            f"{type(model).__name__}.{getattr(method, '__name__', method)} does not take these "
            f"{len(arguments)} ({error}): drop labels, with (x for x, y in batches)."
        ) from error


def _method(model: nn.Module, method: Any) -> Any:
    """Returns the function, of the model and its arguments, that `apply` calls."""
    if method is None or isinstance(method, str):
        return getattr(type(model), method or "__call__", None)
    return getattr(method, "__func__", method)  # of a bound one


class _Static:
    """A model that `jax.jit` recognizes, by the values of its fields where they have no hash."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._key = _key(model)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and self._key == other._key


def _key(value: Any) -> Hashable:
    """Returns equal keys for equal values, and a new object for what cannot be compared."""
    # What has parts comes first: its own hash would tell equal partials apart.
    if isinstance(value, nn.Module):
        names = [field.name for field in dataclasses.fields(value) if field.name != "parent"]
        return type(value), *(_key(getattr(value, name)) for name in names)
    if isinstance(value, partial):
        return partial, *map(_key, (value.func, value.args, value.keywords))
    if isinstance(value, list | tuple | set):
        return type(value), *map(_key, value)
    if isinstance(value, Mapping):
        return type(value), *((_key(name), _key(entry)) for name, entry in value.items())
    with suppress(TypeError):
        hash(value)
        return value
    if isinstance(value, np.ndarray | jax.Array):
        with suppress(TypeError):  # keys
            return type(value), value.shape, value.dtype, np.asarray(value).tobytes()
    return object()


@partial(jax.jit, static_argnums=(0, 1))
def _moments(
    static: _Static,
    settings: tuple[tuple[str, Hashable], ...],
    variables: Variables,
    arguments: tuple[Any, ...],
    rngs: dict[str, jax.Array],
    index: jax.Array,
) -> tuple[Any, dict[str, None]]:
    rngs = {name: jax.random.fold_in(key, index) for name, key in rngs.items()}
    return moments_and_frozen(static.model, variables, *arguments, rngs=rngs, **dict(settings))


def _check_layers(
    layers: list[str], moments: Any, frozen: Iterable[str], settings: Mapping[str, Any]
) -> None:
    """Every layer must have moments or be frozen, and one at least have moments."""
    seen = _paths(moments)
    missing = sorted({*layers} - {*seen, *frozen})
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(layers)} layers in batch_stats cannot be recalibrated: "
            f"{', '.join(path or '(top)' for path in missing)}. Each must be a "
            "bnjax.linen.BatchNorm, be called in this pass, and have batch_stats mutable (under "
            f"nn.scan and nn.vmap: in variable_axes); got settings {settings}."
        )
    if not seen:
        what = "the model has no BatchNorm" if not frozen else "all layers use their statistics"
        raise ValueError(
            f"no bnjax.linen.BatchNorm of the model is in training mode ({what}): pass what puts "
            f"it there, for example train=True; got settings {settings}."
        )


def _paths(tree: Any, path: tuple[str, ...] = ()) -> list[str]:
    """The paths of the layers in a tree of statistics or `Moments`."""
    if isinstance(tree, Moments) or {"mean", "var"} <= {*tree}:
        return ["/".join(path)]
    nodes = ((key, node) for key, node in tree.items() if isinstance(node, Mapping | Moments))
    return [name for key, node in nodes for name in _paths(node, (*path, key))]


_add = jax.jit(add_batch, static_argnames=("estimator", "running_var"))


def _replace(old: Mapping[str, Any], new: Any) -> dict[str, Any]:
    """Returns `old` with the mean and variance of the layers that `new` has `Moments` for."""
    if not isinstance(new, Moments):
        return {**old, **{key: _replace(old.get(key, {}), value) for key, value in new.items()}}
    seen = new.size > 0
    initial = {"mean": jnp.zeros_like(new.mean), "var": jnp.ones_like(new.var)} | dict(old)

    def replaced(before: jax.Array, value: jax.Array) -> jax.Array:
        if jnp.iscomplexobj(value):  # the mean of a layer that has not trained is real
            before = as_complex(before)
        given = divided_like(value.astype(before.dtype), before)
        return jnp.where(divided_like(seen, before), given, before)

    values = {"mean": replaced(initial["mean"], new.mean), "var": replaced(initial["var"], new.var)}
    return {**old, **values}
