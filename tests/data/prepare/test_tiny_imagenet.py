"""Tiny ImageNet in its own layout, made small: checked, prepared, read back."""

import hashlib
import subprocess
import sys
import zipfile
from functools import partial

import numpy as np
import pytest
from made_images import WNIDS, encode, picture, write_tiny_imagenet

from bnjax.data import DataError, in_memory, open_data
from bnjax.data.prepare import tiny_imagenet
from bnjax.data.prepare.tiny_imagenet import (
    PUBLISHED,
    Release,
    check_zip,
    describe,
    folder_files,
    list_photos,
    main,
    prepare,
    zip_files,
)
from bnjax.data.sets import FACTS
from bnjax.data.views.decoding import open_image

LABELS = (WNIDS[2], WNIDS[0], WNIDS[1])  # the order of wnids.txt
FOLDER = Release(0, "", 3, 3, 1, 64)
SAID = (
    "1 training and 0 validation images are grayscale. 1 images occur more than once, byte for "
    "byte: 1 of them in both splits, 1 under several classes. All are kept, as published."
)


@pytest.fixture
def root(tmp_path):
    return write_tiny_imagenet(tmp_path / "tiny-imagenet-200")


@pytest.fixture
def archive(root):
    """A zip file of the folder, and what a checker should find."""
    path = root.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as opened:
        opened.mkdir("tiny-imagenet-200")
        for file in sorted(root.rglob("*"), reverse=True):
            opened.write(file, f"tiny-imagenet-200/{file.relative_to(root).as_posix()}")
    data = path.read_bytes()
    return path, FOLDER._replace(size=len(data), md5=hashlib.md5(data).hexdigest())


@pytest.fixture
def _known(monkeypatch, archive):
    """The made release takes the place of the published one."""
    for function in ("check_zip", "prepare"):
        small = partial(getattr(tiny_imagenet, function), release=archive[1])
        monkeypatch.setattr(tiny_imagenet, function, small)
    facts = FACTS["tiny_imagenet"]._replace(classes=3, train=9, test=3)
    monkeypatch.setitem(FACTS, "tiny_imagenet", facts)


