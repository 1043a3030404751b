"""`mnist` against tiny MNIST-like files made here and served on localhost."""

import gzip
import hashlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from made_mnist import (
    COUNTS,
    FILES,
    GENUINE,
    Origin,
    announce,
    assert_nothing_prepared,
    be_tiny,
    fake_arrays,
    fake_files,
    idx,
)

from bnjax.data import DataError, in_memory, open_data
from bnjax.data.sets import FACTS

SHARD = "mnist-train.array_record-00000-of-00001"
ORDER_HEAD = [39, 55, 28, 6, 50, 47, 33, 16]  # of the numbers below 60 in the genuine mnist/3.0.1


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with tiny `mnist` in it; read it, or copy it."""
    root = tmp_path_factory.mktemp("prepared")
    server = Origin()
    server.answers = {name: [data] for name, data in fake_files().items()}
    with pytest.MonkeyPatch.context() as patch:
        be_tiny(patch)
        announce(patch, server.url, fake_files())
        open_data("mnist", data_dir=root)
    server.close()
    return root


@pytest.fixture
def copied(prepared, tmp_path, monkeypatch):
    """A copy of the prepared folder, to be damaged: its root and the folder of the version."""
    be_tiny(monkeypatch)
    root = tmp_path / "data"
    shutil.copytree(prepared / "mnist", root / "mnist")
    return root, root / "mnist" / "3.0.1"


def test_unknown_name_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"'mnist5k', 'mnist', 'fashion_mnist', .*, got 'mnist6k'"):
        open_data("mnist6k")


def test_url_as_data_dir_is_refused():
    """Fails where a bucket's name would become a local folder called `gs:`."""
    with pytest.raises(ValueError, match=r"local folder, got 'gs://bucket/data'"):
        open_data("mnist", data_dir="gs://bucket/data")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_missing_data_is_fetched_prepared_and_loaded(name, tmp_path, monkeypatch, origin):
    announce(monkeypatch, origin.url, fake_files(), builder=name)
    data = in_memory(open_data(name, data_dir=tmp_path))
    assert data.name == name
    assert data.classes == 10
    digest = hashlib.sha256()
    for split, (images, labels) in fake_arrays(COUNTS).items():
        got = getattr(data, split)
        assert got.images.dtype == np.uint8
        assert got.labels.dtype == np.int32
        assert got.images.shape == (COUNTS[split], 28, 28, 1)
        # The order is that of tensorflow-datasets; as sets, what was served is what is loaded.
        pairs = sorted((i.tobytes(), int(n)) for i, n in zip(images, labels, strict=True))
        assert pairs == sorted(
            (i.tobytes(), int(n)) for i, n in zip(got.images, got.labels, strict=True)
        )
        digest.update(got.images.tobytes() + got.labels.astype("<i4").tobytes())
    assert data.sha256 == digest.hexdigest()
    assert sorted(origin.asked) == sorted(fake_files())  # each once


@pytest.mark.filterwarnings("ignore:.*OpenCV is not installed")
def test_plain_tensorflow_datasets_reads_what_was_prepared(prepared, monkeypatch):
    """Layout, features and order are those of the genuine builder."""
    be_tiny(monkeypatch)
    data = in_memory(open_data("mnist", data_dir=prepared))
    for split in COUNTS:
        source = tfds.data_source("mnist", split=split, data_dir=str(prepared))
        images, labels = getattr(data, split).images, getattr(data, split).labels
        np.testing.assert_array_equal(images, np.stack([e["image"] for e in source]))
        np.testing.assert_array_equal(labels, [e["label"] for e in source])
    assert list(source.dataset_info.features) == ["image", "label"]


def test_order_is_that_of_the_genuine_builder(prepared, monkeypatch):
    """Other keys than the genuine builder's give another order, and another digest."""
    be_tiny(monkeypatch)
    data = in_memory(open_data("mnist", data_dir=prepared))
    images, _ = fake_arrays(COUNTS)["train"]
    number = {image.tobytes(): n for n, image in enumerate(images)}
    assert [number[image.tobytes()] for image in data.train.images][:8] == ORDER_HEAD


def test_digest_does_not_depend_on_the_way(prepared, tmp_path, origin):
    fetched = open_data("mnist", data_dir=tmp_path)
    assert fetched.sha256 == open_data("mnist", data_dir=prepared).sha256


def test_data_dir_goes_before_the_environment(copied, tmp_path, monkeypatch, origin):
    """TFDS_DATA_DIR is read at the call, and nothing is fetched when the data is there."""
    root, _ = copied
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    expected = open_data("mnist").sha256
    assert not origin.asked
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "absent"))
    assert open_data("mnist", data_dir=root).sha256 == expected
    assert not origin.asked
    open_data("mnist")
    assert (tmp_path / "absent" / "mnist" / "3.0.1").is_dir()


