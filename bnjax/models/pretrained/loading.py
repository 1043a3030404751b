"""Public weights into our networks, strict about every name, shape and value."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from bnjax.linen import BatchNorm
from bnjax.models.pretrained.names import Entry
from bnjax.models.pretrained.sources import Preprocessing, Source, SourceName, find_source
from bnjax.models.summary import is_auxiliary

Leaves = dict[tuple[str, ...], Any]
"""Variables, flat: arrays by the path of the leaf, collection first."""


class Pretrained(NamedTuple):
    """A network's weights.

    Attributes:
        variables: `{"params": ..., "batch_stats": ...}` for `model.apply`.
        preprocessing: what its images must be.
        notes: what was changed on the way, and what to know, a sentence each.
    """

    variables: dict[str, Any]
    preprocessing: Preprocessing
    notes: tuple[str, ...]


class _Outline(NamedTuple):
    """The variables that a model needs, and the settings that must fit.

    Attributes:
        leaves: shapes and dtypes.
        norms: settings of its normalizations, and their `kind`, the class, by path.
        classifiers: initializers of its last layers, by the path of the leaf.
    """

    leaves: Leaves
    norms: dict[tuple[str, ...], dict[str, Any]]
    classifiers: Leaves


def load_pretrained(
    model: nn.Module,
    path: str | Path,
    *,
    source: SourceName,
    class_offset: int = 0,
    new_classifier: jax.Array | None = None,
) -> Pretrained:
    """Reads a file of public weights for one of the Inception networks.

    Where the source's network differs from ours in arrays, they are converted and `notes` says so:
    a scale of one where it has none, a convolution's bias taken from the running mean, side heads
    left out if the model has none, a prefix that all names have (`module.`) left out. Where it
    differs in settings (epsilon, the border of average pools, ...), the model must have the
    source's. Files of torch are read without torch, and
    nothing that their pickles name is run.

    Args:
        model: `InceptionV3`, `GoogLeNet` or `BNInception`, with `bnjax.linen.BatchNorm` (or Flax's)
            as `norm`.
        path: the file: `.h5` for Keras; `.pth`, `.pt`, `.bin` or `.safetensors` for the others.
        source: `"keras"`, `"torchvision"` or `"timm"` (InceptionV3), `"torchvision"` (GoogLeNet),
            `"pretrainedmodels"` (BNInception).
        class_offset: how many of the file's first classes to leave out; 1 drops the background
            class of weights that were trained in TensorFlow.
        new_classifier: a key, `jax.random.key(...)`, to initialize the last layers (`logits`, also
            of side heads) instead of reading them.

    Returns:
        The variables, in the model's dtypes, with the source's preprocessing.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: for Keras files without h5py.
        ValueError: if the model's settings are not those of the source; for another ending, a file
            that is damaged or of another network (missing, left-over and misshapen arrays are
            listed), values that are not finite, negative variances, or another number of classes.

    Example:
        >>> from functools import partial
        >>> from bnjax.models import InceptionV3
        >>> model = InceptionV3(norm=partial(BatchNorm, epsilon=1e-3), count_include_pad=True)
        >>> path = "inception_v3_google-0cc3c7bd.pth"
        >>> loaded = load_pretrained(model, path, source="torchvision")  # doctest: +SKIP
        >>> logits = model.apply(loaded.variables, images, train=False).main  # doctest: +SKIP
    """
    found = find_source(source, model)
    if class_offset < 0 or (class_offset and new_classifier is not None):
        raise ValueError(
            f"class_offset must be 0 or more, and 0 with new_classifier, got {class_offset}."
        )
    arrays, prefix = _without_prefix(_read(Path(path), found), found)
    outline = _outline(model, found.preprocessing.size)
    _check_settings(model, found, outline)
    used, notes = _match(path, arrays, found, outline, new_classifier is not None)
    if prefix:
        notes.insert(0, f"the file's names begin with {prefix!r}, which is left out.")
    leaves = _convert(path, arrays, used, outline, class_offset)
    if class_offset:
        notes.append(f"the first {class_offset} of the file's classes are left out.")
    notes += _take_biases_from_means(leaves, outline)
    notes += _add_scales(leaves, outline)
    if new_classifier is not None:
        notes += _initialize_classifiers(leaves, outline, new_classifier)
    if set(leaves) != set(outline.leaves):
        raise ValueError(
            "the model has variables that no source has: "
            f"{', '.join('/'.join(key) for key in set(outline.leaves) - set(leaves))}."
        )
    notes += _cast(leaves, outline)
    return Pretrained(unflatten_dict(leaves), found.preprocessing, (*notes, *found.notes))


def _outline(model: nn.Module, size: int) -> _Outline:
    """Reads the outline by abstract evaluation: no array is made."""
    norms: dict[tuple[str, ...], dict[str, Any]] = {}
    classifiers: Leaves = {}

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module, path = context.module, context.module.path
        if context.method_name == "__call__" and path:
            if path[-1] == "norm":
                names = ("epsilon", "use_scale", "use_bias", "averaging")
                norms[path] = {name: getattr(module, name, None) for name in names}
                is_batch_norm = isinstance(module, BatchNorm | nn.BatchNorm)
                norms[path]["kind"] = BatchNorm if is_batch_norm else type(module)
            elif path[-1] == "logits" and isinstance(module, nn.Dense):
                classifiers["params", *path, "kernel"] = module.kernel_init
                classifiers["params", *path, "bias"] = module.bias_init
        return call(*args, **kwargs)

    def initialize() -> Any:
        images = jnp.zeros((1, size, size, getattr(model, "channels", 3)))
        return model.init(jax.random.key(0), images, train=False)

    with nn.intercept_methods(record):
        variables = jax.eval_shape(initialize)
    leaves = {
        tuple(key.key for key in keys): leaf
        for keys, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }
    return _Outline(leaves, norms, classifiers)


def _check_settings(model: nn.Module, source: Source, outline: _Outline) -> None:
    wrong = []
    for name, allowed in source.settings.items():
        value = getattr(model, name)
        if value not in allowed:
            wrong.append(f"{name}={_show(value)}, needed: {' or '.join(map(_show, allowed))}")
    if not outline.norms:
        wrong.append(f"norm=None, needed: partial(BatchNorm, epsilon={source.epsilon:g})")
    needed: dict[str, tuple[Any, ...]] = {
        "kind": (BatchNorm,),
        "epsilon": (source.epsilon,),
        "use_scale": (True,) if source.scale else (True, False),
        "use_bias": (True,),
        "averaging": ("ema", None),
    }
    for name, allowed in needed.items():
        for path, settings in outline.norms.items():
            if settings[name] not in allowed:
                wrong.append(
                    f"norm with {name}={_show(settings[name])} at {'/'.join(path)}, "
                    f"needed: {_show(allowed[0])}"
                )
                break
    if wrong:
        raise ValueError(
            f"the model does not fit {source.name}'s weights of {type(model).__name__}. It has:\n  "
            + "\n  ".join(wrong)
        )


def _show(value: Any) -> str:
    return getattr(value, "__name__", repr(value))


def _read(path: Path, source: Source) -> dict[str, np.ndarray]:
    if path.suffix not in source.formats:
        raise ValueError(
            f"path must end in {' or '.join(source.formats)} for weights of {source.name}, got "
            f"{path}."
        )
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    return source.formats[path.suffix](path)


def _without_prefix(
    arrays: dict[str, np.ndarray], source: Source
) -> tuple[dict[str, np.ndarray], str]:
    """Under the source's names, without what wrappers (`module.`, `_orig_mod.`) put before all."""
    known = {entry.name for entry in source.entries()}
    prefix = ""
    while arrays and not known & arrays.keys():
        first = {name.partition(".")[0] for name in arrays}
        if len(first) != 1 or not all("." in name for name in arrays):
            break
        prefix += f"{first.pop()}."
        arrays = {name.partition(".")[2]: array for name, array in arrays.items()}
    return arrays, prefix


def _first(lines: list[str], limit: int = 20) -> list[str]:
    return lines[:limit] + [f"and {len(lines) - limit} more"] * (len(lines) > limit)


def _match(
    path: str | Path,
    arrays: Mapping[str, np.ndarray],
    source: Source,
    outline: _Outline,
    without_classifier: bool,
) -> tuple[list[Entry], list[str]]:
    """The entries that the model needs; every name of the file must be known, and none missing."""
    entries = list(source.entries())
    modules = {key[1] for key in outline.leaves}
    used, left_out, dropped = [], [], []
    for entry in entries:
        absent = is_auxiliary(entry.path[1]) and entry.path[1] not in modules
        if entry.optional:
            dropped.append(entry.name)
        elif absent or (without_classifier and entry.path[-2] == "logits"):
            left_out.append(entry.name)
        else:
            used.append(entry)
    missing = [entry.name for entry in used if entry.name not in arrays]
    known = {entry.name for entry in entries}
    unknown = [name for name in arrays if name not in known]
    if missing or unknown:
        lines = _first([f"missing: {name}" for name in missing])
        lines += _first([f"left over: {name}, of shape {arrays[name].shape}" for name in unknown])
        heads = [entry for entry in used if is_auxiliary(entry.path[1])]
        if missing and {*missing} <= {entry.name for entry in heads}:
            lines.append("The file has no side heads: leave the model's out by `auxiliary`.")
        if missing and {*missing} <= {e.name for e in used if e.path[-2] == "logits"}:
            lines.append("The file has no classifier: give a key as `new_classifier`.")
        raise ValueError(
            f"{path} is not {source.name}'s {source.network.__name__}: {len(missing)} of "
            f"{len(used)} arrays are missing, {len(unknown)} are left over.\n  "
            + "\n  ".join(lines)
        )
    notes = []
    for what, names in (("left out", left_out), ("not needed", dropped)):
        present = [name for name in names if name in arrays]
        if present:
            notes.append(f"{what}: {len(present)} arrays, {present[0]} to {present[-1]}.")
    return used, notes


def _convert(
    path: str | Path,
    arrays: Mapping[str, np.ndarray],
    used: list[Entry],
    outline: _Outline,
    class_offset: int,
) -> Leaves:
    """The file's arrays in Flax's layout, by path; convolution biases among them."""
    leaves: Leaves = {}
    shapes, values = [], []
    for entry in used:
        array = arrays[entry.name]
        try:
            leaf = entry.layout(array)
        except ValueError:  # another rank
            leaf = array
        at = entry.path if entry.path in outline.leaves else _mean_beside(entry.path)
        shape = outline.leaves[at].shape
        if entry.path[-2] == "logits" and leaf.shape[:-1] == shape[:-1]:
            leaf = _select_classes(path, leaf, shape[-1], class_offset)
        if leaf.shape != shape:
            shapes.append(f"{entry.name} is {array.shape}; {'/'.join(entry.path)} is {shape}")
        elif not jnp.issubdtype(leaf.dtype, jnp.floating):
            values.append(f"{entry.name} is of dtype {leaf.dtype}")
        elif not np.isfinite(leaf).all():
            values.append(f"{entry.name} has {np.sum(~np.isfinite(leaf))} that are not finite")
        elif entry.path[-1] == "var" and (leaf < 0).any():
            values.append(f"{entry.name} has a negative variance")
        leaves[entry.path] = leaf
    for wrong, what in ((shapes, "shapes"), (values, "values")):
        if wrong:
            raise ValueError(
                f"{path} has {len(wrong)} arrays with wrong {what}:\n  " + "\n  ".join(wrong)
            )
    return leaves


def _mean_beside(path: tuple[str, ...]) -> tuple[str, ...]:
    """The running mean that follows `params/.../conv/bias`: its normalization's."""
    return ("batch_stats", *path[1:-2], "norm", "mean")


def _select_classes(
    path: str | Path, leaf: np.ndarray, classes: int, class_offset: int
) -> np.ndarray:
    if leaf.shape[-1] - class_offset != classes:
        raise ValueError(
            f"{path} has {leaf.shape[-1]} classes, the model has classes={classes}, and "
            f"class_offset={class_offset}: set `classes` of the model, give the number of first "
            "classes to leave out as `class_offset`, or a key as `new_classifier`."
        )
    return leaf[..., class_offset:]


def _take_biases_from_means(leaves: Leaves, outline: _Outline) -> list[str]:
    """BN(Wx + b) with a mean m is BN(Wx) with m - b."""
    biases = [key for key in leaves if key not in outline.leaves]
    for key in biases:
        leaves[_mean_beside(key)] = leaves[_mean_beside(key)] - leaves.pop(key)
    if not biases:
        return []
    return [f"{len(biases)} convolution biases are taken from the running means beside them."]


def _add_scales(leaves: Leaves, outline: _Outline) -> list[str]:
    scales = [key for key in outline.leaves if key not in leaves and key[-2:] == ("norm", "scale")]
    for key in scales:
        leaves[key] = np.ones(outline.leaves[key].shape, np.float32)
    if not scales:
        return []
    return [
        f"{len(scales)} scales are new, all ones, for the source has none; they will be trained. "
        "BatchNorm(use_scale=False) does without."
    ]


def _initialize_classifiers(leaves: Leaves, outline: _Outline, key: jax.Array) -> list[str]:
    for i, (path, initialize) in enumerate(outline.classifiers.items()):
        leaf = outline.leaves[path]
        leaves[path] = initialize(jax.random.fold_in(key, i), leaf.shape, leaf.dtype)
    return ["new: " + ", ".join("/".join(path) for path in outline.classifiers) + "."]


def _cast(leaves: Leaves, outline: _Outline) -> list[str]:
    """Converts the leaves to JAX's arrays in the model's dtypes; returns a note if any changes."""
    others = set()
    for path, leaf in leaves.items():
        dtype = outline.leaves[path].dtype
        if leaf.dtype != dtype:
            others.add(f"{np.dtype(leaf.dtype).name} to {np.dtype(dtype).name}")
        leaves[path] = jnp.asarray(np.asarray(leaf).astype(dtype))
    return [f"cast: {', '.join(sorted(others))}."] if others else []
