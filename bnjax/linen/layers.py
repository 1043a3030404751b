"""Batch normalization, and renormalization, as Flax Linen modules."""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from bnjax.normalization.arguments import check_array, split_axes
from bnjax.normalization.batch_norm import init_stats
from bnjax.normalization.dtypes import as_type
from bnjax.normalization.errors import in_layer
from bnjax.normalization.moments import Moments, batch_size
from bnjax.normalization.renormalization import Limits, limits_of
from bnjax.normalization.settings import OwnFields, settings_of
from bnjax.normalization.switches import normalize

keep: ContextVar[Callable[[Any, Moments], None]] = ContextVar(
    "keep", default=lambda layer, moments: None
)
"""Takes the moments of each layer; `model_moments` sets it. (A method that it intercepts would be
seen by the interceptors of others, too.)"""


class BatchNorm(nn.Module, OwnFields):
    """Batch normalization with Flax's constructor names, call signature and collections.

    With the defaults, parameters and `batch_stats` are Flax's leaf for leaf: existing checkpoints
    load. What differs: moments are exact at any offset, masks cannot leak NaN, a batch of one
    value per feature raises, and the backward pass is the closed form. As in Flax,
    initialization moves no statistics, and what it is given is the whole batch: mapped axes need
    not exist. (One value per feature is normalized by the initial statistics there.)

    Statistics narrower than float32 come back as float32, for narrow ones stick: widen them before
    a loop that carries them (`nn.scan`), which keeps dtypes.

    Two switches are independent: what normalizes, `use_running_average`, and `update_statistics`.
    Whether scale and bias are trained and decayed is for the optimizer to say.

    Attributes:
        use_running_average: normalize by the statistics (inference) or by the batch (training);
            here or in the call, no default.
        axis: the feature axis or axes, see `bnjax.normalize_batch`.
        momentum: fraction of the old statistics kept; `decay` in `bnjax.normalize_batch`.
        epsilon: added to the variance; > 0.
        dtype: of the output; by default what input and parameters promote to.
        param_dtype: of scale and bias.
        use_bias: whether there is a bias (beta).
        use_scale: whether there is a scale (gamma).
        bias_init: initializer of the bias.
        scale_init: initializer of the scale.
        axis_name: mapped axes whose devices share the batch.
        axis_index_groups: groups of devices that share a batch each.
        use_fast_variance: without effect, for Flax's sake: the variance is always exact.
        force_float32_reductions: only True; moments are at least float32.
        averaging: of the statistics, see `bnjax.normalize_batch`; `"ema"` as in Flax.
        running_var: `"biased"` as in Flax, or `"unbiased"` as in the paper.
        impl: `"fused"`, or `"autodiff"` for forward mode.
        activation: None, `"relu"` or `"sigmoid"`, applied last and, in the backward pass, for free.
        batch: what is normalized together in training: `"all"`, `"device"` or k examples.
        update_statistics: None: exactly where the batch normalizes, as in Flax. False: never; the
            batch then normalizes without any `batch_stats`. True: always; where the statistics
            normalize, the batch moves them afterwards. Here or in the call.

    Example:
        >>> x = jnp.arange(12.0).reshape(4, 3)
        >>> layer = BatchNorm(use_running_average=False)
        >>> variables = layer.init(jax.random.key(0), x)
        >>> y, moved = layer.apply(variables, x, mutable=["batch_stats"])
        >>> print(y[:, 0])
        [-1.34 -0.45  0.45  1.34]
        >>> sorted(moved["batch_stats"])
        ['mean', 'var']
    """

    use_running_average: bool | None = None
    axis: int | Sequence[int] = -1
    momentum: float = 0.99
    epsilon: float = 1e-5
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Callable[..., jax.Array] = nn.initializers.zeros
    scale_init: Callable[..., jax.Array] = nn.initializers.ones
    axis_name: str | None = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
        update_statistics: bool | None = None,
    ) -> jax.Array:
        """Normalizes `x`.

        Args:
            x: floating, or complex: then the mean is complex, the variance E|x - mean|^2, and the
                backward pass JAX's own. Of rank 1 (features alone), it is one example of the batch
                that `axis_name` holds.
            use_running_average: overrides the attribute, which must then be None.
            mask: bool or integer, broadcast to `x` by NumPy's rules: what counts in the moments.
            update_statistics: overrides the attribute, which must then be None.

        Returns:
            An array of the shape of `x`.

        Raises:
            ValueError: as `bnjax.normalize_batch`, with this layer's path.
            NameError: an axis of `axis_name` is not mapped, and the batch is to normalize.
        """
        return self._call(x, use_running_average, mask, update_statistics)

    @nn.nowrap
    def _call(self, *args: Any) -> jax.Array:
        """Returns what `_normalize` does; its errors get the layer's path."""
        try:
            return self._normalize(*args)
        except (ValueError, NameError) as error:
            path = "/".join(self.scope.path) if self.scope else ""
            raise in_layer(error, f"{type(self).__name__} at {path or '(top)'}") from error

    @nn.nowrap
    def _normalize(
        self,
        x: jax.Array,
        use_running_average: bool | None,
        mask: jax.Array | None,
        update_statistics: bool | None,
        limits: Limits | None = None,
    ) -> jax.Array:
        if not self.force_float32_reductions:
            raise ValueError(
                "force_float32_reductions=False is refused: a variance summed in a narrower type "
                "is wrong. Leave it True; `dtype` sets the type of the output."
            )
        check_array("x", x)
        as_type(self.param_dtype, "param_dtype")
        running, update = self._switches(use_running_average, update_statistics)
        axes, shape = split_axes(x, self.axis)
        whole: dict[str, Any] = {}
        initializing = self.is_initializing()
        if initializing:  # `x` is the whole batch
            whole = {"batch": "all", "axis_name": None, "axis_index_groups": None}
            values = batch_size(x.shape, axes)
            running = running or (isinstance(values, int) and values < 2)
        params = {}
        if self.use_scale:
            params["scale"] = self.param("scale", self.scale_init, shape, self.param_dtype)
        if self.use_bias:
            params["bias"] = self.param("bias", self.bias_init, shape, self.param_dtype)
        initial = init_stats(shape, averaging=self.averaging)
        if self.has_variable("batch_stats", "mean") and not self.has_variable(
            "batch_stats", "count"
        ):
            initial.pop("count", None)  # a new one, of zero updates, would discard what is there
        variables = {
            key: self.variable("batch_stats", key, lambda value=value: value)
            for key, value in initial.items()
            if initializing or update or (key != "count" if running else limits is not None)
        }
        dtype = jnp.result_type(x, *params.values()) if self.dtype is None else self.dtype
        y, stats, moments = normalize(
            x,
            params,
            {key: variable.value for key, variable in variables.items()},
            settings_of(self, dtype=dtype, **whole),
            use_running_average=running,
            update_statistics=update,
            mask=mask,
            limits=limits,
        )
        for key, value in (stats or {}).items():
            variables[key].value = value
        if moments is not None:
            keep.get()(self, moments)
        return y

    @nn.nowrap
    def _switches(
        self, use_running_average: bool | None, update_statistics: bool | None
    ) -> tuple[bool, bool]:
        """Returns whether the statistics normalize, and whether the batch updates them."""
        running = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        update = self.update_statistics
        if update_statistics is not None:
            update = nn.merge_param("update_statistics", update, update_statistics)
        if self.is_initializing():
            return running, False
        return running, not running if update is None else update