def test_home_is_the_last_resort(copied, monkeypatch, origin):
    root, _ = copied
    root.rename(root.parent / "tensorflow_datasets")
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(root.parent))
    monkeypatch.setenv("USERPROFILE", str(root.parent))
    open_data("mnist")
    assert not origin.asked


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        (FILES["train"][0], b"not gz", "not a whole gz file"),
        (FILES["train"][0], gzip.compress(bytes(99))[:10] + b"\xff" * 20, "not a whole gz file"),
        (FILES["train"][0], gzip.compress(b"\0\0\x08"), "not an IDX file"),
        (FILES["train"][0], gzip.compress(b"\0\0\x0d\1\0\0\0\1abcd"), "not an IDX file"),
        (FILES["train"][0], gzip.compress(b"\0\0\x08\1\0\0\0\5abcd"), "not an IDX file"),
        (FILES["train"][0], idx(np.zeros((60, 28, 27))), r"\[60, 28, 27, 1\]"),
        (FILES["train"][1], idx(np.zeros(59)), "60 images and 59 labels"),
        (FILES["test"][1], idx(np.full(20, 10)), r"labels must be in 0 \.\. 9, got 10"),
    ],
    # Not the contents: gzip writes the second into them, and workers must collect the same names.
    ids=[
        "not gzip",
        "damaged",
        "3 bytes",
        "of floats",
        "cut short",
        "of 27 columns",
        "a label too few",
        "label 10",
    ],
)
def test_files_that_are_not_the_data_set_are_not_prepared(
    name, content, match, tmp_path, monkeypatch, origin
):
    """The files are what the builder expects by digest, and still not what it is known to be."""
    announce(monkeypatch, origin.url, fake_files() | {name: content})
    origin.answers[name] = [content]
    with pytest.raises(DataError, match=match):
        open_data("mnist", data_dir=tmp_path)
    assert_nothing_prepared(tmp_path)


def test_interrupted_preparation_leaves_nothing_and_can_go_on(tmp_path, monkeypatch, origin):
    """Fails where the folder gets its name before it is whole, or good downloads are not kept."""
    from PIL import Image

    calls = iter(range(70))
    genuine = Image.fromarray

    def interrupt(array):
        if next(calls) == 65:  # train is written, test is not
            raise KeyboardInterrupt
        return genuine(array)

    monkeypatch.setattr(Image, "fromarray", interrupt)
    with pytest.raises(KeyboardInterrupt):
        open_data("mnist", data_dir=tmp_path)
    assert_nothing_prepared(tmp_path)
    monkeypatch.setattr(Image, "fromarray", genuine)
    asked = len(origin.asked)
    open_data("mnist", data_dir=tmp_path)
    assert len(origin.asked) == asked


def test_another_process_may_prepare_it_first(prepared, tmp_path, monkeypatch, origin):
    """Both find nothing and both prepare; the slower one takes what stands there."""
    from PIL import Image

    genuine = Image.fromarray

    def overtaken(array):
        if not (tmp_path / "mnist" / "3.0.1").exists():
            shutil.copytree(prepared / "mnist" / "3.0.1", tmp_path / "mnist" / "3.0.1")
        return genuine(array)

    monkeypatch.setattr(Image, "fromarray", overtaken)
    data = open_data("mnist", data_dir=tmp_path)
    assert data.sha256 == open_data("mnist", data_dir=prepared).sha256


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def flip(path):
    """Changes one bit where the images are: a run of bytes that do not repeat."""
    data = bytearray(path.read_bytes())
    data[20_000] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda folder: [p.unlink() for p in folder.iterdir()], "not prepared, or half"),
        (lambda folder: (folder / "dataset_info.json").unlink(), "not prepared, or half"),
        (lambda folder: cut(folder / "dataset_info.json", 300), "cannot be read"),
        (lambda folder: (folder / SHARD).unlink(), "missing"),
        (lambda folder: cut(folder / SHARD, 0), "damaged"),
        (lambda folder: cut(folder / SHARD, 70_000), "damaged"),
        (lambda folder: flip(folder / SHARD), "hash mismatch"),
    ],
    ids=["empty", "no info", "half an info", "no shard", "empty shard", "cut shard", "one bit"],
)
def test_damaged_folder_is_named_with_the_remedy(damage, match, copied, origin):
    """Fails where damage is read as data, or leads to fetching over somebody's folder."""
    root, folder = copied
    damage(folder)
    with pytest.raises(DataError, match=match) as caught:
        open_data("mnist", data_dir=root)
    assert str(folder) in str(caught.value)
    assert "delete it and open it again" in str(caught.value)
    assert not origin.asked


def test_other_counts_are_refused(copied, monkeypatch):
    """A tiny set is not MNIST, whatever its folder says."""
    root, _ = copied
    monkeypatch.setitem(FACTS, "mnist", GENUINE)
    with pytest.raises(DataError, match=r"60,000 images to learn from .* got 10, 60 and 20"):
        open_data("mnist", data_dir=root)


@pytest.mark.slow
def test_tensorflow_is_never_imported(prepared, tmp_path, origin):
    """A stand-in for TensorFlow ends the process that imports it: while fetching or reading."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise SystemExit('imported')")
    files = {u: tuple(info) for u, info in tfds.builder_cls("mnist").url_infos.items()}
    script = f"""
import sys, warnings
sys.path.insert(0, {str(tmp_path)!r})
import bnjax.data
assert "tensorflow_datasets" not in sys.modules and "PIL" not in sys.modules
from bnjax.data import open_data
from bnjax.data.sets import FACTS
open_data("mnist5k")
assert "tensorflow_datasets" not in sys.modules
import tensorflow_datasets as tfds
from collections import namedtuple
info = namedtuple("info", "size checksum filename")
tfds.builder_cls("mnist").url_infos = {{u: info(*i) for u, i in {files!r}.items()}}
FACTS["mnist"] = FACTS["mnist"]._replace(**{COUNTS!r})
open_data("mnist", data_dir={str(prepared)!r})
open_data("mnist", data_dir={str(tmp_path / "new")!r})
assert "tensorflow" not in sys.modules
print("done")
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.stdout == "done\n", result.stderr  # and nothing else on standard output
    assert "OpenCV" not in result.stderr
    assert (tmp_path / "new" / "mnist" / "3.0.1").is_dir()
