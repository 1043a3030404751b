"""Folders of tensorflow-datasets in array_record format: read, and refused where not whole."""

import hashlib
import json
import resource
import shutil

import pytest
from made_images import encode, picture, write_array_records

from bnjax.data import DataError, in_memory
from bnjax.data.array_records import EDGE, open_array_records

TRAIN = [(encode(picture(i)), i % 3) for i in range(13)]
TEST = [(encode(picture(100 + i), "PNG"), i % 3) for i in range(4)]
FIRST = "made-train.array_record-00000-of-00003"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    return write_array_records(root, {"train": TRAIN, "test": TEST}, files=3)


@pytest.fixture
def folder(prepared, tmp_path):
    """A copy to break."""
    return shutil.copytree(prepared, tmp_path / "made" / "1.0.0")


def opened(folder):
    return open_array_records(folder, name="made", remedy="copy it again")


def test_every_record_is_what_was_written(prepared):
    data = opened(prepared)
    assert (data.name, data.classes) == ("made", 3)
    for examples, pairs in ((data.train, TRAIN), (data.test, TEST)):
        read = [examples[i] for i in range(len(examples))]
        assert sorted((image, label) for image, label, _ in read) == sorted(pairs)
    assert sum(data.train.shard_sizes) == 13
    assert len(data.train.shard_sizes) == 3


def test_a_record_says_where_it_is(prepared):
    train = opened(prepared).train
    sizes = train.shard_sizes
    assert train[0].name == f"{prepared / FIRST}, train record 0 (number 0 of the file)"
    second = FIRST.replace("00000-of", "00001-of")
    name = f"{prepared / second}, train record {sizes[0] + 1} (number 1 of the file)"
    assert train[sizes[0] + 1].name == name


def test_a_split_called_validation_is_preferred(tmp_path):
    splits = {"train": TRAIN[:2], "test": TEST[:1], "validation": TEST[1:]}
    assert len(opened(write_array_records(tmp_path, splits)).test) == 3


def test_one_large_file_falls_into_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("bnjax.data.data_set.SHARD_SIZE", 5)
    folder = write_array_records(tmp_path, {"train": TRAIN, "test": TEST})
    assert opened(folder).train.shard_sizes == (4, 4, 5)


def test_the_digest_is_that_of_a_copy_and_of_nothing_else(prepared, folder, tmp_path):
    expected = hashlib.sha256((prepared / "features.json").read_bytes())
    data = opened(prepared)
    for split, examples in (("train", data.train), ("test", data.test)):
        files = sorted(prepared.glob(f"made-{split}.*"))
        for path, size in zip(files, examples.shard_sizes, strict=True):
            content = path.read_bytes()
            expected.update(f"{split} {size} {len(content)}\n".encode())
            expected.update(content[:EDGE] + content[-EDGE:])
    assert data.sha256 == opened(folder).sha256 == expected.hexdigest()
    splits = {"train": TRAIN[1:] + TRAIN[:1], "test": TEST}
    other = write_array_records(tmp_path / "other", splits, files=3)
    assert opened(other).sha256 != expected.hexdigest()


def test_a_flipped_byte_is_found_when_its_record_is_read(folder):
    """array_record's checksums: opening does not read every byte."""
    file = folder / FIRST
    data = bytearray(file.read_bytes())
    place = data.rindex(b"JFIF") + 200
    data[place] ^= 0x40
    file.write_bytes(data)
    train = opened(folder).train
    with pytest.raises(DataError, match=rf"{FIRST}, train record .*: cannot be read"):
        [train[i] for i in range(len(train))]
    with pytest.raises(DataError, match=rf"{FIRST}, train record \d+ \(number [1-9] of the"):
        in_memory(opened(folder))  # which reads many records at once


def test_a_record_without_a_label_is_refused(tmp_path):
    """A split of them when it is opened, one among others when it is read."""
    unlabelled = [(image, -1) for image, _ in TEST]
    folder = write_array_records(tmp_path / "all", {"train": TRAIN, "test": unlabelled})
    said = (
        r"made-{}.*, {} record \d+ .*: labels must be in 0 \.\. 2, got -1, the mark of what has no"
    )
    with pytest.raises(DataError, match=said.format("test", "test")):
        opened(folder)
    some = [*TRAIN[:5], (TRAIN[5][0], -1), *TRAIN[6:]]
    train = opened(write_array_records(tmp_path / "one", {"train": some, "test": TEST})).train
    with pytest.raises(DataError, match=said.format("train", "train")):
        train.__getitems__(range(len(train)))


def test_many_records_are_read_as_one_by_one(folder):
    train = opened(folder).train
    indices = [7, 0, 12, 7]
    assert train.__getitems__(indices) == [train[index] for index in indices]


def half_prepared(folder):
    (folder / "dataset_info.json").unlink()


def features_missing(folder):
    (folder / "features.json").unlink()


def file_missing(folder):
    (folder / FIRST).unlink()


