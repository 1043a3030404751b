"""Statistics for given weights, from fresh batches: precise BN for Linen models.

Averaged weights (EMA, SWA) need it: no training step ever saw their activations.

    variables = {"params": averaged, "batch_stats": state.batch_stats}
    variables = recalibrate(model, variables, itertools.islice(batches, 200), train=True)
"""

from collections.abc import Hashable, Iterable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bnjax.linen import batch_moments
from bnjax.normalization.arguments import RunningVar
from bnjax.normalization.moments import Moments
from bnjax.normalization.population import (
    Estimator,
    add_batch,
    check_choices,
    finish_estimate,
    start_estimate,
)

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
    """The variables with new statistics in every `bnjax.linen.BatchNorm`, by one forward pass.

    Every layer runs in training mode, on what the layers below made of the same batch, normalized
    by that batch's moments: use batches as large as in training, and shuffled. Weights and the
    statistics passed in are not changed, hence evaluating in the middle of training is safe. One
    step is compiled for each shape of a batch, and kept for the next call with an equal model.

    On several devices: place each batch sharded by examples, and the variables replicated. Layers
    then share the batch as one, and the statistics are those of one device; `axis_name` of the
    layers must be None. Under `pmap` or `shard_map`, see `bnjax.population_stats`.

    Args:
        model: contains `BatchNorm` layers; hashable, as Linen modules with plain fields are.
        variables: `params`, and any other collection the model reads. `batch_stats` may be absent.
        batches: read once, one at a time, and need not fit into memory. A tuple holds positional
            arguments of the model; anything else is its only one: drop labels beforehand, with
            `(batch["image"] for batch in loader)`. Limit an endless one with `itertools.islice`.
        estimator: see `bnjax.population_stats`. `"batchwise"` counts a smaller last batch as much
            as any other; `"weighted"` and `"pooled"` weigh it by its count.
        running_var: `"unbiased"` as in Algorithm 2, or `"biased"`.
        rngs: keys for dropout and the like; folded with the number of the batch.
        **settings: keyword arguments of the model, hashable; what puts it into training mode.

    Returns:
        `variables` with other `batch_stats`. Layers that are not in training mode (frozen) keep
        theirs, and so do those of other libraries, and features that are masked in all batches;
        `count` stays as it is.

    Raises:
        ValueError: if there is no batch, if no layer is in training mode or one is called twice, or
            for a bad choice.
        TypeError: if the model or a setting cannot be hashed.
    """
    check_choices(estimator, running_var)
    static = (model, tuple(sorted(settings.items())))
    try:
        hash(static)
    except TypeError as error:
        raise TypeError(
            f"model and settings {sorted(settings)} must be hashable ({error}): give arrays with "
            "the batches, as a tuple of the model's arguments, and tuples instead of lists."
        ) from error

    add = partial(_add, estimator=estimator, running_var=running_var)
    estimate = None
    for index, batch in enumerate(batches):
        arguments = batch if isinstance(batch, tuple) else (batch,)
        # Otherwise batches would pile up before a slower device. The next one is loaded meanwhile.
        jax.block_until_ready(estimate)
        moments = _moments(*static, variables, arguments, dict(rngs or {}), index)
        if not jax.tree.leaves(moments):
            raise ValueError(
                "no bnjax.linen.BatchNorm of the model is in training mode: pass what puts it "
                f"there, for example train=True; got settings {settings}."
            )
        if estimate is None:
            estimate = start_estimate(moments, estimator)
        estimate = add(estimate, moments)
    if estimate is None:
        raise ValueError("batches is empty: recalibrate needs one batch or more.")
    population = finish_estimate(estimate, estimator=estimator, running_var=running_var)
    return {**variables, "batch_stats": _replace(variables.get("batch_stats", {}), population)}


@partial(jax.jit, static_argnums=(0, 1))
def _moments(
    model: nn.Module,
    settings: tuple[tuple[str, Hashable], ...],
    variables: Variables,
    arguments: tuple[Any, ...],
    rngs: dict[str, jax.Array],
    index: jax.Array,
) -> Any:
    rngs = {name: jax.random.fold_in(key, index) for name, key in rngs.items()}
    return batch_moments(model, variables, *arguments, rngs=rngs, **dict(settings))


_add = jax.jit(add_batch, static_argnames=("estimator", "running_var"))


def _replace(old: Mapping[str, Any], new: Any) -> dict[str, Any]:
    """`old` with the mean and variance of the layers that `new` has `Moments` for."""
    if not isinstance(new, Moments):
        return {**old, **{key: _replace(old.get(key, {}), value) for key, value in new.items()}}
    seen = new.size > 0
    initial = {"mean": jnp.zeros_like(new.mean), "var": jnp.ones_like(new.var)} | dict(old)
    values = {
        key: jnp.where(seen, value.astype(initial[key].dtype), initial[key])
        for key, value in (("mean", new.mean), ("var", new.var))
    }
    return {**old, **values}
