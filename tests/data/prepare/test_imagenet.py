"""ImageNet's two tar files: checked, prepared without TensorFlow, read back."""

import subprocess
import sys
import tempfile
from typing import NamedTuple

import pytest
from made_images import encode, picture, tar_of, write_imagenet, write_tar

from bnjax.data import DataError, open_data, sets
from bnjax.data.prepare import imagenet
from bnjax.data.prepare.imagenet import check_tars, ilsvrc2012, main, prepare
from bnjax.data.sets import FACTS

TRAIN, VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


@pytest.fixture
def tars(tmp_path):
    return tmp_path / "tars"


@pytest.fixture
def release(tars):
    return write_imagenet(tars)


@pytest.fixture
def _known(monkeypatch, release):
    """The made release takes the place of the genuine one."""
    monkeypatch.setattr(imagenet, "ilsvrc2012", lambda: release)


def test_the_release_is_the_one_of_2012():
    """Against what tensorflow-datasets and the paper know of it."""
    release = ilsvrc2012()
    assert (release.train.name, release.validation.name) == (TRAIN, VALIDATION)
    assert release.train.size + release.validation.size == 154_642_401_280
    assert len(release.wnids) == len(set(release.wnids)) == 1000
    assert list(release.wnids) == sorted(release.wnids)
    assert len(release.validation_wnids) == 50_000
    counts = {wnid: release.validation_wnids.count(wnid) for wnid in release.wnids[::100]}
    assert set(counts.values()) == {50}
    assert all(len(tar.md5) == 32 for tar in release[:2])


def test_the_right_files_pass(tars, release):
    check_tars(tars, release)


class Broken(NamedTuple):
    change: object
    said: str


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


BREAK = {
    "no folder": Broken(
        lambda tars: [path.unlink() for path in tars.iterdir()] and tars.rmdir(),
        f"{TRAIN} is missing; {VALIDATION} is missing. The folder has: nothing",
    ),
    "renamed": Broken(
        lambda tars: (tars / TRAIN).rename(tars / "train.tar"),
        f"{TRAIN} is missing. The folder has: {VALIDATION}, train.tar. The names must be these",
    ),
    "cut off": Broken(
        lambda tars: (tars / VALIDATION).write_bytes((tars / VALIDATION).read_bytes()[:999]),
        f"{VALIDATION} has 999 bytes and must have .*: the download broke off",
    ),
    "too long": Broken(
        lambda tars: (tars / TRAIN).write_bytes((tars / TRAIN).read_bytes() + b"x"),
        rf"{TRAIN} has .* bytes and must have",
    ),
    "flipped": Broken(
        lambda tars: flip(tars / VALIDATION), f"{VALIDATION}: damaged: expected MD5 .*, got .*"
    ),
}


@pytest.mark.parametrize("broken", BREAK.values(), ids=BREAK)
def test_other_files_are_refused_before_anything_is_written(tars, release, tmp_path, broken):
    broken.change(tars)
    with pytest.raises(DataError, match=broken.said):
        check_tars(tars, release)
    with pytest.raises(DataError, match=broken.said):
        prepare(tars, tmp_path / "data", release)
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.usefixtures("no_tensorflow")
def test_from_tar_files_to_a_data_set(tars, release, tmp_path, monkeypatch):
    folder = prepare(tars, tmp_path / "data", release)
    assert folder == tmp_path / "data" / "imagenet2012" / "5.1.0"
    monkeypatch.setitem(FACTS, "imagenet2012", sets.Facts("imagenet2012", 1000, 12, 5, ""))
    data = open_data("imagenet2012", data_dir=tmp_path / "data")
    train = {
        name.rpartition(", ")[2]: (image, label)
        for image, label, name in map(data.train.__getitem__, range(12))
    }
    assert train == {
        f"{wnid}_{i}.JPEG": (encode(picture(100 * label + i)), label)
        for label, wnid in enumerate(release.wnids)
        for i in range(4)
    }
    validation = [data.test[i] for i in range(5)]
    assert {name.rpartition(", ")[2]: (image, label) for image, label, name in validation} == {
        f"ILSVRC2012_val_{i:08}.JPEG": (encode(picture(1000 + i)), (i - 1) % 3) for i in range(1, 6)
    }
    assert "tensorflow" not in sys.modules
    with pytest.raises(DataError, match="is there already; delete it, or name another data_dir"):
        prepare(tars, tmp_path / "data", release)


