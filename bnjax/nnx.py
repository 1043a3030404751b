"""Batch normalization as a Flax NNX module: `flax.nnx.BatchNorm` by a change of import.

And batch renormalization, by a change of name.
"""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from inspect import signature
from types import MappingProxyType
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from flax.errors import TraceContextError
from flax.nnx.nn import dtypes
from flax.typing import Dtype

from bnjax.normalization.arguments import check_array, check_shape
from bnjax.normalization.batch_norm import init_stats
from bnjax.normalization.dtypes import as_type
from bnjax.normalization.errors import in_layer
from bnjax.normalization.meshes import as_index_groups
from bnjax.normalization.renormalization import Limits, check_limits, limits_of
from bnjax.normalization.settings import OwnFields, OwnKeywords, settings_of
from bnjax.normalization.switches import normalize


class BatchNorm(nnx.Module, OwnFields):
    """Batch normalization with Flax's constructor names, call signature and variables.

    With the defaults, the state is Flax's leaf for leaf, `nnx.Param` scale and bias,
    `nnx.BatchStat` mean and var: existing checkpoints load. The numbers are those of
    `bnjax.linen.BatchNorm`. What differs from Flax: moments are exact at any offset, masks cannot
    leak NaN, a batch of one value per feature raises, the backward pass is the closed form, and a
    narrow `dtype` rounds the output alone, neither `x` nor the statistics before.

    Statistics narrower than float32 become float32 in the first update, for narrow ones stick:
    widen them before a loop that carries them (`nnx.scan`), which keeps dtypes.

    Two switches are independent: what normalizes, `use_running_average`, and `update_statistics`.
    Whether scale and bias are trained and decayed is for the optimizer to say.

    Attributes:
        scale: gamma, or None.
        bias: beta, or None.
        mean: of the statistics.
        var: of the statistics.
        count: each feature's updates; only where `averaging` is not `"ema"`.

    Example:
        >>> layer = BatchNorm(3, rngs=nnx.Rngs(0))
        >>> y = layer(jnp.arange(12.0).reshape(4, 3), use_running_average=False)
        >>> print(y[:, 0], layer.mean[...])
        [-1.34 -0.45  0.45  1.34] [0.045 0.055 0.065]
    """

    scale: nnx.Param[jax.Array] | None
    bias: nnx.Param[jax.Array] | None

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        use_running_average: bool | None = False,
        axis: int | Sequence[int] = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-5,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Callable[..., jax.Array] = nnx.initializers.zeros,
        scale_init: Callable[..., jax.Array] = nnx.initializers.ones,
        axis_name: str | None = None,
        axis_index_groups: Any = None,
        use_fast_variance: bool = True,
        promote_dtype: Callable[..., Any] = dtypes.promote_dtype,
        rngs: nnx.Rngs,
        bias_metadata: Mapping[str, Any] = MappingProxyType({}),
        scale_metadata: Mapping[str, Any] = MappingProxyType({}),
        **own: Unpack[OwnKeywords],
    ):
        """Creates scale one, bias zero, mean zero and variance one.

        Args:
            num_features: features, or their shape where `axis` names several axes.
            use_running_average: normalize by the statistics (inference) or by the batch
                (training); `train()`, `eval()` and `nnx.view` set it, a call overrides it.
            axis: the feature axis or axes, see `bnjax.normalize_batch`.
            momentum: fraction of the old statistics kept; `decay` in `bnjax.normalize_batch`.
            epsilon: added to the variance; > 0.
            dtype: of the output; by default what input, statistics and parameters promote to.
            param_dtype: of scale and bias.
            use_bias: whether there is a bias (beta).
            use_scale: whether there is a scale (gamma).
            bias_init: initializer of the bias.
            scale_init: initializer of the scale.
            axis_name: mapped axes whose devices share the batch.
            axis_index_groups: groups of devices that share a batch each.
            use_fast_variance: without effect, for Flax's sake: the variance is always exact.
            promote_dtype: one's own is called as by Flax, on `(x, mean, var, scale, bias)`, None
                where one is missing, and `dtype=dtype`. What it returns normalizes; the statistics
                that are kept and moved are those from before. Flax's own is not called: here,
                `dtype` sets the type of the output alone.
            rngs: keys for the initializers, from its stream `params`.
            bias_metadata: of the `nnx.Param` of the bias, such as its sharding.
            scale_metadata: of the `nnx.Param` of the scale.
            averaging: of the statistics, see `bnjax.normalize_batch`; `"ema"` as in Flax.
            running_var: `"biased"` as in Flax, or `"unbiased"` as in the paper.
            impl: `"fused"`, or `"autodiff"` for forward mode.
            activation: None, `"relu"` or `"sigmoid"`, applied last and, in the backward pass, for
                free.
            batch: what is normalized together in training: `"all"`, `"device"` or k examples.
            update_statistics: None: exactly where the batch normalizes, as in Flax. False: never.
                True: always; where the statistics normalize, the batch moves them afterwards.

        Raises:
            ValueError: for a choice that does not exist.
            TypeError: for a keyword that does not exist.
        """
        _check_keywords(type(self), own)
        check_shape(num_features, "num_features")
        as_type(param_dtype, "param_dtype")
        OwnFields.__init__(self, **own)
        shape = tuple(num_features) if isinstance(num_features, Sequence) else (num_features,)
        for key, value in init_stats(shape, averaging=self.averaging).items():
            setattr(self, key, nnx.BatchStat(value))
        self.scale = self.bias = nnx.data(None)
        if use_scale:
            self.scale = nnx.Param(scale_init(rngs.params(), shape, param_dtype), **scale_metadata)
        if use_bias:
            self.bias = nnx.Param(bias_init(rngs.params(), shape, param_dtype), **bias_metadata)

        self.num_features = shape if isinstance(num_features, Sequence) else num_features
        self.use_running_average = use_running_average
        self.axis = tuple(axis) if isinstance(axis, Sequence) else axis
        self.momentum = momentum
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.use_bias = use_bias
        self.use_scale = use_scale
        self.axis_name = axis_name
        self.axis_index_groups = (  # hashable: what is no variable is a constant to NNX
            None if axis_index_groups is None else as_index_groups(axis_index_groups)
        )
        self.use_fast_variance = use_fast_variance
        self.promote_dtype = promote_dtype
        settings_of(self)  # fails for a choice that does not exist

    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
        update_statistics: bool | None = None,
    ) -> jax.Array:
        """Normalizes `x`, and moves the statistics in place.

        Args:
            x: floating, or complex: then the mean is complex, the variance E|x - mean|^2, and the
                backward pass JAX's own. Of rank 1 (features alone), it is one example of the batch
                that `axis_name` holds.
            use_running_average: overrides the attribute.
            mask: bool or integer, broadcast to `x` by NumPy's rules: what counts in the moments.
            update_statistics: overrides the attribute.

        Returns:
            An array of the shape of `x`.

        Raises:
            ValueError: as `bnjax.normalize_batch`; or where nothing says what normalizes.
            NameError: an axis of `axis_name` is not mapped, and the batch is to normalize.
            TraceContextError: if a transform took the layer from outside and it is to move its
                statistics: `nnx.eval_shape(lambda layer, x: layer(x), layer, x)` works.
        """
        return self._call(x, use_running_average, mask, update_statistics)

    def _call(self, *args: Any) -> jax.Array:
        """Returns what `_normalize` does; its errors name the layer."""
        name = type(self).__name__
        try:
            return self._normalize(*args)
        except (ValueError, NameError) as error:
            raise in_layer(error, f"{name} of {self.num_features} features") from error
        except TraceContextError as error:
            error.add_note(
                f"{name} cannot move its statistics here: make the model an argument of the "
                "transformed function, or set update_statistics=False."
            )
            raise

    def set_view(
        self, use_running_average: bool | None = None, update_statistics: bool | None = None
    ) -> None:
        """Sets the attributes; `nnx.view` calls it.

        Args:
            use_running_average: what normalizes; None leaves it.
            update_statistics: whether the batch moves the statistics; None leaves it.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average
        if update_statistics is not None:
            self.update_statistics = update_statistics

    def _normalize(
        self,
        x: jax.Array,
        use_running_average: bool | None,
        mask: jax.Array | None,
        update_statistics: bool | None,
        limits: Limits | None = None,
    ) -> jax.Array:
        check_array("x", x)
        running = self.use_running_average if use_running_average is None else use_running_average
        if running is None:
            raise ValueError(
                "use_running_average is None: give it to the constructor or the call, or set it "
                "with train(), eval() or nnx.view."
            )
        update = self.update_statistics if update_statistics is None else update_statistics
        params = self._variables("scale", "bias")
        stats = self._variables("mean", "var", "count")
        normalizing = stats
        sources: tuple[jax.Array, ...] = (
            stats["mean"],
            stats["var"],
        )  # as Flax: unlike in Linen, these take part
        if self.promote_dtype is not dtypes.promote_dtype:
            given = (stats["mean"], stats["var"], params.get("scale"), params.get("bias"))
            x, mean, var, scale, bias = self.promote_dtype((x, *given), dtype=self.dtype)
            normalizing, sources = {"mean": mean, "var": var}, ()
            params = {key: p for key, p in (("scale", scale), ("bias", bias)) if p is not None}
        dtype = self.dtype
        if dtype is None:
            dtype = jnp.result_type(x, *sources, *params.values())
        y, new, _ = normalize(
            x,
            params,
            stats,
            settings_of(self, dtype=dtype),
            use_running_average=running,
            update_statistics=update,
            mask=mask,
            normalizing=normalizing,
            limits=limits,
        )
        for key, value in (new or {}).items():
            variable = getattr(self, key)
            if value.dtype != stats[key].dtype and hasattr(variable, "set_value"):
                variable.set_value(value)  # Flax 0.12 casts what `[...]` is given
            else:
                variable[...] = value
        return y

    def _variables(self, *names: str) -> dict[str, jax.Array]:
        """Returns the arrays of those variables that exist."""
        found = {name: getattr(self, name, None) for name in names}
        return {name: variable[...] for name, variable in found.items() if variable is not None}


def _check_keywords(layer: type, own: Mapping[str, Any]) -> None:
    """Raises TypeError for a keyword that the layer lacks, with the one that may be meant."""
    for name in own.keys() - OwnKeywords.__annotations__.keys():
        known = [*signature(BatchNorm.__init__).parameters, *OwnKeywords.__annotations__]
        meant = "".join(f": did you mean {word}?" for word in get_close_matches(name, known, 1))
        raise TypeError(
            f"{layer.__name__}.__init__() got an unexpected keyword argument {name!r}{meant or '.'}"
        )


class BatchRenorm(BatchNorm):
    """Batch renormalization, see `bnjax.normalization.renormalize_batch`: `BatchNorm` in all else.

    State and inference are those of `BatchNorm`, whose checkpoints load; numbers are those of
    `bnjax.linen.BatchRenorm`.

    Example:
        >>> layer = BatchRenorm(3, r_max=1.0, d_max=0.0, rngs=nnx.Rngs(0))
        >>> y = layer(jnp.arange(12.0).reshape(4, 3), use_running_average=False)
        >>> print(y[:, 0])  # with these limits, batch normalization
        [-1.34 -0.45  0.45  1.34]
    """

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        r_max: float = 3.0,
        d_max: float = 5.0,
        **batch_norm: Any,
    ):
        """Creates scale one, bias zero, mean zero and variance one.

        Args:
            num_features: features, or their shape where `axis` names several axes.
            r_max: the batch's deviation is corrected by no more than this factor; >= 1.
            d_max: its mean by no more than so many deviations; >= 0. Both are by default what the
                paper ends with. It begins with 1 and 0, which are batch normalization: see
                `bnjax.normalization.renorm_limits`, and give what it returns in the call.
            **batch_norm: the other arguments of `BatchNorm`.

        Raises:
            ValueError: for a choice that does not exist, or a bad limit.
        """
        super().__init__(num_features, **batch_norm)
        check_limits(Limits(r_max, d_max))
        self.r_max = r_max
        self.d_max = d_max

    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
        update_statistics: bool | None = None,
        r_max: float | jax.Array | None = None,
        d_max: float | jax.Array | None = None,
    ) -> jax.Array:
        """Renormalizes `x`, and moves the statistics in place.

        Args:
            x: floating, as for `BatchNorm`; complex in inference alone.
            use_running_average: overrides the attribute.
            mask: as for `BatchNorm`.
            update_statistics: overrides the attribute.
            r_max: overrides the attribute; may be traced.
            d_max: overrides the attribute; may be traced.

        Returns:
            An array of the shape of `x`.

        Raises:
            ValueError: as `bnjax.normalization.renormalize_batch`; otherwise as `BatchNorm`.
        """
        limits = limits_of(self, r_max, d_max)
        return self._call(x, use_running_average, mask, update_statistics, limits)
