"""Image folders: what is listed, in which order, and what is refused."""

import hashlib

import numpy as np
import pytest
from made_images import encode, picture, write_folder

from bnjax.data import DataError
from bnjax.data.folders import open_folder

COUNTS = {"b": 6, "a": 3, "c": 4}


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path / "photos", COUNTS)


def test_classes_are_numbered_by_their_sorted_names(root):
    data = open_folder(root)
    assert (data.name, data.classes) == ("folder:photos", 3)
    assert (len(data.train), len(data.test)) == (13, 2 + 3 + 2)
    for examples, split in ((data.train, "train"), (data.test, "val")):
        found = {}
        for image, label, name in (examples[i] for i in range(len(examples))):
            found[name] = label
            assert image == (root / split / "abc"[label] / name.rpartition("/")[2]).read_bytes()
        files = sorted(path for path in (root / split).rglob("*.JPEG"))
        assert found == {str(path): "abc".index(path.parent.name) for path in files}


def test_the_order_is_fixed_and_mixes_the_classes(tmp_path):
    """A folder's own order would put 60 images of one class before those of the next."""
    many = write_folder(tmp_path / "many", {"a": 60, "b": 60})
    once, again = (open_folder(many).train for _ in range(2))
    labels = [once[i].label for i in range(120)]
    assert labels == [again[i].label for i in range(120)]
    changes = np.count_nonzero(np.diff(labels))
    assert abs(changes - 60) < 4.5 * np.sqrt(119) / 2


def test_the_digest_covers_names_and_sizes_in_both_splits(root, tmp_path):
    """Recomputed here; the same wherever the folder lies and whatever `val` is called."""
    expected = hashlib.sha256()
    for split, folder in (("train", "train"), ("validation", "val")):
        for path in sorted((root / folder).rglob("*.JPEG")):
            line = f"{split}/{path.parent.name}/{path.name}\0{path.stat().st_size}\n"
            expected.update(line.encode())
    assert open_folder(root).sha256 == expected.hexdigest()
    other = write_folder(tmp_path / "elsewhere", COUNTS, validation="validation")
    assert open_folder(other).sha256 == expected.hexdigest()
    (other / "train" / "a" / "a_0.JPEG").rename(other / "train" / "a" / "a_x.JPEG")
    assert open_folder(other).sha256 != expected.hexdigest()


def test_png_and_jpg_count_and_hidden_files_do_not(root):
    (root / "train" / "a" / "x.PNG").write_bytes(encode(picture(1), "PNG"))
    (root / "train" / "a" / "x.jpg").write_bytes(encode(picture(2)))
    (root / "train" / "a" / ".DS_Store").write_bytes(b"x")
    (root / "train" / ".cache").mkdir()
    assert len(open_folder(root).train) == 15


def test_large_folders_fall_into_shards(root, monkeypatch):
    monkeypatch.setattr("bnjax.data.data_set.SHARD_SIZE", 5)
    assert open_folder(root).train.shard_sizes == (4, 4, 5)


@pytest.mark.parametrize("path", [".", "train/..", "../photos/."])
def test_the_name_is_the_folders_own_however_it_is_reached(path, root, monkeypatch):
    monkeypatch.chdir(root)
    assert open_folder(path).name == "folder:photos"


def test_an_image_that_is_gone_is_named(root):
    train = open_folder(root).train
    name = train[0].name
    (root / name).unlink()
    with pytest.raises(DataError, match=rf"{name}: cannot be read \(.*No such file"):
        train[0]


def remove(path):
    for child in sorted(path.rglob("*"), reverse=True):
        child.rmdir() if child.is_dir() else child.unlink()
    path.rmdir()


BREAK = {
    "no train": (
        lambda root: remove(root / "train"),
        r"photos: expected train/CLASS/\*.jpg .* found val\. Name the folder",
    ),
    "no validation": (lambda root: remove(root / "val"), "found train. Name the folder"),
    "both names": (lambda root: (root / "validation").mkdir(), "one of val and validation"),
    "nothing": (lambda root: remove(root), "found nothing"),
    "other classes": (
        lambda root: (root / "val" / "a").rename(root / "val" / "d"),
        "a only in train, d only in val",
    ),
    "other Unicode forms": (
        lambda root: [
            (root / split / "a").rename(root / split / name)
            for split, name in (("train", "caf\xe9"), ("val", "cafe\u0301"))
        ],
        r"other Unicode forms in the splits: 'caf\\xe9' in train, 'cafe\\u0301' in val\. Rename",
    ),
    "empty class": (
        lambda root: (root / "train" / "e").mkdir(),
        "train/e: a class without an image; add some, or remove the folder",
    ),
    "empty split": (
        lambda root: [remove(path) for path in (root / "val").iterdir()],
        "val: no class folders",
    ),
    "a file among classes": (
        lambda root: (root / "train" / "list.txt").write_text(""),
        "list.txt: a file among the class folders",
    ),
    "no image": (
        lambda root: (root / "train" / "a" / "a.gif").write_bytes(b""),
        r"a.gif: not an image file \(.jpeg, .jpg, .png\)",
    ),
    "a folder in a class": (
        lambda root: (root / "train" / "a" / "images").mkdir(),
        "a/images: not an image file",
    ),
}


@pytest.mark.parametrize(("change", "said"), BREAK.values(), ids=BREAK)
def test_what_is_no_image_folder_is_refused(root, change, said):
    change(root)
    with pytest.raises(DataError, match=said):
        open_folder(root)