def file_cut_off(folder):
    data = (folder / FIRST).read_bytes()
    (folder / FIRST).write_bytes(data[: len(data) // 2])


def file_empty(folder):
    (folder / FIRST).write_bytes(b"")


def file_of_another_split(folder):
    shutil.copy(folder / "made-test.array_record-00000-of-00003", folder / FIRST)


def info_unreadable(folder):
    (folder / "dataset_info.json").write_text("{")


def change_info(folder, change):
    path = folder / "dataset_info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def other_format(folder):
    change_info(folder, lambda info: info.update(fileFormat="tfrecord"))


def no_test(folder):
    change_info(folder, lambda info: info.update(splits=info["splits"][:1]))


def other_features(folder):
    """As of a data set of text."""
    path = folder / "features.json"
    features = json.loads(path.read_text())
    features["featuresDict"]["features"]["picture"] = features["featuresDict"]["features"].pop(
        "image"
    )
    path.write_text(json.dumps(features))


BREAK = {
    half_prepared: "1.0.0: not prepared, or half: it has no dataset_info.json; copy it again",
    features_missing: "it has no features.json; copy it again",
    file_missing: f"{FIRST}: missing; copy it again",
    file_cut_off: rf"{FIRST}: damaged \(.*\); copy it again",
    file_empty: rf"{FIRST}: damaged \(.*\); copy it again",
    file_of_another_split: rf"{FIRST}: expected \d records, got \d: not the whole file",
    info_unreadable: r"1.0.0: cannot be read \(.*\); copy it again",
    other_format: "prepared as tfrecord, which takes TensorFlow to read: prepare it with",
    no_test: r"no split 'test', it has \['train'\]",
    other_features: "its features must be an image and a label, got",
}


@pytest.mark.parametrize(
    ("change", "said"), BREAK.items(), ids=[change.__name__ for change in BREAK]
)
def test_what_is_not_whole_is_refused_before_anything_is_read(folder, change, said):
    change(folder)
    with pytest.raises(DataError, match=said):
        opened(folder)


def test_too_few_open_files_are_allowed_for(prepared, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 512))
    with pytest.raises(DataError, match=r"3 files have to stay open, .* may open 512: raise"):
        opened(prepared)


PAYLOAD = "payload_of_a_folder"
"""A module beside the data; importing it is what must not happen."""
_LEAF = {"pythonClassName": f"{PAYLOAD}.X", "image": {}}
_PROTO = "tensorflow_datasets.FeaturesDict"
_DICT = "tensorflow_datasets.core.features.features_dict.FeaturesDict"


def in_a_dict(leaf):
    return {"pythonClassName": _DICT, "featuresDict": {"features": {"image": leaf}}}


FEATURES = {
    "top": ("features.json", _LEAF),
    "nested": ("features.json", in_a_dict(_LEAF)),
    "snake": (
        "features.json",
        in_a_dict({"python_class_name": f"{PAYLOAD}.X", "image": {}}),
    ),
    "sequence": (
        "features.json",
        in_a_dict(
            {
                "pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence",
                "sequence": {"feature": _LEAF},
            }
        ),
    ),
    "legacy": ("features.json", {"type": f"{PAYLOAD}.X", "content": {}}),
    "legacy, nested": (
        "features.json",
        {"type": _DICT, "content": {"image": {"type": f"{PAYLOAD}.X", "content": {}}}},
    ),
    "a proto in a string": (
        "features.json",
        {
            "type": _DICT,
            "proto_cls": _PROTO,
            "content": json.dumps(in_a_dict(_LEAF)["featuresDict"]),
        },
    ),
    "JSON in JSON": (
        "features.json",
        {
            "pythonClassName": _DICT,
            "jsonFeature": {"json": json.dumps({"image": {"type": f"{PAYLOAD}.X", "content": {}}})},
        },
    ),
    "the other file": ("dataset_info.json", in_a_dict(_LEAF)),
}


@pytest.mark.parametrize(("file", "features"), FEATURES.values(), ids=FEATURES)
def test_a_folder_runs_no_code(folder, tmp_path, monkeypatch, file, features):
    """tensorflow-datasets imports the modules that name a folder's features."""
    (tmp_path / f"{PAYLOAD}.py").write_text("raise SystemExit('the payload ran')\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = folder / file
    if file == "dataset_info.json":
        features = json.loads(path.read_text()) | {"features": features}
    path.write_text(json.dumps(features))
    with pytest.raises(DataError, match=rf"{file}: names the feature '{PAYLOAD}.X', .*copy it"):
        opened(folder)


def test_features_of_a_module_that_is_no_feature_are_refused(folder):
    """Even of tensorflow-datasets: importing `scripts` would parse flags."""
    path = folder / "features.json"
    path.write_text(path.read_text().replace("core.features.image_feature", "scripts.cli.main"))
    with pytest.raises(DataError, match="is not one of tensorflow-datasets"):
        opened(folder)
