"""Views of images that lie on the device: pure functions of JAX, to be compiled with a step.

The distributions and pixels are those of `augmentation`; the generator is JAX's. A view is a
function of the image, the seed and the position: neither the batch nor its devices matter.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bnjax.data.views.augmentation import Augmentation, check_view
from bnjax.data.views.crops import CENTRE, central_window, padded_rest, whole
from bnjax.data.views.device_crops import cut_padded, draw_below, draw_window, resize
from bnjax.data.views.device_distortions import Changes, distort, draw_changes
from bnjax.data.views.resizing import INTERPOLATIONS
from bnjax.scalars import check_seed

_PURPOSE = 0x76696577
"""Folded into the seed's key: other keys are made of the same seed."""


class Draws(NamedTuple):
    """What was drawn for one view; None for what an augmentation leaves out.

    Attributes:
        window: int32 [4], left, top, width and height, pixels.
        interpolation: int32, index into the four; for "random".
        mirrored: bool.
        changes: of colours.
    """

    window: Array
    interpolation: Array | None
    mirrored: Array | None
    changes: Changes | None


def view_keys(seed: Array | int, positions: Array) -> Array:
    """Returns the key of each view, a function of seed and position alone.

    Args:
        seed: in 0 .. 2**32 - 1; an array, which may be traced, of int32 or uint32.
        positions: uint32 [n], of the examples over the whole training: step * batch + i.

    Returns:
        Typed keys [n], of Threefry: what other generators draw under `vmap` depends on the batch.

    Raises:
        ValueError: for other positions; for another seed that is no array.
    """
    if positions.dtype != jnp.uint32 or positions.ndim != 1:
        raise ValueError(
            f"positions must be uint32 [n], got {positions.dtype} {list(positions.shape)}."
        )
    if not isinstance(seed, Array):
        check_seed(seed, bits=32)
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), _PURPOSE)
    return jax.vmap(partial(jax.random.fold_in, key))(positions)


def training_views(images: Array, keys: Array, augmentation: Augmentation) -> Array:
    """Draws a random view of each image: crop, mirror, distortion of colours, in this order.

    Args:
        images: uint8 [n, height, width, 1 or 3].
        keys: [n], of `view_keys`.
        augmentation: the choices.

    Returns:
        uint8 [n, image_size, image_size, 3].

    Raises:
        DataError: the images are smaller than a crop after padding.
        ValueError: images or keys of another dtype or shape.
    """
    _check_images(images)
    if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) or keys.shape != images.shape[:1]:
        raise ValueError(
            f"keys must be those of view_keys, one for each of {images.shape[0]} images; "
            f"got {keys.dtype} {list(keys.shape)}."
        )
    height, width = images.shape[1:3]
    draws = jax.vmap(partial(draw, width=width, height=height, augmentation=augmentation))(keys)
    return jax.vmap(partial(apply, augmentation=augmentation))(images, draws)


def draw(key: Array, width: int, height: int, augmentation: Augmentation) -> Draws:
    """Draws one view of an image of that size.

    Each choice has numbers of its own: augmentations that differ in one differ in nothing else.
    """
    pairs = {"inception": 1 + augmentation.attempts, "pad": 1, "none": 0}[augmentation.crop]
    uniforms = jax.random.uniform(key, (7 + 2 * pairs,), jnp.float32)
    places = uniforms[7:].reshape(pairs, 2)
    if augmentation.crop == "inception":
        window = draw_window(
            places,
            width,
            height,
            area=augmentation.area,
            aspect=augmentation.aspect,
            spacing=augmentation.aspect_spacing,
        )
    elif augmentation.crop == "pad":
        size, padding = augmentation.image_size, augmentation.padding
        ends = jnp.array(padded_rest(width, height, size, padding), jnp.int32) + 1
        corner = draw_below(places[0], ends) - padding
        window = jnp.concatenate([corner, jnp.full(2, size, jnp.int32)])
    else:
        window = jnp.array(whole(width, height), jnp.int32)
    interpolation = mirrored = None
    if augmentation.interpolation == "random":
        interpolation = draw_below(uniforms[6], len(INTERPOLATIONS))
    if augmentation.mirror:
        mirrored = uniforms[5] < 0.5
    ranges = augmentation.ranges
    changes = None if ranges is None else draw_changes(uniforms[:5], ranges)
    return Draws(window, interpolation, mirrored, changes)


def apply(image: Array, draws: Draws, augmentation: Augmentation) -> Array:
    """Makes the view that was drawn.

    Args:
        image: uint8 [height, width, 1 or 3].
        draws: of `draw`, for this size.
        augmentation: the choices.

    Returns:
        uint8 [image_size, image_size, 3].
    """
    size = augmentation.image_size
    if augmentation.crop == "pad":
        view = cut_padded(image, draws.window, size, augmentation.padding)
    elif augmentation.crop == "none" and image.shape[:2] == (size, size):
        view = image
    elif augmentation.interpolation == "random":
        kinds = [partial(resize, size=size, interpolation=kind) for kind in INTERPOLATIONS]
        view = jax.lax.switch(draws.interpolation, kinds, image, draws.window)
    else:
        view = resize(image, draws.window, size, augmentation.interpolation)
    if draws.mirrored is not None:
        view = jnp.where(draws.mirrored, view[:, ::-1], view)
    view = jnp.broadcast_to(view, (size, size, 3))
    return view if draws.changes is None else distort(view, draws.changes)


def evaluation_views(images: Array, image_size: int, *, fraction: float = CENTRE) -> Array:
    """Returns the central crop of each image, as `augmentation.evaluation_view` does.

    Args:
        images: uint8 [n, height, width, 1 or 3].
        image_size: height and width of the views, pixels.
        fraction: part of the shorter side that stays.

    Returns:
        uint8 [n, image_size, image_size, 3].

    Raises:
        ValueError: images of another dtype or shape, or an argument out of its range.
    """
    _check_images(images)
    check_view(image_size, fraction)
    height, width = images.shape[1:3]
    window = central_window(width, height, fraction=fraction, shape="square")
    if window == whole(width, height) and width == image_size:
        views = images
    else:
        place = jnp.array(window, jnp.float32)
        views = jax.vmap(lambda image: resize(image, place, image_size, "bilinear"))(images)
    return jnp.broadcast_to(views, (*views.shape[:3], 3))


def _check_images(images: Array) -> None:
    if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            "images must be uint8 [n, height, width, 1 or 3], "
            f"got {images.dtype} {list(images.shape)}."
        )
