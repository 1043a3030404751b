"""`open_data`: names in, data sets out, or an error that says what to do."""

import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from made_images import encode, picture, write_array_records, write_folder

from bnjax.data import DATA_SETS, DataError, mnist5k, open_data, sets
from bnjax.data.sets import FACTS
from bnjax.data.stream import evaluation_batches, training_batches
from bnjax.data.views.augmentation import Augmentation, evaluation_view, training_view

PAIRS = [(encode(picture(i)), i % 3) for i in range(6)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """`made` in two versions, the newer of which has the higher number but sorts first."""
    root = tmp_path_factory.mktemp("tfds")
    splits = {"train": PAIRS, "test": PAIRS[:2]}
    write_array_records(root, {"train": PAIRS[:5], "test": PAIRS[:2]}, version="9.0.0")
    write_array_records(root, splits, version="10.0.0")
    return root


@pytest.fixture
def _made_is_known(monkeypatch):
    facts = sets.Facts("made", 3, 6, 2, "make it")
    monkeypatch.setitem(FACTS, "made", facts)
    monkeypatch.setattr("bnjax.data.sets.DATA_SETS", (*DATA_SETS, "made"))


def test_the_packaged_digits_are_those_of_mnist5k():
    data, digits = open_data("mnist5k"), mnist5k.load()
    assert (data.name, data.classes, data.sha256) == ("mnist5k", 10, digits.sha256)
    for examples, split in ((data.train, digits.train), (data.test, digits.test)):
        assert len(examples) == len(split.labels)
        assert sum(examples.shard_sizes) == len(examples)
        np.testing.assert_array_equal(examples[7].image, split.images[7])
        assert examples[7].label == split.labels[7]
    assert data.train[7].name == "train image 7"


@pytest.mark.usefixtures("_made_is_known")
def test_the_newest_version_is_opened(root, monkeypatch):
    assert len(open_data("made", data_dir=root).train) == 6
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    assert open_data("made").sha256 == open_data("made", data_dir=root).sha256


def test_any_prepared_folder_can_be_named(root):
    data = open_data(f"tfds:{root / 'made' / '9.0.0'}")
    assert (data.name, data.classes, len(data.train)) == ("tfds:made/9.0.0", 3, 5)


@pytest.mark.usefixtures("_made_is_known")
def test_another_data_set_under_a_known_name_is_refused(root, monkeypatch):
    monkeypatch.setitem(FACTS, "made", FACTS["made"]._replace(train=7))
    with pytest.raises(
        DataError,
        match=r"made has 3 classes, 7 images to learn from and 2 to measure on; got 3, 6 and 2\. "
        r"Prepare it anew, or call it 'tfds:.*10\.0\.0'",
    ):
        open_data("made", data_dir=root)


@pytest.mark.parametrize("name", [name for name in FACTS if "mnist" not in name])
def test_missing_data_comes_with_a_remedy(name, tmp_path):
    with pytest.raises(DataError, match=rf"{name} is not in {tmp_path}.*") as caught:
        open_data(name, data_dir=tmp_path)
    remedy = "by hand" if name == "cifar10_jpeg" else "prepare it"
    assert remedy in str(caught.value)
    assert "TFDS_DATA_DIR" in str(caught.value)


def test_a_build_that_broke_off_is_not_a_version(tmp_path):
    (tmp_path / "cifar10" / "3.0.2.incompleteABC_123").mkdir(parents=True)
    with pytest.raises(DataError, match="cifar10 is not in"):
        open_data("cifar10", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["imagenet", "", "folder:", "tfds:", "ftp:x"])
def test_unknown_names_are_refused_with_those_that_are_known(name):
    with pytest.raises(ValueError, match="name must be one of") as caught:
        open_data(name)
    assert all(known in str(caught.value) for known in DATA_SETS)


def test_buckets_are_refused():
    with pytest.raises(ValueError, match="data_dir must be a local folder, got 'gs://bucket'"):
        open_data("cifar10", data_dir="gs://bucket")
    with pytest.raises(ValueError, match="data_dir must be a local folder, got 'gs:/bucket'"):
        open_data("cifar10", data_dir=Path("gs://bucket"))


def test_a_bucket_in_the_environment_is_named_where_it_is_looked_for(root, tmp_path, monkeypatch):
    """TensorFlow's users have one there: what lies elsewhere opens all the same."""
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://bucket")
    photos = write_folder(tmp_path / "photos", {"a": 2})
    for name in ("mnist5k", f"folder:{photos}", f"tfds:{root / 'made' / '9.0.0'}"):
        open_data(name)
    with pytest.raises(ValueError, match="TFDS_DATA_DIR must be a local folder, got 'gs://bucket'"):
        open_data("cifar10")


@pytest.mark.parametrize("name", ["folder:gs://bucket/photos", "tfds:s3://bucket/made/1.0.0"])
def test_buckets_are_refused_in_a_name_too(name):
    url = name.partition(":")[2]
    with pytest.raises(ValueError, match=f"must be a local folder, got '{url}'; mount the bucket"):
        open_data(name)


@pytest.mark.parametrize("kind", ["folder", "tfds"])
@pytest.mark.usefixtures("no_tensorflow")
def test_from_files_to_batches(kind, root, tmp_path):
    """The views of a stream are those made one by one, and nothing imports TensorFlow."""
    if kind == "folder":
        data = open_data(f"folder:{write_folder(tmp_path / 'photos', {'a': 3, 'b': 3})}")
    else:
        data = open_data(f"tfds:{root / 'made' / '10.0.0'}")
    augmentation = Augmentation(image_size=16)

    def view(image, rng):
        return training_view(image, rng, augmentation)

    def at(position, image):
        key = np.array([1, position], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, 1]))
        return training_view(image, rng, augmentation)

    examples = [data.train[i] for i in range(6)]
    with training_batches(data.train, view, seed=1, first_step=0, batch_size=4) as stream:
        for step, batch in enumerate(islice(stream, 3)):
            for row, image in enumerate(batch.images):
                shown = [
                    example.label
                    for example in examples
                    if np.array_equal(at(4 * step + row, example.image), image)
                ]
                assert shown == [batch.labels[row]]

    def fixed(image):
        return evaluation_view(image, 16)

    (batch,) = evaluation_batches(data.test, fixed, batch_size=8)
    count = len(data.test)
    assert batch.mask.sum() == count
    for i in range(count):
        np.testing.assert_array_equal(batch.images[i], fixed(data.test[i].image))
    assert "tensorflow" not in sys.modules
