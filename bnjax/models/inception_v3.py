"""Inception-v3, and Inception-v2 as the outline of Szegedy et al. 2016, Table 1, has it."""

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
from flax.typing import Dtype

from bnjax.models.inception import (
    REDUCTIONS,
    Conv,
    InceptionNetwork,
    Logits,
    Reduction,
)
from bnjax.models.inception_modules import (
    Branches,
    Expanded,
    Factorized,
    GridReduction,
    ReductionOrder,
    ReductionTo8,
    ReductionTo17,
    Traditional,
)
from bnjax.models.norms import Norm
from bnjax.models.pooling import average_pool, max_pool
from bnjax.normalization.settings import check_choice

AUXILIARY_WEIGHT = 0.4
"""Weight of the side head's loss in the released training code; the paper gives none."""

Outline = Literal["public", "table_1"]
StemKind = Literal["factorized", "7x7"]
StemPadding = Literal["VALID", "SAME"]
Auxiliary = Literal["none", "plain", "normalized"]


class Layer(NamedTuple):
    """A row of the stem: a convolution, or a max pool (`features` 0)."""

    name: str
    kernel: int
    stride: int
    padding: Literal["SAME", "VALID"]
    features: int

    def positions(self, n: int) -> int:
        """The number of output rows or columns for an input of `n`."""
        window = self.kernel if self.padding == "VALID" else 1
        return (n - window) // self.stride + 1


class Row(NamedTuple):
    """One Inception module of an outline."""

    name: str
    module: type[Branches]
    widths: Mapping[str, int]


def stem_layers(
    outline: Outline, kind: StemKind, reduction: Reduction, padding: StemPadding = "VALID"
) -> list[Layer]:
    """The rows before the first Inception module; output sizes for 299x299.

    With `padding="SAME"` all of them are padded: the grid is the image's, divided by the strides.

    The 7x7 convolution has no description in the paper: its width and padding here are those which
    lead to the same 147x147x64. In Table 1 a convolution takes the second pool's stride, and the
    last one is padded, for without that its 35x35 cannot stay.
    """
    first = reduction.stride
    layers = [
        Layer("conv_1a", 3, first, "VALID", 32),  # 149x149x32
        Layer("conv_2a", 3, 1, "VALID", 32),  # 147x147x32
        Layer("conv_2b", 3, 1, "SAME", 64),  # 147x147x64
    ]
    if kind == "7x7":
        layers = [Layer("conv_1a", 7, first, "VALID", 64)]  # 147x147x64
    if reduction.first_pool:
        layers.append(Layer("pool_2", 3, 2, "VALID", 0))  # 73x73x64
    if outline == "table_1":
        layers += [
            Layer("conv_3b", 3, 1, "VALID", 80),  # 71x71x80
            Layer("conv_4a", 3, 2 if reduction.second_pool else 1, "VALID", 192),  # 35x35x192
            Layer("conv_4b", 3, 1, "SAME", 288),  # 35x35x288
        ]
    else:
        layers += [
            Layer("conv_3b", 1, 1, "VALID", 80),  # 73x73x80
            Layer("conv_4a", 3, 1, "VALID", 192),  # 71x71x192
        ]
        if reduction.second_pool:
            layers.append(Layer("pool_4", 3, 2, "VALID", 0))  # 35x35x192
    return [layer._replace(padding="SAME") for layer in layers] if padding == "SAME" else layers


OUTLINES: dict[Outline, tuple[Row, ...]] = {
    "public": (
        Row("mixed_5b", Traditional, {"project": 32}),  # 35x35x256
        Row("mixed_5c", Traditional, {"project": 64}),  # 35x35x288
        Row("mixed_5d", Traditional, {"project": 64}),  # 35x35x288
        Row("mixed_6a", ReductionTo17, {}),  # 17x17x768
        Row("mixed_6b", Factorized, {"inner": 128}),  # 17x17x768
        Row("mixed_6c", Factorized, {"inner": 160}),  # 17x17x768
        Row("mixed_6d", Factorized, {"inner": 160}),  # 17x17x768
        Row("mixed_6e", Factorized, {"inner": 192}),  # 17x17x768
        Row("mixed_7a", ReductionTo8, {}),  # 8x8x1280
        Row("mixed_7b", Expanded, {}),  # 8x8x2048
        Row("mixed_7c", Expanded, {}),  # 8x8x2048
    ),
    "table_1": (
        Row("mixed_5b", Traditional, {"project": 64, "large": 3}),  # 35x35x288
        Row("mixed_5c", Traditional, {"project": 64, "large": 3}),  # 35x35x288
        Row("mixed_5d", Traditional, {"project": 64, "large": 3}),  # 35x35x288
        Row("mixed_6a", ReductionTo17, {}),  # 17x17x768
        Row("mixed_6b", Factorized, {"inner": 128}),  # 17x17x768
        Row("mixed_6c", Factorized, {"inner": 160}),  # 17x17x768
        Row("mixed_6d", Factorized, {"inner": 160}),  # 17x17x768
        Row("mixed_6e", Factorized, {"inner": 192}),  # 17x17x768
        Row("mixed_6f", Factorized, {"inner": 192}),  # 17x17x768
        Row("mixed_7a", ReductionTo8, {}),  # 8x8x1280
        Row("mixed_7b", Expanded, {}),  # 8x8x2048
        Row("mixed_7c", Expanded, {}),  # 8x8x2048
    ),
}


