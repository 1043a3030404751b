"""Data in memory: decoded once, the same as read by index; and batches for evaluation."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_images import encode, picture, write_array_records, write_folder
from PIL import Image

from bnjax.data import ArraySplit, DataError, DataSet, in_memory, open_data
from bnjax.data.arrays import MOST_BYTES, digest, eval_batches
from bnjax.data.views.decoding import open_image

PAIRS = [(encode(picture(i), kind), i % 3) for i, kind in enumerate(["JPEG", "PNG"] * 3)]


@pytest.mark.parametrize("kind", ["folder", "tfds"])
def test_arrays_are_the_decoded_examples(kind, tmp_path):
    if kind == "folder":
        data = open_data(f"folder:{write_folder(tmp_path / 'photos', {'a': 3, 'b': 3})}")
    else:
        data = open_data(
            f"tfds:{write_array_records(tmp_path, {'train': PAIRS, 'test': PAIRS[:2]})}"
        )
    arrays = in_memory(data)
    assert arrays[:3] + arrays[5:] == data[:3] + data[5:]  # all but the splits
    for split, read in ((arrays.train, data.train), (arrays.test, data.test)):
        assert split.images.shape == (len(read), 24, 32, 3)
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
        assert split.shard_sizes == read.shard_sizes
        for index in range(len(read)):
            np.testing.assert_array_equal(
                split[index].image, open_image(read[index].image).pixels()
            )
            assert split[index].label == split.labels[index] == read[index].label
    assert in_memory(arrays) is arrays


def test_grayscale_data_has_one_channel(tmp_path):
    gray = [(encode(picture(i)[..., :1], "PNG"), 0) for i in range(3)]
    folder = write_array_records(tmp_path, {"train": gray, "test": gray[:1]}, channels=1)
    images = in_memory(open_data(f"tfds:{folder}")).train.images
    assert images.shape == (3, 24, 32, 1)
    decoded = [np.asarray(Image.open(io.BytesIO(image))) for image, _ in gray]
    for image in images:  # in the order of storage
        assert any(np.array_equal(image[..., 0], one) for one in decoded)


def test_a_gray_image_among_coloured_ones_is_repeated(tmp_path):
    root = write_folder(tmp_path / "photos", {"a": 2})
    (root / "train" / "a" / "gray.png").write_bytes(encode(picture(9)[..., :1], "PNG"))
    images = in_memory(open_data(f"folder:{root}")).train.images
    gray = [image for image in images if (image == image[..., :1]).all()]
    np.testing.assert_array_equal(gray, [np.repeat(picture(9)[..., :1], 3, -1)])


def test_data_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    data = open_data(f"folder:{write_folder(tmp_path / 'photos', {'a': 2})}")
    size = 3 * 24 * 32 * 3
    assert in_memory(data, most_bytes=size).train.images.shape == (2, 24, 32, 3)
    with pytest.raises(
        DataError,
        match=rf"folder:photos: 3 images of 32 x 24 pixels take {size:,} bytes in memory, more "
        rf"than most_bytes={size - 1:,}: .*bnjax\.data\.stream",
    ):
        in_memory(data, most_bytes=size - 1)
    assert 110_000 * 64 * 64 * 3 < MOST_BYTES < 1_331_167 * 64 * 64 * 3


def test_images_of_many_sizes_are_refused(tmp_path):
    root = write_folder(tmp_path / "photos", {"a": 2})
    other = root / "val" / "a" / "tall.png"
    other.write_bytes(encode(picture(5, 40, 30), "PNG"))
    with pytest.raises(
        DataError, match=rf"{other}: has 30 x 40 pixels, the first is 32 x 24, .*data\.stream"
    ):
        in_memory(open_data(f"folder:{root}"))


@pytest.mark.parametrize("index", [0, 2])
def test_a_damaged_image_is_named(index, tmp_path):
    """The first as well, which says how large all must be."""
    data = open_data(f"folder:{write_folder(tmp_path / 'photos', {'a': 3})}")
    bad = data.train[index].name
    Path(bad).write_bytes(b"no image")
    with pytest.raises(DataError, match=rf"{bad}: neither a JPEG nor a PNG file"):
        in_memory(data)


def test_a_label_out_of_range_is_named():
    class Two(list):
        shard_sizes = (2,)

    images = np.zeros((2, 4, 4, 3), np.uint8)
    split = ArraySplit(images, np.array([0, 3]), "train")
    data = DataSet("made", 3, 3, Two([split[0], split[1]]), split, "")
    with pytest.raises(DataError, match=r"train image 1: labels must be in 0 \.\. 2, got 3"):
        in_memory(data)


def test_as_many_labels_as_images():
    """Red if one label too few goes unseen until an index fails, or never."""
    with pytest.raises(ValueError, match=r"mine: images and labels .* 3 images and 2 labels"):
        ArraySplit(np.zeros((3, 4, 4, 3), np.uint8), np.zeros(2, np.int32), "mine")


@pytest.mark.parametrize("shards", [(2, 2), (1, 3), ()])
def test_shards_are_those_of_the_images(shards):
    """Red if part of a data set keeps the shards of the whole: examples are never seen."""
    whole = ArraySplit(np.zeros((3, 4, 4, 3), np.uint8), np.arange(3), "mine", (1, 2))
    assert whole.shard_sizes == (1, 2)
    with pytest.raises(ValueError, match=r"mine: shards .* 3 images, got .*give None"):
        replace(whole, shards=shards)


@pytest.mark.parametrize("labels", [np.zeros(3), np.zeros((3, 1), int), np.ones(3, bool)])
def test_labels_are_numbers_of_classes(labels):
    """Red if 9.7 is class 9."""
    with pytest.raises(ValueError, match=r"mine: labels must be integers \[n\], got"):
        ArraySplit(np.zeros((3, 4, 4, 3), np.uint8), labels, "mine")


def test_the_digest_covers_every_pixel_and_label():
    def zeros():
        return [np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, np.int32)]

    seen = set()
    for changed in (None, 0, 1, 2, 3):
        arrays = zeros() + zeros()
        if changed is not None:
            arrays[changed][-1] = 1
        seen.add(digest(ArraySplit(*arrays[:2]), ArraySplit(*arrays[2:])))
    assert len(seen) == 5


@pytest.mark.parametrize(("size", "batch_size"), [(10, 5), (10, 3), (2, 5), (1, 1)])
def test_evaluation_sees_every_example_once(size, batch_size):
    """Red if the last batch is dropped, or its padding counts."""
    images = np.arange(1, size + 1, dtype=np.uint8).reshape(size, 1, 1, 1) * np.ones(
        (1, 2, 3, 1), np.uint8
    )
    labels = np.arange(size, dtype=np.int32)[::-1].copy()
    batches = eval_batches(images, labels, batch_size)
    count = -(-size // batch_size)
    assert batches.images.shape == (count, batch_size, 2, 3, 1)
    assert batches.labels.shape == batches.mask.shape == (count, batch_size)
    assert (batches.images.dtype, batches.labels.dtype, batches.mask.dtype) == (
        np.uint8,
        np.int32,
        bool,
    )
    np.testing.assert_array_equal(batches.images[batches.mask], images)
    np.testing.assert_array_equal(batches.labels[batches.mask], labels)


@pytest.mark.parametrize(
    ("images", "labels", "batch_size", "message"),
    [
        (3, 2, 1, "got 3 images, 2 labels"),
        (0, 0, 1, "got 0 images"),
        (3, 3, 0, "batch_size must be >= 1, got 0"),
        (3, 3, 1.5, "batch_size must be an integer, got 1.5"),
    ],
)
def test_bad_arguments_of_eval_batches(images, labels, batch_size, message):
    with pytest.raises(ValueError, match=message):
        eval_batches(np.zeros((images, 2)), np.zeros(labels), batch_size)


def test_lists_are_arrays_to_eval_batches():
    images, labels = np.arange(10.0).reshape(5, 2), np.arange(5, dtype=np.int32)
    lists = eval_batches(list(images), labels.tolist(), 2)
    for got, expected in zip(lists, eval_batches(images, labels, 2), strict=True):
        np.testing.assert_array_equal(got, expected)