def test_images_of_another_kind_are_made_rgb_jpegs(tars, release, tmp_path):
    """The genuine release has 22 in CMYK and a PNG; their names are known."""
    from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder as genuine

    cmyk, png = genuine.CMYK_IMAGES[0], genuine.PNG_IMAGES[0]
    files = {
        cmyk: encode(picture(0), mode="CMYK"),
        png: encode(picture(1), "PNG"),
        "n01440764_9.JPEG": encode(picture(2)),
    }
    train = write_tar(tars / TRAIN, {"n01440764.tar": tar_of(files)})._replace(images=3)
    folder = prepare(tars, tmp_path / "data", release._replace(train=train))
    examples = open_data(f"tfds:{folder}").train
    read = {
        name.rpartition(", ")[2]: image for image, _, name in map(examples.__getitem__, range(3))
    }
    assert read["n01440764_9.JPEG"] == files["n01440764_9.JPEG"]
    for name in (cmyk, png):
        assert read[name][:2] == b"\xff\xd8"
        assert read[name] != files[name]


def test_a_tar_file_of_something_else_is_refused_and_leaves_nothing(tars, release, tmp_path):
    """Its size and MD5 may be right: a release of one's own."""
    for files, said in (
        (
            {"n99999999.tar": tar_of({"a.JPEG": b""})},
            "n99999999.tar is not the tar file of a class",
        ),
        ({"n01440764.tar": tar_of({"a.JPEG": b""})}, "expected 12 images, got 1"),
    ):
        train = write_tar(tars / TRAIN, files)._replace(images=12)
        with pytest.raises(DataError, match=said):
            prepare(tars, tmp_path / "data", release._replace(train=train))
        assert not (tmp_path / "data" / "imagenet2012" / "5.1.0").exists()


def test_a_disk_that_is_too_small_is_refused_at_once(tars, release, tmp_path, monkeypatch):
    usage = imagenet.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(imagenet.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DataError, match="has 1,000 bytes free, and preparing takes"):
        prepare(tars, tmp_path / "data", release)


@pytest.mark.usefixtures("_known")
def test_the_commands(tars, tmp_path, capsys):
    main(["check", "--tars", str(tars)])
    assert capsys.readouterr().out == "Both files are the ones of 2012.\n"
    main(["prepare", "--tars", str(tars), "--data-dir", str(tmp_path / "data")])
    assert capsys.readouterr().out == f"Prepared {tmp_path / 'data' / 'imagenet2012' / '5.1.0'}\n"
    (tars / TRAIN).unlink()
    with pytest.raises(SystemExit, match=f"error: .*{TRAIN} is missing"):
        main(["check", "--tars", str(tars)])


@pytest.mark.parametrize("arguments", [[], ["check"], ["prepare", "--tars", "."], ["unpack"]])
def test_a_command_that_is_not_whole_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


def test_a_folder_that_cannot_be_written_is_found_before_hours_of_reading(
    tars, release, tmp_path, monkeypatch
):
    monkeypatch.setattr(imagenet, "check_tars", lambda *_: pytest.fail("read"))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"data_dir .*file cannot be written \(File exists\)"):
        prepare(tars, tmp_path / "file", release)

    def refuse(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(ValueError, match=r"data_dir .* cannot be written \(Read-only file system"):
        prepare(tars, tmp_path, release)


@pytest.mark.slow
def test_a_missing_extra_is_one_line():
    """Fails where the import of the command line's reader stands outside of `command()`."""
    program = (
        "import runpy, sys; sys.modules['tyro'] = None; "
        "runpy.run_module('bnjax.data.imagenet', run_name='__main__')"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    said = "error: this needs tyro: pip install -c constraints.txt -e '.[data]'\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", said)


@pytest.mark.slow
def test_the_command_helps():
    command = [sys.executable, "-m", "bnjax.data.imagenet", "--help"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert "usage: python -m bnjax.data.imagenet" in ended.stdout
    assert ended.returncode == 0