def written(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_published_facts_are_those_of_the_data_set():
    facts = FACTS["tiny_imagenet"]
    assert PUBLISHED[:2] == (248_100_043, "90528d7ca1a48142e341f4ef8d21d0de")
    assert facts.classes == PUBLISHED.classes == 200
    assert facts.train == PUBLISHED.classes * PUBLISHED.train == 100_000
    assert facts.test == PUBLISHED.classes * PUBLISHED.validation == 10_000


@pytest.mark.usefixtures("_known")
@pytest.mark.usefixtures("no_tensorflow")
def test_what_is_prepared_is_what_the_folder_holds(root, tmp_path, capsys):
    """Labels are places in wnids.txt, which is not sorted; bytes are as published."""
    main(["prepare", "--folder", str(root), "--data-dir", str(tmp_path / "data")])
    folder = tmp_path / "data" / "tiny_imagenet" / "1.0.0"
    assert capsys.readouterr().out == f"Prepared {folder}\n{SAID}\n"
    data = open_data("tiny_imagenet", data_dir=tmp_path / "data")
    assert (data.classes, data.channels, len(data.train), len(data.test)) == (3, 3, 9, 3)
    for index in range(9):
        image, label, name = data.train[index]
        file = name.rpartition(", ")[2]
        assert (root / "train" / LABELS[label] / "images" / file).read_bytes() == image
    labels = {}
    for index in range(3):
        image, label, name = data.test[index]
        labels[name.rpartition(", ")[2]] = label
        assert (root / "val" / "images" / name.rpartition(", ")[2]).read_bytes() == image
    assert labels == {"val_0.JPEG": 2, "val_1.JPEG": 1, "val_2.JPEG": 0}
    assert "tensorflow" not in sys.modules


@pytest.mark.usefixtures("_known")
def test_a_grayscale_file_has_three_equal_channels_in_memory(root, tmp_path):
    main(["prepare", "--folder", str(root), "--data-dir", str(tmp_path)])
    images = in_memory(open_data("tiny_imagenet", data_dir=tmp_path)).train.images
    assert images.shape == (9, 64, 64, 3)
    gray = [image for image in images if (image == image[..., :1]).all()]
    data = (root / "train" / LABELS[1] / "images" / f"{LABELS[1]}_0.JPEG").read_bytes()
    np.testing.assert_array_equal(gray, [open_image(data).pixels()])


@pytest.mark.usefixtures("_known")
def test_zip_and_folder_give_the_same_bytes_each_time(archive, root, tmp_path, capsys):
    main(["prepare", "--zip", str(archive[0]), "--data-dir", str(tmp_path / "zip")])
    for again in ("folder", "once more"):
        main(["prepare", "--folder", str(root), "--data-dir", str(tmp_path / again)])
        first, second = (
            written(tmp_path / place / "tiny_imagenet" / "1.0.0") for place in ("zip", again)
        )
        assert first == second
    assert capsys.readouterr().out.count(SAID) == 3


def test_the_zip_file_is_checked(archive, tmp_path, monkeypatch):
    path, release = archive
    check_zip(path, release)
    with pytest.raises(
        DataError, match=r"has [\d,]+ bytes and must have 248,100,043: the download"
    ):
        check_zip(path)
    data = path.read_bytes()
    with pytest.raises(DataError, match=r"none\.zip: missing"):
        check_zip(tmp_path / "none.zip", release)
    path.write_bytes(data[:-1] + b"?")
    with pytest.raises(DataError, match=rf"expected MD5 {release.md5}, got .*; get tiny-imagenet"):
        check_zip(path, release)
    path.write_bytes(data + b"?")
    with pytest.raises(DataError, match=r"bytes and must have [\d,]+; get"):
        check_zip(path, release)


@pytest.mark.usefixtures("_known")
def test_a_wrong_zip_file_is_not_prepared(archive, tmp_path):
    archive[0].write_bytes(b"?")
    with pytest.raises(SystemExit, match=r"error: .* has 1 bytes and must have"):
        main(["prepare", "--zip", str(archive[0]), "--data-dir", str(tmp_path / "data")])
    with pytest.raises(SystemExit, match=r"error: .* has 1 bytes and must have"):
        main(["check", "--zip", str(archive[0])])
    assert not (tmp_path / "data").exists()


def remove(root, name):
    (root / name).unlink()


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda root: remove(root, "wnids.txt"), "wnids.txt: missing; expected the layout"),
        (lambda root: remove(root, "val/val_annotations.txt"), "val_annotations.txt: missing"),
        (lambda root: remove(root, "val/images/val_1.JPEG"), "expected 1 validation images, got 0"),
        (
            lambda root: remove(root, f"train/{WNIDS[0]}/images/{WNIDS[0]}_1.JPEG"),
            f"{WNIDS[0]}: expected 3 train images, got 2",
        ),
        (lambda root: (root / "wnids.txt").write_text("a\na\nb"), "expected 3 ids, each once"),
        (
            lambda root: (root / "wnids.txt").write_text("a\nb\nc"),
            r"train/.*JPEG: its class is n\d+, which wnids.txt does not have",
        ),
        (
            lambda root: (root / "val/images/more.JPEG").write_bytes(b""),
            "more.JPEG: its class is none in val_annotations.txt",
        ),
        (
            lambda root: (root / "val/images/val_0.JPEG").write_bytes(b"no image"),
            "val_0.JPEG: not a JPEG file",
        ),
        (
            lambda root: (root / "val/images/val_0.JPEG").write_bytes(encode(picture(0, 64, 32))),
            "val_0.JPEG: expected 64 x 64 pixels, got 32 x 64",
        ),
    ],
)
def test_another_folder_is_refused(damage, match, root, tmp_path):
    damage(root)
    with pytest.raises(DataError, match=match):
        prepare(folder_files(root), tmp_path / "data", FOLDER)
    assert not list((tmp_path / "data").iterdir())


def test_a_folder_that_is_there_is_left(root, tmp_path):
    (tmp_path / "tiny_imagenet" / "1.0.0").mkdir(parents=True)
    with pytest.raises(DataError, match=r"1\.0\.0: is there already; delete it, or name another"):
        prepare(folder_files(root), tmp_path, FOLDER)


def test_images_that_occur_often_are_counted_once(root, archive):
    with zip_files(archive[0]) as files:
        wnids, photos = list_photos(files, FOLDER)
    assert tuple(wnids) == LABELS
    assert describe(photos) == SAID
    assert " 11 images occur more than once" in describe(photos + photos)


@pytest.mark.parametrize("given", [[], ["--zip", "a", "--folder", "b"]])
def test_zip_or_folder(given, tmp_path):
    with pytest.raises(SystemExit, match="error: give one of --zip and --folder"):
        main(["prepare", *given, "--data-dir", str(tmp_path)])


@pytest.mark.parametrize("flag", ["--folder", "--zip", "--data-dir"])
def test_buckets_are_refused(flag, tmp_path):
    given = {"--folder": ".", "--data-dir": str(tmp_path)}
    if flag == "--zip":
        del given["--folder"]
    given[flag] = "gs://bucket/x"
    with pytest.raises(SystemExit, match=r"must be a local folder, got 'gs:/"):
        main(["prepare", *(word for pair in given.items() for word in pair)])


@pytest.mark.slow
def test_a_missing_extra_is_one_line():
    program = (
        "import runpy, sys; sys.modules['tyro'] = None; "
        "runpy.run_module('bnjax.data.tiny_imagenet', run_name='__main__')"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    said = "error: this needs tyro: pip install -c constraints.txt -e '.[data]'\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", said)
