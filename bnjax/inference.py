"""A trained Linen model made ready for inference: normalization folded, exported to a file.

folded = fold_model(model, variables, images, train=False)
logits = folded.apply(folded.variables, images, train=False)
data = export(folded.apply, folded.variables, images, train=False)

import jax.export  # what follows needs no code but JAX's
logits = jax.export.deserialize(bytearray(data)).call(images)
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from bnjax.dataflow import Call, Dataflow, Path, Site, is_call, split_arrays, trace
from bnjax.linen import BatchNorm, BatchRenorm, check_linen, check_variables, naming_dicts
from bnjax.normalization import folding
from bnjax.normalization.axes import sorted_axes

Variables = Any
Flat = dict[Path, Any]

Folds = dict[Path, tuple[Call, Path]]
"""The path of each normalization, with its call and the path of the layer that takes it."""

LAYERS = (nn.Conv, nn.ConvLocal, nn.ConvTranspose, nn.Dense, nn.DenseGeneral)
"""Layers into which a normalization can be folded."""

NORMS = (BatchNorm, BatchRenorm, nn.BatchNorm)

ACTIVATIONS: dict[str | None, Callable[[jax.Array], jax.Array]] = {
    None: lambda x: x,
    "relu": nn.relu,
    "sigmoid": nn.sigmoid,
}
"""Nonlinearities that a normalization may apply to its output, by its `activation`."""


PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
"""Platforms that JAX lowers for. It also accepts unknown names, for programs that are the same on
all platforms, hence the check in `export`."""


class Folded(NamedTuple):
    """A model whose normalization is folded where that is possible.

    Attributes:
        apply: `apply(variables, *args, **kwargs)`, as `model.apply`, in inference mode alone.
        variables: nested dicts of arrays. A layer that took a normalization has `kernel` and
            `bias`, the normalization has nothing: what the model without it would have.
        folded: path of each folded normalization: that of the layer that took it.
        kept: path of each other normalization: the reason.
    """

    apply: Callable[..., Any]
    variables: Variables
    folded: dict[str, str]
    kept: dict[str, str]


def fold_model(model: nn.Module, variables: Variables, *args: Any, **kwargs: Any) -> Folded:
    """Folds each `BatchNorm`, ours or Flax's, into the layer before it where that is possible.

    `BatchRenorm`, which is the same in inference, is meant wherever `BatchNorm` is named.

    The model is traced, not run. A normalization is folded if its input is the very output of one
    of `LAYERS`, and nothing else uses that output or the variables of the two. It stays if one of
    them is called twice or inside `nn.scan`, `nn.cond` and the like, if its features are not the
    layer's, if a subclass has a `__call__` of its own, or if `bnjax.fold` refuses their variables,
    such as complex ones. A convolution's own implementation, if given, must be linear in the
    kernel. A mutable `batch_stats` is returned, hence used: leave it out of `kwargs`.

    Outputs keep their dtype and are equal within the rounding that folding itself costs, see
    `bnjax.normalization.folding.fold`. The `activation` of a normalization is applied.

    Args:
        model: the trained module, of Linen.
        variables: its variables; boxes around arrays, as of `nn.with_partitioning`, come off.
        *args: arguments of `model.apply`, of whose arrays only shapes and dtypes matter:
            `jax.ShapeDtypeStruct`s will do. What is no array is static.
        **kwargs: the same, by name; among them whatever puts the model in inference mode.

    Returns:
        The folded model, and what became of each normalization.

    Raises:
        TypeError: if `model` is no Linen module, `variables` no dict, or one of `args` a dict that
            the model cannot take.
        ValueError: if a normalization is in training mode, or `variables` are `params` alone.

    Example:
        >>> from bnjax.linen import BatchNorm
        >>> model = nn.Sequential([nn.Dense(3), BatchNorm(use_running_average=True)])
        >>> x = jnp.ones((4, 2))
        >>> folded = fold_model(model, model.init(jax.random.key(0), x), x)
        >>> folded.folded
        {'layers_1': 'layers_0'}
        >>> jax.tree.map(jnp.shape, folded.variables)
        {'params': {'layers_0': {'bias': (3,), 'kernel': (2, 3)}}}
    """
    check_linen(model)
    check_variables(variables)
    flat = flatten_dict(nn.meta.unbox(variables))
    with naming_dicts(model, args):
        flow = trace(model, flat, args, kwargs, _is_layer)
    folds, kept = _plan(flow)
    for collection, *path, key in flat:
        if (collection, key) == ("batch_stats", "mean") and tuple(path) not in folds | kept:
            kept[tuple(path)] = "these arguments do not call it, or not as a plain BatchNorm"
    layers = {layer for _, layer in folds.values()}
    touched = {path: flat.pop(path) for path in list(flat) if path[1:-1] in layers | folds.keys()}
    dtypes = {path: norm.y.dtype for path, (norm, _) in folds.items()}
    biases = frozenset(layer for layer in layers if ("params", *layer, "bias") not in touched)
    flat |= jax.jit(lambda touched: _fold_all(touched, folds))(touched)
    return Folded(
        _folded_apply(model, dtypes, biases),
        unflatten_dict(flat),
        {"/".join(path): "/".join(layer) for path, (_, layer) in folds.items()},
        {"/".join(path): reason for path, reason in kept.items()},
    )


def export(
    apply: Callable[..., Any],
    variables: Variables,
    *args: Any,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    **kwargs: Any,
) -> bytes:
    """Serializes a model, its variables included, for several platforms and any batch size.

    None of the platforms need be at hand. Adds to `jax.export` that the number of examples stays
    open, and that variables and static arguments are part of the file.

    Args:
        apply: `apply(variables, *args, **kwargs)`, for example of `Folded`.
        variables: what it is to be called with.
        *args: its other arguments; of arrays, all of which have the examples on their first axis,
            only shapes and dtypes matter. What is no array is static.
        **kwargs: the same, by name.
        platforms: where the file is to run, of `PLATFORMS`.

    Returns:
        A file's contents, for `jax.export.deserialize(bytearray(data)).call(...)`, which takes the
        array arguments alone, the positional ones in order, then those by name, sorted.

    Raises:
        ValueError: if there is no array, or one has no axis of examples, or for a platform that
            is none of `PLATFORMS`.

    Example:
        >>> def model(variables, x):
        ...     return x * variables["scale"]
        >>> file = export(model, {"scale": jnp.array(2.0)}, jnp.ones((1, 2)))
        >>> jax.export.deserialize(bytearray(file)).call(jnp.ones((3, 2))).tolist()
        [[2.0, 2.0], [2.0, 2.0], [2.0, 2.0]]
    """
    if unknown := set(platforms) - set(PLATFORMS):
        raise ValueError(f"platforms must be of {PLATFORMS}, got {sorted(unknown)}.")
    arrays, put_back = split_arrays((args, kwargs))
    if not arrays or any(array.ndim == 0 for array in arrays):
        raise ValueError(
            "the model's arguments must be arrays with the examples on their first axis, got "
            f"shapes {[array.shape for array in arrays]}."
        )
    (examples,) = jax.export.symbolic_shape("examples")
    shapes = [jax.ShapeDtypeStruct((examples, *a.shape[1:]), a.dtype) for a in arrays]
    values = jax.device_get(variables)  # on many devices, they would tie the file to as many

    def model(*arrays: jax.Array) -> Any:
        args, kwargs = put_back(arrays)
        return apply(jax.tree.map(jnp.asarray, values), *args, **kwargs)

    try:
        exported = jax.export.export(jax.jit(model), platforms=platforms)(*shapes)
    except (TypeError, ValueError) as error:
        error.add_note("The number of examples is open: it is x.shape[0]; len(x) would fix it.")
        raise
    return bytes(exported.serialize())


def _is_one_of(module: nn.Module, classes: tuple[type[nn.Module], ...]) -> bool:
    """Whether the module has the `__call__` of one of the classes: a subclass may change it."""
    return type(module).__call__ in [each.__call__ for each in classes]


def _is_layer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if _is_one_of(module, NORMS):
        _inference_input(module, *args, **kwargs)
        return True
    return _is_one_of(module, LAYERS)


def _inference_input(
    norm: nn.Module,
    x: jax.Array,
    use_running_average: bool | None = None,
    **of_training: Any,
) -> jax.Array:
    """The input of a normalization in inference, which neither masks nor updates anything."""
    del of_training
    if not nn.merge_param("use_running_average", norm.use_running_average, use_running_average):
        raise ValueError(
            f"BatchNorm at {'/'.join(norm.path) or '(top)'} is in training mode, where it cannot "
            "be folded: call the model in inference mode, for example with train=False."
        )
    return x


def _plan(flow: Dataflow) -> tuple[Folds, dict[Path, str]]:
    """The normalizations to fold, and the reasons to keep the others, by path."""
    folds: Folds = {}
    seen = {site.call.path for site in flow.sites}
    kept = {
        call.path: "it is called inside a transformation, such as nn.scan or nn.cond"
        for call in flow.calls
        if _is_one_of(call.layer, NORMS) and call.path not in seen
    }
    for norm in flow.sites:
        if not _is_one_of(norm.call.layer, NORMS):
            continue
        path = norm.call.path if norm.location is None else norm.location
        found = _taker(norm, flow)
        if isinstance(found, str):
            kept[path] = found
        else:
            folds[path] = (norm.call, found)
    return folds, kept


def _taker(norm: Site, flow: Dataflow) -> Path | str:
    """The path of the layer that can take a normalization, or the reason why none can."""
    makers = [site for site in flow.sites if site.y == norm.x]
    if not makers or not _is_one_of(makers[0].call.layer, LAYERS):
        names = ", ".join(each.__name__ for each in LAYERS)
        return f"its input is not the very output of a layer that could take it ({names})"
    (layer,) = makers
    name = "/".join(layer.call.path if layer.location is None else layer.location)
    for site, which in ((norm, "it"), (layer, name)):
        if site.location is None:
            return f"the variables of {which} are stacked, changed before use, or not its own"
        called = sum(call.path == site.location for call in flow.calls)
        if called > 1 or any(flow.uses[value] > 1 for value in site.variables):
            return f"{which} is called twice, or its variables are used or returned elsewhere"
    if flow.uses[norm.x] > 1:
        return f"the output of {name} is used elsewhere, too"
    return _misfit(norm.call, layer.call, name) or layer.location or ()


def _misfit(norm: Call, layer: Call, name: str) -> str | None:
    """Returns the reason why the two do not fit together, if there is one."""
    module = layer.layer
    if not set(layer.variables) <= {("params", "kernel"), ("params", "bias")}:
        return f"{name} has variables besides kernel and bias"
    if getattr(module, "transpose_kernel", False) or getattr(module, "batch_dims", ()):
        return f"the kernel of {name} has its features not last, or differs along a batch axis"
    features = getattr(module, "features", 1)
    most = len(features) if isinstance(features, Sequence) else 1
    axes, rank = sorted_axes(norm.x.ndim, norm.layer.axis), norm.x.ndim
    if len(axes) > most or axes != tuple(range(rank - len(axes), rank)):
        return f"its feature axes {norm.layer.axis} are not the features of {name}, which are last"
    activation = getattr(norm.layer, "activation", None)
    if activation not in ACTIVATIONS:
        return f"its activation {activation!r} is unknown here"
    refusal = _refusal(norm, layer)
    return None if refusal is None else f"it does not fold into {name}: {refusal}"


def _refusal(norm: Call, layer: Call) -> str | None:
    """Returns what `folding.fold` says against the variables of the two, if anything."""
    params, stats = (
        {key: norm.variables[collection, key] for key in _keys(norm, collection)}
        for collection in ("params", "batch_stats")
    )
    own = (layer.variables.get(("params", key)) for key in ("kernel", "bias"))
    try:
        jax.eval_shape(partial(folding.fold, epsilon=norm.layer.epsilon), *own, params, stats)
    except ValueError as error:
        return str(error)
    return None


def _fold_all(flat: Flat, folds: Folds) -> Flat:
    """The variables of the layers, without those of the normalizations they take."""
    flat = dict(flat)
    for norm_path, (norm, layer) in folds.items():
        params, stats = (
            {key: flat.pop((collection, *norm_path, key)) for key in _keys(norm, collection)}
            for collection in ("params", "batch_stats")
        )
        kernel, bias = (("params", *layer, key) for key in ("kernel", "bias"))
        own = flat.get(bias)
        flat[kernel], flat[bias] = folding.fold(
            flat[kernel], own, params, stats, epsilon=norm.layer.epsilon
        )
        if own is not None:  # or the layer would compute in another dtype
            flat[bias] = flat[bias].astype(own.dtype)
    return flat


def _keys(call: Call, collection: str) -> list[str]:
    return [key for owner, key in call.variables if owner == collection]


def _folded_apply(
    model: nn.Module, dtypes: dict[Path, jnp.dtype], biases: frozenset[Path]
) -> Callable[..., Any]:
    """`model.apply` with normalizations that only convert to `dtypes`, and with added biases."""

    def intercept(next_call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if not is_call(context) or not _is_layer(module, args, kwargs):
            return next_call(*args, **kwargs)
        if module.path in dtypes:
            activation = ACTIVATIONS[getattr(module, "activation", None)]
            return activation(_inference_input(module, *args, **kwargs)).astype(dtypes[module.path])
        y = next_call(*args, **kwargs)
        return _add(y, module.get_variable("params", "bias")) if module.path in biases else y

    def apply(variables: Variables, *args: Any, **kwargs: Any) -> Any:
        with nn.intercept_methods(intercept):
            return model.apply(variables, *args, **kwargs)

    return apply


def _add(y: jax.Array, bias: jax.Array) -> jax.Array:
    """Adds in the wider dtype, as a rule the bias's: only the normalization's output is rounded."""
    dtype = max(y.dtype, bias.dtype, key=lambda dtype: dtype.itemsize)
    bias = jnp.expand_dims(bias, tuple(range(y.ndim - bias.ndim)))
    return y.astype(dtype) + bias.astype(dtype)
