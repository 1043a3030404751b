"""One trained layer of another framework as parameters, statistics and settings, and back to torch.

The source's arrays come as it names them (NumPy, JAX, or tensors that NumPy can read), its
settings under its own names and defaults. Training goes on as it would have there:

    layer = from_torch(torch_layer.state_dict(), momentum=0.1)
    y, stats = normalize_batch(x, layer.params, layer.stats, axis=1, **layer.settings)

For `bnjax.linen.BatchNorm`, `decay` is `momentum`. `axis` is the caller's, who knows how `x` lies.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp

from bnjax.normalization.arguments import Params, Stats
from bnjax.normalization.dtypes import precision
from bnjax.normalization.foreign_arrays import (
    Arrays,
    check_debiasing,
    check_keys,
    check_rank,
    flat,
    read,
    read_array,
    read_count,
    squeeze,
)
from bnjax.normalization.settings import RunningVar, Settings, StatsAveraging, check_epsilon


class Keywords(TypedDict):
    """Keyword arguments of `normalize_batch`; `normalize_population` takes `epsilon` of them."""

    decay: float
    epsilon: float
    averaging: StatsAveraging
    running_var: RunningVar


class Converted(NamedTuple):
    """A layer for bnjax.

    Attributes:
        params: `scale` and `bias`, as far as the source has them, in its dtypes.
        stats: `mean` and `var`, at least float32, and `count` if `averaging` needs it.
        settings: what to call `normalize_batch` with, to go on as the source would.
        notes: what is different now, a sentence each.

    Example:
        >>> state = {"running_mean": np.zeros(2), "running_var": np.ones(2)}
        >>> layer = from_torch(state, affine=False)
        >>> layer.settings["averaging"], layer.settings["running_var"]
        ('ema', 'unbiased')
    """

    params: Params
    stats: Stats
    settings: Keywords
    notes: tuple[str, ...]


class TorchLayer(NamedTuple):
    """A layer for torch.

    Attributes:
        state_dict: NumPy arrays and an int, to be made tensors: `torch.tensor(value)` of each.
        settings: arguments of `torch.nn.BatchNorm1d` to `3d` and `SyncBatchNorm`.
        notes: what is different now, a sentence each.
    """

    state_dict: dict[str, Any]
    settings: dict[str, Any]
    notes: tuple[str, ...]


def from_torch(
    state_dict: Arrays,
    *,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    affine: bool = True,
    bias: bool = True,
) -> Converted:
    """Converts `torch.nn.BatchNorm1d`, `2d`, `3d` or `SyncBatchNorm`.

    Args:
        state_dict: `weight`, `bias`, `running_mean`, `running_var`, `num_batches_tracked` of one
            layer, without a prefix. The last one may be absent, unless `momentum` is None.
        momentum: fraction taken from the new batch, in (0, 1]; None is the cumulative average.
        eps: added to the variance.
        affine: whether there are `weight` and `bias`.
        bias: whether there is a `bias`, if `affine`.

    Raises:
        ValueError: for missing and unknown entries, shapes that differ, values that are not
            finite, a negative variance, or a setting out of range.

    Example:
        >>> state = {"weight": np.ones(2), "bias": np.zeros(2)}
        >>> state |= {"running_mean": np.zeros(2), "running_var": np.ones(2)}
        >>> layer = from_torch(state, momentum=0.1)
        >>> sorted(layer.params), sorted(layer.stats), layer.settings["decay"]
        (['bias', 'scale'], ['mean', 'var'], 0.9)
    """
    tracked = "num_batches_tracked"
    names = {"running_mean": "mean", "running_var": "var"}
    names |= {"weight": "scale"} if affine else {}
    names |= {"bias": "bias"} if affine and bias else {}
    check_keys("state_dict", state_dict, {*names}, {tracked}, "affine and bias")
    if momentum is not None and not 0 < momentum <= 1:
        raise ValueError(
            f"momentum must be in (0, 1] or None, got {momentum}: torch's is the fraction taken "
            "from the new batch. 0 means no updates there: give the momentum of training, and use "
            "normalize_population or drop the new statistics."
        )
    notes: list[str] = []
    arrays = read(state_dict, names, notes)
    check_rank(arrays, "torch's are of shape (num_features,)")

    count = read_count(tracked, state_dict[tracked]) if tracked in state_dict else None
    if momentum is None:
        if count is None:
            raise ValueError(f"momentum=None needs {tracked}, which state_dict lacks.")
        settings = _settings(0.99, eps, "cumulative", "unbiased")
        notes.append(f"averaging='cumulative', as momentum=None; {tracked}={count} is the count.")
    else:
        settings = _settings(1 - momentum, eps, "ema", "unbiased")
        if settings["decay"] == 1:
            raise ValueError(
                f"momentum={momentum} is too small: decay = 1 - momentum is 1, which means no "
                "updates. Give the momentum of training."
            )
        notes.append(
            f"decay={settings['decay']:g} is 1 - momentum: torch's momentum={momentum:g} is the "
            "fraction taken from the new batch."
        )
        if momentum > 0.5:
            notes.append(
                f"momentum={momentum:g} forgets most of the past at each update: if it was meant "
                f"to be the fraction kept, as elsewhere, torch's is {1 - momentum:g}."
            )
        if count is not None:
            notes.append(f"{tracked}={count} is dropped: averaging='ema' needs no count.")
    notes.append("running_var='unbiased', as in torch: m/(m-1) times the batch's variance.")
    if count == 0:
        notes.append(f"{tracked}=0: the statistics are initial ones, no batch was seen.")
    return _converted(arrays, settings, notes, count if momentum is None else None)


def from_flax(
    variables: Mapping[str, Arrays],
    *,
    momentum: float = 0.99,
    epsilon: float = 1e-5,
    use_scale: bool = True,
    use_bias: bool = True,
) -> Converted:
    """Converts `flax.linen.BatchNorm`; `flax.nnx.BatchNorm` has the same arrays and settings.

    Args:
        variables: `{"params": {"scale", "bias"}, "batch_stats": {"mean", "var"}}` of one layer.
        momentum: fraction kept, in [0, 1).
        epsilon: added to the variance.
        use_scale: whether there is a `scale`.
        use_bias: whether there is a `bias`.

    Raises:
        ValueError: as `from_torch`.

    Example:
        >>> variables = {
        ...     "params": {"scale": np.ones(2), "bias": np.zeros(2)},
        ...     "batch_stats": {"mean": np.zeros(2), "var": np.ones(2)},
        ... }
        >>> from_flax(variables, momentum=0.9).settings
        {'decay': 0.9, 'epsilon': 1e-05, 'averaging': 'ema', 'running_var': 'biased'}
    """
    names = {"batch_stats/mean": "mean", "batch_stats/var": "var"}
    names |= {"params/scale": "scale"} if use_scale else {}
    names |= {"params/bias": "bias"} if use_bias else {}
    found = flat("variables", variables)
    check_keys("variables", found, {*names}, set(), "use_scale and use_bias")
    notes: list[str] = []
    _check_kept("momentum", momentum, notes)
    settings = _settings(momentum, epsilon, "ema", "biased")
    arrays = read(found, names, notes)
    notes.append(_biased("Flax"))
    return _converted(arrays, settings, notes)


def from_keras(
    weights: Arrays | Sequence[Any],
    *,
    momentum: float = 0.99,
    epsilon: float = 1e-3,
    center: bool = True,
    scale: bool = True,
) -> Converted:
    """Converts `keras.layers.BatchNormalization` of Keras 3, without `renorm`.

    The fused layer of Keras 2 averaged the unbiased variance: set `running_var` accordingly.

    Args:
        weights: `gamma`, `beta`, `moving_mean`, `moving_variance` of one layer by name, or in this
            order as `layer.get_weights()` returns them.
        momentum: fraction kept, in [0, 1).
        epsilon: added to the variance; Keras's default is larger than that of others.
        center: whether there is a `beta`.
        scale: whether there is a `gamma`.

    Raises:
        ValueError: as `from_torch`.

    Example:
        >>> gamma, beta, mean, variance = np.ones(2), np.zeros(2), np.zeros(2), np.ones(2)
        >>> from_keras([gamma, beta, mean, variance]).settings["epsilon"]
        0.001
    """
    names = {"gamma": "scale"} if scale else {}
    names |= {"beta": "bias"} if center else {}
    names |= {"moving_mean": "mean", "moving_variance": "var"}
    if not isinstance(weights, Mapping):
        if len(weights) != len(names):
            raise ValueError(
                f"weights has {len(weights)} arrays, expected {list(names)}: set center and scale "
                "as in the layer; renorm is not supported."
            )
        weights = dict(zip(names, weights, strict=True))
    check_keys("weights", weights, {*names}, set(), "center and scale")
    notes: list[str] = []
    _check_kept("momentum", momentum, notes)
    settings = _settings(momentum, epsilon, "ema", "biased")
    arrays = read(weights, names, notes)
    check_rank(arrays, "Keras's are of shape (channels,)")
    notes.append(_biased("Keras"))
    return _converted(arrays, settings, notes)


def from_haiku(
    params: Arrays,
    state: Mapping[str, Arrays],
    *,
    create_scale: bool,
    create_offset: bool,
    decay_rate: float,
    eps: float = 1e-5,
    axis: Sequence[int] | None = None,
) -> Converted:
    """Converts `haiku.BatchNorm`, whose averages are debiased.

    Args:
        params: `scale` and `offset` of one layer, of the rank of its input, for example
            `(1, 1, 1, channels)`. May be empty.
        state: `{"mean_ema": ..., "var_ema": ...}`, each with `average`, `hidden` and `counter`:
            what Haiku's state has under `<layer>/~/mean_ema` and `<layer>/~/var_ema`.
        create_scale: whether there is a `scale`.
        create_offset: whether there is an `offset`.
        decay_rate: fraction kept, in [0, 1).
        eps: added to the variance.
        axis: the axes averaged over, if not all but the channels'.

    Raises:
        ValueError: as `from_torch`; also if the averages were not made with this `decay_rate`.

    Example:
        >>> mean = {"average": np.zeros(2), "hidden": np.zeros(2), "counter": 0}
        >>> state = {"mean_ema": mean, "var_ema": mean}
        >>> layer = from_haiku({}, state, create_scale=False, create_offset=False, decay_rate=0.9)
        >>> layer.settings["averaging"], layer.stats["count"].tolist()
        ('ema_debiased', [0, 0])
    """
    names = {"mean_ema/average": "mean", "var_ema/average": "var"}
    names |= {"params/scale": "scale"} if create_scale else {}
    names |= {"params/offset": "bias"} if create_offset else {}
    extra = {f"{ema}/{key}" for ema in ("mean_ema", "var_ema") for key in ("counter", "hidden")}
    found = flat("state", state) | {f"params/{key}": value for key, value in params.items()}
    check_keys("params and state", found, {*names, *extra}, set(), "create_scale and create_offset")
    notes: list[str] = []
    _check_kept("decay_rate", decay_rate, notes)
    settings = _settings(decay_rate, eps, "ema_debiased", "biased")
    arrays = read(found, names, notes)

    count, other = (read_count(key, found[key]) for key in ("mean_ema/counter", "var_ema/counter"))
    if count != other:
        raise ValueError(f"the counters differ: {count} in mean_ema, {other} in var_ema.")
    for ema, name in (("mean_ema", "mean"), ("var_ema", "var")):
        hidden = read_array(f"{ema}/hidden", found[f"{ema}/hidden"])
        check_debiasing(ema, arrays[name], hidden, decay_rate, count)
    shape = arrays["mean"].shape
    arrays = {key: squeeze(key, array, axis) for key, array in arrays.items()}
    if arrays["mean"].shape != shape:
        notes.append(f"arrays of shape {shape} have lost their axes of size one.")
    notes.append(
        "averaging='ema_debiased', as in Haiku: mean and var are its `average`, the count is its "
        f"counter={count}, for each feature; `hidden` follows from them and is dropped."
    )
    notes.append(_biased("Haiku"))
    if count == 0:
        notes.append("counter=0: the statistics are zero, no batch was seen.")
    return _converted(arrays, settings, notes, count)


def to_torch(
    params: Params,
    stats: Stats,
    *,
    decay: float = 0.99,
    epsilon: float = 1e-5,
    averaging: StatsAveraging = "ema",
    running_var: RunningVar = "unbiased",
) -> TorchLayer:
    """Converts to `torch.nn.BatchNorm1d` to `3d` or `SyncBatchNorm`; inference is the same.

    Arguments are those of `normalize_batch`. Training goes on in the same way for `"ema"` and
    `"cumulative"` averages of unbiased variances; the notes tell what else becomes of it.

    Raises:
        ValueError: for features of more than one axis, counts that differ, or a bad setting.

    Example:
        >>> params = {"scale": jnp.ones(2), "bias": jnp.zeros(2)}
        >>> layer = to_torch(params, {"mean": jnp.zeros(2), "var": jnp.ones(2)}, decay=0.75)
        >>> layer.settings
        {'num_features': 2, 'eps': 1e-05, 'momentum': 0.25, 'affine': True}
        >>> sorted(layer.state_dict)
        ['bias', 'num_batches_tracked', 'running_mean', 'running_var', 'weight']
    """
    Settings(decay=decay, averaging=averaging, running_var=running_var)  # checks them
    check_epsilon(epsilon)
    notes: list[str] = []
    renamed = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    found: dict[str, Any] = {**params, **stats}
    check_keys("params and stats", found, {"mean", "var"}, {"scale", "bias", "count"}, "")
    arrays = read(found, {key: key for key in renamed if key in found}, [])
    check_rank(arrays, "torch's are of shape (num_features,)")
    if "bias" in arrays and "scale" not in arrays:
        arrays["scale"] = jnp.ones_like(arrays["bias"])
        notes.append("weight is new, all ones: torch has no bias without it. It will be trained.")
    tracked = 0
    if averaging == "cumulative":
        counts = set(jnp.ravel(stats["count"]).tolist()) if "count" in stats else set()
        if len(counts) != 1:
            raise ValueError(f"stats['count'] must be one number for torch, got {sorted(counts)}.")
        (tracked,) = counts
    elif averaging == "ema_debiased":
        notes.append(
            "torch does not debias: the next batches get the weight 1 - decay, and no longer "
            "(1 - decay)/(1 - decay^t)."
        )
    if running_var == "biased":
        notes.append("torch averages the unbiased variance from now on; what is stored is biased.")
    settings: dict[str, Any] = {
        "num_features": arrays["mean"].size,
        "eps": epsilon,
        "momentum": None if averaging == "cumulative" else 1 - float(decay),
        "affine": "scale" in arrays,
    }
    if "scale" in arrays and "bias" not in arrays:
        settings["bias"] = False
    state_dict = {
        renamed[key]: jax.device_get(value.astype(precision(value.dtype))).copy()
        for key, value in arrays.items()
    }
    return TorchLayer({**state_dict, "num_batches_tracked": tracked}, settings, tuple(notes))


def _settings(
    decay: float, epsilon: float, averaging: StatsAveraging, running_var: RunningVar
) -> Keywords:
    if not epsilon > 0:
        raise ValueError(f"epsilon (eps) must be > 0, got {epsilon}.")
    return Keywords(decay=decay, epsilon=epsilon, averaging=averaging, running_var=running_var)


def _converted(
    arrays: dict[str, jax.Array], settings: Keywords, notes: list[str], count: int | None = None
) -> Converted:
    params: Params = {key: arrays[key] for key in ("scale", "bias") if key in arrays}
    stats: Stats = {key: arrays[key] for key in ("mean", "var")}
    if count is not None:
        stats["count"] = jnp.full(stats["mean"].shape, count, jnp.int32)
    absent = {"scale": "one", "bias": "zero"}
    notes = notes + [
        f"there is no {key}: it counts as {value}, and is not trained."
        for key, value in absent.items()
        if key not in params
    ]
    if settings["epsilon"] != 1e-5:
        notes.append(f"epsilon={settings['epsilon']:g}: bnjax's default is 1e-05.")
    return Converted(params, stats, settings, tuple(notes))


def _biased(source: str) -> str:
    return f"running_var='biased', as in {source}; the default of normalize_batch is 'unbiased'."


def _check_kept(name: str, value: float, notes: list[str]) -> None:
    """Checks the range of a fraction kept, and notes a mix-up with torch's fraction taken."""
    if not 0 <= value < 1:
        raise ValueError(
            f"{name} must be in [0, 1), got {value}: it is the fraction kept. 1 means no updates: "
            f"give the {name} of training, and use normalize_population or drop the new statistics."
        )
    if value < 0.5:
        notes.append(
            f"{name}={value:g} forgets most of the past at each update: if it was meant as torch's "
            f"fraction taken, the fraction kept is {1 - value:g}."
        )
