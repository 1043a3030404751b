"""Where public weights come from, and what each source's network and images are like."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bnjax.models.bn_inception import BNInception
from bnjax.models.googlenet import GoogLeNet
from bnjax.models.inception_v3 import InceptionV3
from bnjax.models.pretrained import names
from bnjax.models.pretrained.keras_files import read_keras
from bnjax.models.pretrained.safetensors_files import read_safetensors
from bnjax.models.pretrained.torch_files import read_torch

SourceName = Literal["keras", "torchvision", "timm", "pretrainedmodels"]


class Preprocessing(NamedTuple):
    """The form in which a network expects its images.

    Attributes:
        size: pixels a side, of a central crop.
        resize: the shorter side before the crop; None if the source does not crop.
        interpolation: of the resizing; None if the source says none.
        mean: taken from each channel of values in 0..255, in the order of `channels`.
        scale: divides each channel then.
        channels: their order.

    Example:
        >>> half = (127.5, 127.5, 127.5)
        >>> preprocessing = Preprocessing(299, 342, "bilinear", mean=half, scale=half)
        >>> print(preprocessing.normalize(np.array([0, 51, 255], np.uint8)))
        [-1.  -0.6  1. ]
    """

    size: int
    resize: int | None
    interpolation: Literal["bilinear", "bicubic"] | None
    mean: tuple[float, float, float]
    scale: tuple[float, float, float]
    channels: Literal["RGB", "BGR"] = "RGB"

    def normalize(self, images: jax.Array | np.ndarray) -> jax.Array:
        """The network's input, float32, of RGB images `[..., 3]` with values 0 to 255.

        Raises:
            ValueError: for images of another number of channels.
        """
        if images.ndim < 1 or images.shape[-1] != 3:
            raise ValueError(f"images must have shape [..., 3], RGB, got {images.shape}.")
        x = jnp.asarray(images).astype(jnp.float32)
        if self.channels == "BGR":
            x = x[..., ::-1]
        shape = (1,) * (x.ndim - 1) + (3,)
        mean, scale = (jnp.array(v, jnp.float32).reshape(shape) for v in (self.mean, self.scale))
        return (x - mean) / scale


class Source(NamedTuple):
    """Weights of one network from one place.

    Attributes:
        name: of the place.
        network: ours.
        settings: attributes of the network that the weights need, with the values that do.
        epsilon: of its batch normalization.
        scale: whether that has a scale.
        preprocessing: of its images.
        entries: what is in its file.
        formats: what reads a file, by its ending.
        notes: what to know about its files.
    """

    name: SourceName
    network: type[nn.Module]
    settings: Mapping[str, tuple[Any, ...]]
    epsilon: float
    scale: bool
    preprocessing: Preprocessing
    entries: Callable[[], Iterable[names.Entry]]
    formats: Mapping[str, Callable[[Path], dict[str, np.ndarray]]]
    notes: tuple[str, ...] = ()


def find_source(name: str, model: nn.Module) -> Source:
    """The source of that name for a network of this kind.

    Raises:
        ValueError: if there is none.
    """
    for source in SOURCES:
        if (source.name, source.network) == (name, type(model)):
            return source
    known = ", ".join(f"{source.name!r} for {source.network.__name__}" for source in SOURCES)
    raise ValueError(
        f"there are no weights of source={name!r} for {type(model).__name__}: choose from {known}. "
        "For files of save_safetensors use load_safetensors."
    )


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    return read_safetensors(path)[0]


_TORCH = {
    ".pth": read_torch,
    ".pt": read_torch,
    ".bin": read_torch,
    ".safetensors": _safetensors,
}
_FULL = {"width": (1.0,), "stem_stride": (8,), "channels": (3,), "activation": (nn.relu,)}
_V3 = _FULL | {
    "outline": ("public",),
    "stem": ("factorized",),
    "stem_padding": ("VALID",),
    "linear_factors": (False,),
    "factorized_size": (7,),
    "grid_reduction": ("parallel",),
}
_HALF = (127.5, 127.5, 127.5)  # as mean and as scale: to [-1, 1]
_TRANSPOSED = "kernels [out, in, h, w] are [h, w, in, out] now, and [out, in] are [in, out]."


def _goes_on(name: str, norm: str, rate: float) -> str:
    return (
        f"in training, normalization goes on as in {name} with BatchNorm({norm}), dropout with "
        f"dropout={rate}."
    )


_TORCH_NORM = "momentum=0.9, running_var='unbiased'"
_USUAL = "mean (123.675, 116.28, 103.53) and scale (58.395, 57.12, 57.375)"
_TRANSFORM_INPUT = (
    "the published weights take images in [-1, 1]: transform_input=True turns torchvision's usual "
    f"normalization into that. Weights trained there without it want {_USUAL}."
)
_TORCHVISION_V3 = Source(
    "torchvision",
    InceptionV3,
    _V3 | {"count_include_pad": (True,), "auxiliary": ("normalized", "none")},
    epsilon=1e-3,
    scale=True,
    preprocessing=Preprocessing(299, 342, "bilinear", _HALF, _HALF),
    entries=names.torch_inception_v3,
    formats=_TORCH,
    notes=(_TRANSPOSED, _goes_on("torchvision", _TORCH_NORM, 0.5), _TRANSFORM_INPUT),
)

SOURCES = (
    Source(
        "keras",
        InceptionV3,
        _V3 | {"count_include_pad": (False,), "auxiliary": ("none",)},
        epsilon=1e-3,
        scale=False,
        preprocessing=Preprocessing(299, None, None, _HALF, _HALF),
        entries=names.keras_inception_v3,
        formats={".h5": read_keras},
        notes=(_goes_on("Keras", "momentum=0.99", 0.0),),
    ),
    _TORCHVISION_V3,
    _TORCHVISION_V3._replace(
        name="timm",
        preprocessing=Preprocessing(299, 341, "bicubic", _HALF, _HALF),
        notes=(
            _TRANSPOSED,
            _goes_on("timm", _TORCH_NORM, 0.0),
            f"the gluon weights of timm want {_USUAL}; files with 1,001 classes, of older "
            "versions, have TensorFlow's background class first, which class_offset=1 drops.",
        ),
    ),
    Source(
        "torchvision",
        GoogLeNet,
        _FULL
        | {
            "variant": ("torchvision",),
            "local_response_norm": (False,),
            "padding": ("SYMMETRIC",),
        },
        epsilon=1e-3,
        scale=True,
        preprocessing=Preprocessing(224, 256, "bilinear", _HALF, _HALF),
        entries=names.torch_googlenet,
        formats=_TORCH,
        notes=(
            _TRANSPOSED,
            _goes_on("torchvision", _TORCH_NORM, 0.2),
            _TRANSFORM_INPUT,
            "torchvision says of its published file that the side heads are not trained.",
        ),
    ),
    Source(
        "pretrainedmodels",
        BNInception,
        _FULL
        | {
            "stem": ("dense",),
            "figure_5": ("widths",),
            "local_response_norm": (False,),
            "per_activation": ((),),
            "padding": ("SYMMETRIC",),
            "count_include_pad": (True,),
            "factorize_5x5": (True,),
            "linear_factors": (False,),
        },
        epsilon=1e-5,
        scale=True,
        preprocessing=Preprocessing(
            224, 256, "bilinear", (104.0, 117.0, 128.0), (1.0, 1.0, 1.0), "BGR"
        ),
        entries=names.caffe_bn_inception,
        formats=_TORCH,
        notes=(
            _TRANSPOSED,
            "where a side is no multiple of 32, max pools lie otherwise than the source's.",
        ),
    ),
)
