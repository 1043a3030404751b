"""One batch normalization layer of each JAX library, behind one signature.

Peers are set up as their own documentation does it: statistics in float32, gradients by autodiff,
ReLU applied to what they return. Their imports are inside the functions: a missing one is named.
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


class Wanted(NamedTuple):
    """What a layer is made for.

    Attributes:
        shape: of the input, channels last.
        dtype: of input and output.
        relu: whether ReLU follows.
        axis_name: mapped axis whose devices share the batch, in `shard_map`.
    """

    shape: tuple[int, ...]
    dtype: str
    relu: bool = False
    axis_name: str | None = None

    @property
    def features(self) -> int:
        """Number of channels."""
        return self.shape[-1]


class Layer(NamedTuple):
    """A layer in training mode.

    Attributes:
        apply: `(x, params, state) -> (y, new state)`; `y` has the dtype of `x`.
        params: with the given scale and bias.
        state: before the first step.
        scale_and_bias: finds both, in that order, in a tree like `params`; the scale may be None.
        channels_first: whether `x` is `[examples, channels, ...]`, the library's own layout.
    """

    apply: Callable[[jax.Array, Tree, Tree], tuple[jax.Array, Tree]]
    params: Tree
    state: Tree
    scale_and_bias: Callable[[Tree], tuple[jax.Array | None, jax.Array]]
    channels_first: bool = False


class Refused(ValueError):
    """The library does not offer what is wanted."""


def ours(wanted: Wanted, scale: jax.Array, bias: jax.Array, *, impl: str) -> Layer:
    """`bnjax.normalize_batch`, with ReLU inside."""
    settings: dict[str, Any] = {"activation": "relu"} if wanted.relu else {}

    def apply(x: jax.Array, params: Tree, state: Tree) -> tuple[jax.Array, Tree]:
        return bnjax.normalize_batch(
            x,
            params,
            state,
            epsilon=EPSILON,
            decay=DECAY,
            running_var="biased",
            axis_name=wanted.axis_name,
            impl=impl,  # type: ignore[arg-type]
            **settings,
        )

    state = bnjax.init_stats(wanted.features)
    return Layer(apply, {"scale": scale, "bias": bias}, state, _by_name("scale", "bias"))


def flax_linen(wanted: Wanted, scale: jax.Array, bias: jax.Array, *, fast: bool) -> Layer:
    """`flax.linen.BatchNorm`; `fast=False` is its variance of two passes."""
    layer = nn.BatchNorm(
        use_running_average=False,
        momentum=DECAY,
        epsilon=EPSILON,
        dtype=wanted.dtype,
        axis_name=wanted.axis_name,
        use_fast_variance=fast,
    )

    def apply(x: jax.Array, params: Tree, state: Tree) -> tuple[jax.Array, Tree]:
        variables = {"params": params, "batch_stats": state}
        y, updates = layer.apply(variables, x, mutable=["batch_stats"])
        return _activated(y, wanted), updates["batch_stats"]

    state = {"mean": jnp.zeros(wanted.features), "var": jnp.ones(wanted.features)}
    return Layer(apply, {"scale": scale, "bias": bias}, state, _by_name("scale", "bias"))


def flax_nnx(wanted: Wanted, scale: jax.Array, bias: jax.Array) -> Layer:
    """`flax.nnx.BatchNorm`, split and merged as its guide does it for plain JAX transforms."""
    from flax import nnx

    layer = nnx.BatchNorm(
        wanted.features,
        use_running_average=False,
        momentum=DECAY,
        epsilon=EPSILON,
        dtype=jnp.dtype(wanted.dtype),
        axis_name=wanted.axis_name,
        rngs=nnx.Rngs(0),
    )
    parts: Any = nnx.split(layer, nnx.Param, nnx.BatchStat)
    definition, params, state = parts
    nnx.replace_by_pure_dict(params, {"scale": scale, "bias": bias})

    def apply(x: jax.Array, params: Tree, state: Tree) -> tuple[jax.Array, Tree]:
        own = nnx.merge(definition, params, state, copy=True)
        return _activated(own(x), wanted), nnx.state(own, nnx.BatchStat)

    def scale_and_bias(params: Tree) -> tuple[jax.Array, jax.Array]:
        pure = nnx.to_pure_dict(params)
        return pure["scale"], pure["bias"]

    return Layer(apply, params, state, scale_and_bias)


def haiku(wanted: Wanted, scale: jax.Array, bias: jax.Array) -> Layer:
    """`haiku.BatchNorm`, computing in float32 and returning the input's dtype.

    That is the mixed-precision policy of its ImageNet example.
    """
    network = _haiku_network(wanted)

    def apply(x: jax.Array, params: Tree, state: Tree) -> tuple[jax.Array, Tree]:
        y, state = network.apply(params, state, x)
        return _activated(y, wanted), state

    alone = Wanted(wanted.shape, wanted.dtype)  # initialization runs outside of the mapped axis
    example = jnp.zeros((2,) * (len(wanted.shape) - 1) + wanted.shape[-1:])
    _, state = _haiku_network(alone).init(jax.random.key(0), example)
    broadcast = (1,) * (len(wanted.shape) - 1) + (-1,)
    params = {"batch_norm": {"scale": scale.reshape(broadcast), "offset": bias.reshape(broadcast)}}

    def scale_and_bias(params: Tree) -> tuple[jax.Array, jax.Array]:
        own = params["batch_norm"]
        return own["scale"].ravel(), own["offset"].ravel()

    return Layer(apply, params, state, scale_and_bias)


def _haiku_network(wanted: Wanted) -> Any:
    import haiku as hk

    def forward(x: jax.Array) -> jax.Array:
        layer = hk.BatchNorm(
            True, True, decay_rate=DECAY, eps=EPSILON, cross_replica_axis=wanted.axis_name
        )
        return layer(x.astype(jnp.float32), is_training=True).astype(x.dtype)

    return hk.without_apply_rng(hk.transform_with_state(forward))


def equinox(wanted: Wanted, scale: jax.Array, bias: jax.Array) -> Layer:
    """`equinox.nn.BatchNorm` in its mode "batch", under `vmap`: an example a call."""
    import equinox as eqx

    names = ("batch",) if wanted.axis_name is None else ("batch", wanted.axis_name)
    layer, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(
        wanted.features, axis_name=names, mode="batch", momentum=DECAY, eps=EPSILON
    )

    def apply(x: jax.Array, params: Tree, state: Tree) -> tuple[jax.Array, Tree]:
        own = eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, params)
        each = jax.vmap(own, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        y, state = each(x.astype(jnp.float32), state)  # it has no dtype of its own
        return _activated(y.astype(x.dtype), wanted), state

    return Layer(apply, (scale, bias), state, lambda params: params, channels_first=True)


def keras(wanted: Wanted, scale: jax.Array, bias: jax.Array) -> Layer:
    """`keras.layers.BatchNormalization` on JAX, called without state."""
    os.environ.setdefault("KERAS_BACKEND", "jax")  # read when keras is imported
    import keras

    if keras.backend.backend() != "jax":
        raise ImportError(f"keras runs on {keras.backend.backend()}: set KERAS_BACKEND=jax")
    if wanted.axis_name is not None:
        raise Refused("no axis name")
    policy = "mixed_bfloat16" if wanted.dtype == "bfloat16" else wanted.dtype
    layer = keras.layers.BatchNormalization(momentum=DECAY, epsilon=EPSILON, dtype=policy)
    layer.build(wanted.shape)
    state = [variable.value for variable in layer.non_trainable_variables]

    def apply(x: jax.Array, params: Tree, state: Tree) -> tuple[jax.Array, Tree]:
        y, state = layer.stateless_call(params, state, x, training=True)
        return _activated(y, wanted), state

    return Layer(apply, [scale, bias], state, lambda params: (params[0], params[1]))


def bias_alone(wanted: Wanted, scale: jax.Array, bias: jax.Array) -> Layer:
    """No normalization: the floor of what a layer can cost."""
    del scale

    def apply(x: jax.Array, params: Tree, state: Tree) -> tuple[jax.Array, Tree]:
        bias = jnp.expand_dims(params["bias"], tuple(range(x.ndim - 1)))
        y = x.astype(bias.dtype) + bias  # in float32, as is the sum that is the bias's gradient
        return _activated(y.astype(x.dtype), wanted), state

    return Layer(apply, {"bias": bias}, {}, _by_name("scale", "bias"))


LAYERS: dict[str, Callable[[Wanted, jax.Array, jax.Array], Layer]] = {
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
"""Makes each contestant but PyTorch's."""


def _activated(y: jax.Array, wanted: Wanted) -> jax.Array:
    return jax.nn.relu(y) if wanted.relu else y


def _by_name(scale: str, bias: str) -> Callable[[Tree], tuple[jax.Array | None, jax.Array]]:
    return lambda params: (params.get(scale), params[bias])