class BatchRenorm(BatchNorm):
    """Batch renormalization, see `bnjax.normalization.renormalize_batch`: `BatchNorm` in all else.

    Parameters, `batch_stats` and inference are those of `BatchNorm`, whose checkpoints load.

    Limits that change in training are given in the call; or, in a network that makes the layers
    itself, as attributes, in the step: `norm=partial(BatchRenorm, r_max=r_max, d_max=d_max)`, where
    `r_max, d_max = bnjax.normalization.renorm_limits(step)`.

    Attributes:
        r_max: the batch's deviation is corrected by no more than this factor; >= 1.
        d_max: its mean by no more than so many deviations; >= 0. Both are by default what the paper
            ends with. It begins with 1 and 0, which are batch normalization.

    Example:
        >>> x = jnp.arange(12.0).reshape(4, 3)
        >>> layer = BatchRenorm(use_running_average=False, r_max=1.0, d_max=0.0)
        >>> variables = layer.init(jax.random.key(0), x)
        >>> y, _ = layer.apply(variables, x, mutable=["batch_stats"])
        >>> print(y[:, 0])  # with these limits, batch normalization
        [-1.34 -0.45  0.45  1.34]
    """

    r_max: float | jax.Array = 3.0
    d_max: float | jax.Array = 5.0

    @nn.compact
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
        """Renormalizes `x`.

        Args:
            x: floating, as for `BatchNorm`; complex in inference alone.
            use_running_average: as for `BatchNorm`.
            mask: as for `BatchNorm`.
            update_statistics: as for `BatchNorm`; the statistics are read in any case.
            r_max: overrides the attribute.
            d_max: overrides the attribute.

        Returns:
            An array of the shape of `x`.

        Raises:
            ValueError: as `bnjax.normalization.renormalize_batch`, with this layer's path.
        """
        limits = limits_of(self, r_max, d_max)
        return self._call(x, use_running_average, mask, update_statistics, limits)
