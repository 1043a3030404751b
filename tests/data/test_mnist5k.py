"""The packaged digits, and the steps that build their file."""

import gzip
import io
import time
import zipfile

import numpy as np
import pytest

from bnjax.data import ArraySplit, DataError, in_memory, mnist5k, open_data
from bnjax.data.mnist5k import build

SHA256 = "a7b8047f71faa29e9b2b66bbe4ac2d45e6045dd74bebfc4ec39e4a975af52596"


def test_there_are_4000_and_1000_digits():
    data = in_memory(open_data("mnist5k"))
    assert (data.name, data.classes, data.sha256) == ("mnist5k", 10, SHA256)
    for split, count in ((data.train, 4000), (data.test, 1000)):
        assert split.images.dtype == np.uint8
        assert split.images.shape == (count, 28, 28, 1)
        assert split.labels.dtype == np.int32
        np.testing.assert_array_equal(np.bincount(split.labels), np.full(10, count // 10))


def test_environment_is_not_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    open_data("mnist5k", data_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_splits_share_no_digit_and_mix_the_classes():
    """Fails where the split is by position over all classes, or the order is by class."""
    data = in_memory(open_data("mnist5k"))
    train = {image.tobytes() for image in data.train.images}
    test = {image.tobytes() for image in data.test.images}
    assert len(train) == 4000
    assert len(test) == 1000
    assert not train & test
    # The labels with which MNIST's training set begins, known to everybody who has looked.
    assert data.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]


def test_test_digits_are_the_last_of_their_class():
    digits, data = mnist5k.read_digits(), in_memory(open_data("mnist5k"))
    places = {image.tobytes(): place for image, place in zip(digits[0], digits[2], strict=True)}
    for label in range(10):
        learned, measured = (
            [places[image.tobytes()] for image in split.images[split.labels == label]]
            for split in (data.train, data.test)
        )
        assert learned == sorted(learned)
        assert measured == sorted(measured)
        assert max(learned) < min(measured)


def test_index_is_ascending_and_unique_within_the_training_set():
    index = mnist5k.read_digits().mnist_index
    assert index.dtype == np.int32
    assert len(np.unique(index)) == 5000
    assert 0 <= index.min() < index.max() < 60_000
    assert (np.diff(index.reshape(10, 500), axis=1) > 0).all()


@pytest.mark.parametrize("change", ["cut", "flip", "empty", "missing"])
def test_altered_file_is_refused_with_digests_and_remedy(change, tmp_path):
    path = tmp_path / "mnist5k.npz"
    data = bytearray(mnist5k.FILE.read_bytes())
    assert len(data) == mnist5k.SIZE
    if change == "cut":
        del data[-1]
    elif change == "flip":
        data[400_000] ^= 1
    elif change == "empty":
        data.clear()
    if change != "missing":
        path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        mnist5k.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "reinstall bnjax" in message
    assert "git checkout" in message
    assert "python -m bnjax.data.mnist5k.build" in message
    if change != "missing":
        assert f"expected 814375 bytes with SHA-256 {mnist5k.SHA256}" in message
        assert f"got {len(data)} bytes with SHA-256 " in message


def test_pack_is_reproducible_and_loses_nothing(monkeypatch):
    """Fails where the time of day or the machine goes into the archive."""
    digits = mnist5k.Digits(*(array[::50] for array in mnist5k.read_digits()))
    first = build.pack(digits)
    later = time.time() + 1e6
    monkeypatch.setattr(time, "time", lambda: later)
    assert build.pack(digits) == first
    for entry in zipfile.ZipFile(io.BytesIO(first)).infolist():
        assert entry.date_time == (1980, 1, 1, 0, 0, 0)
        assert entry.create_system == 3
    with np.load(io.BytesIO(first)) as arrays:
        for name, array in digits._asdict().items():
            np.testing.assert_array_equal(arrays[name], array)


def sample_file(path, rows):
    path.write_bytes(gzip.compress("\n".join(rows).encode(), compresslevel=1))
    return path


def sample_rows():
    rows = ["0," * 784 + str(label) for label in range(10) for _ in range(500)]
    rows[7] = "0,0,0,255," + "0," * 780 + "0"
    return rows


def test_read_sample(tmp_path):
    sample = build.read_sample(sample_file(tmp_path / "s.csv.gz", sample_rows()))
    images, labels = sample.images, sample.labels
    assert images.shape == (5000, 28, 28, 1)
    assert images.dtype == np.uint8
    assert images[7, 0, 3, 0] == 255
    assert images.sum() == 255
    assert labels.tolist() == sorted(labels)


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ("0," * 784 + "1", "class order"),
        ("256," + "0," * 784, r"in 0 \.\. 256"),
        ("-1," + "0," * 784, r"in -1 \.\. "),
    ],
)
def test_read_sample_refuses_others(row, match, tmp_path):
    rows = [row.removesuffix(","), *sample_rows()[1:]]
    with pytest.raises(DataError, match=match):
        build.read_sample(sample_file(tmp_path / "s.csv.gz", rows))


def test_read_sample_refuses_another_shape(tmp_path):
    with pytest.raises(DataError, match=r"\(4999, 785\)"):
        build.read_sample(sample_file(tmp_path / "s.csv.gz", sample_rows()[1:]))


def some_digits(count):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 28, 28, 1), dtype=np.uint8)
    return ArraySplit(images, np.arange(count, dtype=np.int32) % 10)


def test_find_digits_gives_their_places():
    training = some_digits(40)
    rows = np.array([17, 3, 39])
    found = build.find_digits(ArraySplit(training.images[rows], training.labels[rows]), training)
    np.testing.assert_array_equal(found.mnist_index, rows)


def test_find_digits_refuses_a_stranger_and_a_wrong_label():
    training = some_digits(40)
    stranger = ArraySplit(255 - training.images, training.labels)
    with pytest.raises(DataError, match="row 0, a 0, is not in MNIST"):
        build.find_digits(stranger, training)
    mislabelled = ArraySplit(training.images[5:6], training.labels[6:7])
    with pytest.raises(DataError, match="row 0, a 6, is not in MNIST"):
        build.find_digits(mislabelled, training)


def test_undo_shuffle_knows_the_order_of_storage():
    """The order is that of the numbers below 60 in the genuine mnist/3.0.1."""
    place = build.undo_shuffle(ArraySplit(np.arange(60), np.arange(60))).labels
    assert [place.tolist().index(stored) for stored in range(8)] == [39, 55, 28, 6, 50, 47, 33, 16]


def test_check_original_refuses_another_set():
    with pytest.raises(DataError, match="images: expected MD5 6bbc9ace"):
        build.check_original(some_digits(40))
