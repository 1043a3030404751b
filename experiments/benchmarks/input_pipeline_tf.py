"""The same crops by tf.data and its fused decode-and-crop. Importing this needs TensorFlow."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from bnjax.data.views.crops import Window


def fused_decoder(
    files: Sequence[bytes], windows: Sequence[Window], size: int, *, same: bool
) -> Callable[[int], list[np.ndarray]]:
    """Decodes and crops in one operation, then resizes; one image after another in one thread.

    Args:
        files: JPEG.
        windows: one of each file, whole pixels.
        size: height and width of the views.
        same: whether to make bnjax's pixels, by the accurate inverse DCT and a resizing that
            averages over what an output pixel covers. Otherwise TensorFlow's defaults: the fast
            DCT, and four pixels whatever the scale.
    """
    boxes = np.array([(w.top, w.left, w.height, w.width) for w in windows], np.int32)
    method = "INTEGER_ACCURATE" if same else ""

    def view(data: tf.Tensor, box: tf.Tensor) -> tf.Tensor:
        pixels = tf.io.decode_and_crop_jpeg(data, box, channels=3, dct_method=method)
        resized = tf.image.resize(pixels, [size, size], "bilinear", antialias=same)
        return tf.saturate_cast(tf.round(resized), tf.uint8)

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.autotune.enabled = False
    views = tf.data.Dataset.from_tensor_slices((list(files), boxes)).repeat().map(view)
    iterator = iter(views.with_options(options).as_numpy_iterator())

    def decode(calls: int) -> list[np.ndarray]:
        for _ in itertools.islice(iterator, (calls - 1) * len(files)):
            pass
        return list(itertools.islice(iterator, len(files)))

    return decode


def use_one_thread() -> None:
    """Keeps TensorFlow to one thread and no GPU; to be called before it computes anything."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.set_visible_devices([], "GPU")
