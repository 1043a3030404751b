"""One batch normalization layer of each JAX library, behind one signature.

Peers are set up as in their own documentation: statistics in float32, gradients by autodiff, ReLU
applied to their output. They are imported inside the functions, so that a missing one is named.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import bnjax

Tree = Any

EPSILON = 1e-5
DECAY = 0.9


class LayerSpec(NamedTuple):
    """The input and the form of a layer.

    Attributes:
        shape: the input's, channels last.
        dtype: the type of input and output.
        relu: whether ReLU follows.
        axis_name: mapped axis whose devices share the batch, in `shard_map`.
    """

    shape: tuple[int, ...]
    dtype: str
    relu: bool = False
    axis_name: str | None = None

    @property
    def features(self) -> int:
        """Returns the number of channels."""
        return self.shape[-1]


class Layer(NamedTuple):
    """A layer in training mode.

    Attributes:
        apply: `(x, params, state) -> (y, new state)`; `y` has the dtype of `x`.
        params: parameters, with the given scale and bias.
        state: the state before the first step.
        scale_and_bias: returns both from a tree like `params`; the scale may be None.
        channels_first: whether `x` is `[examples, channels, ...]`, the library's own layout.
    """

    apply: Callable[[jax.Array, Tree, Tree], tuple[jax.Array, Tree]]
    params: Tree
    state: Tree
    scale_and_bias: Callable[[Tree], tuple[jax.Array | None, jax.Array]]
    channels_first: bool = False


class UnsupportedError(ValueError):
    """The library does not offer such a layer."""


def ours(spec: LayerSpec, scale: jax.Array, bias: jax.Array, *, impl: str) -> Layer:
    """Makes `bnjax.normalize_batch`, with ReLU inside."""
    settings: dict[str, Any] = {"activation": "relu"} if spec.relu else {}

    def apply(x: jax.Array, params: Tree, state: Tree) -> tuple[jax.Array, Tree]:
        return bnjax.normalize_batch(
            x,
            params,
            state,
            epsilon=EPSILON,
            decay=DECAY,
            running_var="biased",
            axis_name=spec.axis_name,
            impl=impl,  # type: ignore[arg-type]
            **settings,
        )

    state = bnjax.init_stats(spec.features)
    return Layer(apply, {"scale": scale, "bias": bias}, state, _scale_and_bias)


def flax_linen(spec: LayerSpec, scale: jax.Array, bias: jax.Array, *, fast: bool) -> Layer:
    """Makes `flax.linen.BatchNorm`; `fast=False` computes the variance in two passes."""
    layer = nn.BatchNorm(
        use_running_average=False,
        momentum=DECAY,
        epsilon=EPSILON,
        dtype=spec.dtype,
        axis_name=spec.axis_name,
        use_fast_variance=fast,
    )

    def apply(x: jax.Array, params: Tree, state: Tree) -> tuple[jax.Array, Tree]:
        variables = {"params": params, "batch_stats": state}
        y, updates = layer.apply(variables, x, mutable=["batch_stats"])
        return _activated(y, spec), updates["batch_stats"]

    state = {"mean": jnp.zeros(spec.features), "var": jnp.ones(spec.features)}
    return Layer(apply, {"scale": scale, "bias": bias}, state, _scale_and_bias)


def flax_nnx(spec: LayerSpec, scale: jax.Array, bias: jax.Array) -> Layer:
    """Makes `flax.nnx.BatchNorm`, split and merged as in its guide for plain JAX transforms."""
    from flax import nnx

    layer = nnx.BatchNorm(
        spec.features,
        use_running_average=False,
        momentum=DECAY,
        epsilon=EPSILON,
        dtype=jnp.dtype(spec.dtype),
        axis_name=spec.axis_name,
        rngs=nnx.Rngs(0),
    )
    parts: Any = nnx.split(layer, nnx.Param, nnx.BatchStat)
    definition, params, state = parts
    nnx.replace_by_pure_dict(params, {"scale": scale, "bias": bias})

    def apply(x: jax.Array, params: Tree, state: Tree) -> tuple[jax.Array, Tree]:
        own = nnx.merge(definition, params, state, copy=True)
        return _activated(own(x), spec), nnx.state(own, nnx.BatchStat)

    def scale_and_bias(params: Tree) -> tuple[jax.Array, jax.Array]:
        pure = nnx.to_pure_dict(params)
        return pure["scale"], pure["bias"]

    return Layer(apply, params, state, scale_and_bias)


def haiku(spec: LayerSpec, scale: jax.Array, bias: jax.Array) -> Layer:
    """Makes `haiku.BatchNorm`, with the mixed precision of its ImageNet example.

    It computes in float32 and returns the input's dtype.
    """
    network = _haiku_network(spec)

    def apply(x: jax.Array, params: Tree, state: Tree) -> tuple[jax.Array, Tree]:
        y, state = network.apply(params, state, x)
        return _activated(y, spec), state

    alone = spec._replace(axis_name=None)  # initialization runs outside of the mapped axis
    example = jnp.zeros((2,) * (len(spec.shape) - 1) + spec.shape[-1:])
    _, state = _haiku_network(alone).init(jax.random.key(0), example)
    broadcast = (1,) * (len(spec.shape) - 1) + (-1,)
    params = {"batch_norm": {"scale": scale.reshape(broadcast), "offset": bias.reshape(broadcast)}}

    def scale_and_bias(params: Tree) -> tuple[jax.Array, jax.Array]:
        own = params["batch_norm"]
        return own["scale"].ravel(), own["offset"].ravel()

    return Layer(apply, params, state, scale_and_bias)


def _haiku_network(spec: LayerSpec) -> Any:
    import haiku as hk

    def forward(x: jax.Array) -> jax.Array:
        layer = hk.BatchNorm(
            True, True, decay_rate=DECAY, eps=EPSILON, cross_replica_axis=spec.axis_name
        )
        return layer(x.astype(jnp.float32), is_training=True).astype(x.dtype)

    return hk.without_apply_rng(hk.transform_with_state(forward))


def equinox(spec: LayerSpec, scale: jax.Array, bias: jax.Array) -> Layer:
    """Makes `equinox.nn.BatchNorm` in its mode "batch", under `vmap`: an example a call."""
    import equinox as eqx

    names = ("batch",) if spec.axis_name is None else ("batch", spec.axis_name)
    layer, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(
        spec.features, axis_name=names, mode="batch", momentum=DECAY, eps=EPSILON
    )

    def apply(x: jax.Array, params: Tree, state: Tree) -> tuple[jax.Array, Tree]:
        own = eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, params)
        each = jax.vmap(own, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        y, state = each(x.astype(jnp.float32), state)  # it has no dtype of its own
        return _activated(y.astype(x.dtype), spec), state

    return Layer(apply, (scale, bias), state, lambda params: params, channels_first=True)


def keras(spec: LayerSpec, scale: jax.Array, bias: jax.Array) -> Layer:
    """Makes `keras.layers.BatchNormalization` on JAX, called without state."""
    os.environ.setdefault("KERAS_BACKEND", "jax")  # read when keras is imported
    import keras

    if keras.backend.backend() != "jax":
        raise ImportError(f"keras runs on {keras.backend.backend()}: set KERAS_BACKEND=jax")
    if spec.axis_name is not None:
        raise UnsupportedError("no axis name")
    policy = "mixed_bfloat16" if spec.dtype == "bfloat16" else spec.dtype
    layer = keras.layers.BatchNormalization(momentum=DECAY, epsilon=EPSILON, dtype=policy)
    layer.build(spec.shape)
    state = [variable.value for variable in layer.non_trainable_variables]

    def apply(x: jax.Array, params: Tree, state: Tree) -> tuple[jax.Array, Tree]:
        y, state = layer.stateless_call(params, state, x, training=True)
        return _activated(y, spec), state

    return Layer(apply, [scale, bias], state, lambda params: (params[0], params[1]))


def bias_alone(spec: LayerSpec, scale: jax.Array, bias: jax.Array) -> Layer:
    """Makes a layer without normalization: the least that a layer can cost."""
    del scale

    def apply(x: jax.Array, params: Tree, state: Tree) -> tuple[jax.Array, Tree]:
        bias = jnp.expand_dims(params["bias"], tuple(range(x.ndim - 1)))
        y = x.astype(bias.dtype) + bias  # float32, and so is the sum that is the bias's gradient
        return _activated(y.astype(x.dtype), spec), state

    return Layer(apply, {"bias": bias}, {}, _scale_and_bias)


LAYERS: dict[str, Callable[[LayerSpec, jax.Array, jax.Array], Layer]] = {
    "ours": partial(ours, impl="fused"),
    "ours_autodiff": partial(ours, impl="autodiff"),
    "flax": partial(flax_linen, fast=True),
    "flax_two_pass": partial(flax_linen, fast=False),
    "flax_nnx": flax_nnx,
    "haiku": haiku,
    "equinox": equinox,
    "keras": keras,
    "bias": bias_alone,
}
"""Functions that make each contestant's layer, except PyTorch's."""


def _activated(y: jax.Array, spec: LayerSpec) -> jax.Array:
    return jax.nn.relu(y) if spec.relu else y


def _scale_and_bias(params: Tree) -> tuple[jax.Array | None, jax.Array]:
    return params.get("scale"), params["bias"]