class SideHead(nn.Module):
    """The auxiliary classifier (section 4): pool to 5x5, 1x1 convolution, dense 768, logits.

    The dense layer is a convolution whose kernel is the whole 5x5 grid, as in public code; a
    smaller grid has a smaller kernel, on a larger one the kernel moves and its outputs are
    averaged.

    Attributes:
        classes: outputs.
        conv: makes its convolutions.
        hidden_norm: normalization of the dense layer, "BN-auxiliary"; None for none.
        dtype: dtype of the logits.
        param_dtype: dtype of the last layer's parameters.
    """

    classes: int
    conv: Conv
    hidden_norm: Norm | str | None
    dtype: Dtype | None
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Logits `[n, classes]` of `[n, h, w, c]`."""
        x = average_pool(x, (5, 5), (3, 3))  # 5x5x768
        x = self.conv(128, (1, 1), name="conv1x1")(x, train=train)  # 5x5x128
        x = self.conv(
            768,
            (min(5, x.shape[1]), min(5, x.shape[2])),
            padding="VALID",
            norm=self.hidden_norm,
            kernel_init=nn.initializers.truncated_normal(0.01),
            name="hidden",
        )(x, train=train)  # 1x1x768
        return nn.Dense(
            self.classes,
            kernel_init=nn.initializers.truncated_normal(0.001),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="logits",
        )(x.mean((1, 2)))


class InceptionV3(InceptionNetwork):
    """Inception-v3: 23,834,568 parameters, 5.71e9 multiply-adds at 299x299, without side head.

    `stem_stride` 8, 4 and 2 are the paper's networks for 299, 151 and 79 pixels (Table 2), 2 and 1
    suit 64 and 32. The paper calls their cost the same: at 151 pixels it is that of 299, at 79 it
    is 6.2 % less (2.9 % with the 7x7 stem). `stem="7x7"` with `stem_stride=4` needs 153 pixels
    for the grids of 35, 17 and 8 rows that 299 pixels have; 151 leave it 34, 16 and 7. Of the steps
    of the paper's Table 3, `stem="7x7", auxiliary="plain"` undoes the last two; the others, RMSProp
    and label smoothing, are the training's. `bnjax.models.rethinking` has both tables.

    Attributes besides those of `InceptionNetwork`:
        outline: `"public"`, the network that all public code and weights share, or `"table_1"`,
            the paper's: two 3x3 convolutions and a stride in the stem's second half, 3x3 kernels
            for 5x5 ones, 288 channels from the first module on, and five factorized modules, not
            four. The paper's text has no widths within modules: here they are those of public
            code, with `inner` 192 in the fifth. That makes 26.4e6 parameters and 6.48e9
            multiply-adds, where the paper speaks of fewer than 25e6 and of 4.8e9: the outline, so
            read, is not the network that was measured.
        stem: the first layers, three 3x3 convolutions or the 7x7 one that they factorize.
        auxiliary: the side head, `"normalized"` throughout ("BN-auxiliary"), `"plain"` in its dense
            layer, or `"none"`. It is a part of the network at initialization and in training only.
        stem_padding: `"VALID"`, or `"SAME"` for small images: the first grid then has their side
            over `stem_stride`. With 4, 2 and 1, images of 64, 32 and 16 pixels all have grids of
            16, 7 and 3 rows, those of 32 for 8.5 % fewer multiply-adds than those of 64 (10
            classes, no side head), those of 16 for 21.4 %.
        linear_factors: whether the first of two convolutions that factorize a larger one has no
            nonlinearity, only its `norm`: 3x3 before 3x3, 1xn before nx1 (section 3.1, Figure 2).
            The stem keeps all of its nonlinearities.
        factorized_size: n of the 1xn and nx1 kernels in the factorized modules (section 3.2, Figure
            6), odd; mixed_7a keeps its 7. With 3 there are 21,180,360 parameters and 4.95e9
            multiply-adds.
        grid_reduction: how mixed_6a and mixed_7a halve the grid (section 5, Figures 9 and 10), see
            `GridReduction`. `"pool_first"` takes 0.83 and 0.37 times the multiply-adds of
            `"parallel"` in them, `"pool_last"` 3.5 (the paper: three) and 1.7 times.

    Example:
        >>> model = InceptionV3(classes=10, norm="batch", width=0.125, auxiliary="none")
        >>> images = jnp.zeros((2, 299, 299, 3))
        >>> logits, _ = jax.eval_shape(
        ...     partial(model.init_with_output, train=False), jax.random.key(0), images
        ... )
        >>> logits.main.shape
        (2, 10)
    """

    dropout: float = 0.2
    outline: Outline = "public"
    stem: StemKind = "factorized"
    auxiliary: Auxiliary = "normalized"
    stem_padding: StemPadding = "VALID"
    linear_factors: bool = False
    factorized_size: int = 7
    grid_reduction: ReductionOrder = "parallel"

    def __post_init__(self) -> None:
        check_choice("outline", self.outline, Outline)
        check_choice("stem", self.stem, StemKind)
        check_choice("auxiliary", self.auxiliary, Auxiliary)
        check_choice("stem_padding", self.stem_padding, StemPadding)
        check_choice("grid_reduction", self.grid_reduction, ReductionOrder)
        if self.factorized_size < 3 or self.factorized_size % 2 == 0:
            raise ValueError(
                f"factorized_size must be odd and 3 or more, got {self.factorized_size}."
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> Logits:
        """Logits of images `[n, h, w, channels]`; those of the side head in training only.

        Raises:
            ValueError: for images too small or of other channels.
        """
        self._check(images)
        conv = self._convolutions()
        x = images
        for layer in self._stem_layers():
            x = _apply(layer, x, conv, train)
        auxiliary: tuple[jax.Array, ...] = ()
        for row in OUTLINES[self.outline]:
            if row.module is ReductionTo8 and self._has_head(train):
                auxiliary = (self._side_head(conv)(x, train=train),)
            block: Any = self._block(row.module)
            x = block(
                conv,
                self.count_include_pad,
                self.linear_factors,
                **row.widths,
                **self._options_of(row.module),
                name=row.name,
            )(x, train)
        return Logits(self._classify(x, train), auxiliary)

    @nn.nowrap
    def _options_of(self, module: type[Branches]) -> dict[str, Any]:
        """What one kind of module has an option for."""
        if issubclass(module, GridReduction):
            return {"order": self.grid_reduction}
        return {"n": self.factorized_size} if module is Factorized else {}

    @nn.nowrap
    def _has_head(self, train: bool) -> bool:
        return self.auxiliary != "none" and (train or self.is_initializing())

    @nn.nowrap
    def _side_head(self, conv: Conv) -> SideHead:
        norm = self.norm if self.auxiliary == "normalized" else None
        return SideHead(self.classes, conv, norm, self.dtype, self.param_dtype, name="auxiliary")

    @nn.nowrap
    def _stem_layers(self) -> list[Layer]:
        reduction = REDUCTIONS[self.stem_stride]
        return stem_layers(self.outline, self.stem, reduction, self.stem_padding)

    @nn.nowrap
    def _grid(self) -> tuple[Callable[[int], int], int]:
        layers = self._stem_layers()

        def rows(n: int) -> int:
            return reduce(lambda n, layer: max(0, layer.positions(n)), layers, n)

        return rows, 7 if self.auxiliary == "none" else 11  # mixed_7a, or the head, has input


def _apply(layer: Layer, x: jax.Array, conv: Conv, train: bool) -> jax.Array:
    """A row of the stem, in the network's compact method."""
    window, strides = (layer.kernel, layer.kernel), (layer.stride, layer.stride)
    if not layer.features:
        return max_pool(x, window, strides, layer.padding)
    made = conv(layer.features, window, layer.stride, layer.padding, name=layer.name)
    return made(x, train=train)
