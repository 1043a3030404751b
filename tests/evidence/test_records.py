"""What a run writes and reads back, through every way it can end."""

import json
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from bnjax.evidence.records import (
    SCHEMA,
    RecordError,
    Run,
    check_log_digest,
    differences,
    number,
    read_metrics,
    read_record,
    tree_sha256,
)

IDENTITY = {"arm": "a", "rates": (0.1, 0.2), "config": {"decay": 0.9, "name": None}}
ENVIRONMENT = {"python": "3", "git": {"commit": "abc", "dirty": False}}
HEADER = {"identity": IDENTITY, "environment": ENVIRONMENT, "seed": 0}


def content(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*"))}


def changed(**change):
    return HEADER | {"identity": IDENTITY | change}


@pytest.fixture
def run(tmp_path):
    """A run that logged steps 0, 10 and 20."""
    run = Run(tmp_path / "runs" / "a-s0", HEADER)
    for step in (0, 10, 20):
        run.log({"step": step, "loss": step / 10})
    return run


def test_the_record_is_there_before_the_first_step(tmp_path):
    run = Run(tmp_path / "deep" / "er", HEADER)
    record = read_record(run.directory)
    assert len(record.pop("sha256")) == 64
    assert record == json.loads(json.dumps(HEADER)) | {"schema": SCHEMA, "finished": False}
    assert not run.finished


def test_metrics_are_read_back_as_they_were_logged(run):
    assert read_metrics(run.directory) == [
        {"step": 0, "loss": 0.0},
        {"step": 10, "loss": 1.0},
        {"step": 20, "loss": 2.0},
    ]
    assert (run.directory / "metrics.jsonl").read_text().splitlines()[1] == '{"step":10,"loss":1.0}'


def test_what_is_written_is_on_the_disk(run, monkeypatch):
    """A line before the checkpoint that follows it, a record before it takes the old one's name.

    A power cut would else leave a log behind its checkpoint, with which no run goes on.
    """
    log, record = run.directory / "metrics.jsonl", run.directory / "record.json"
    synced = []

    def fsync(descriptor):
        written = os.fstat(descriptor)
        synced.append((written.st_ino, written.st_size, record.stat().st_ino == written.st_ino))

    monkeypatch.setattr(os, "fsync", fsync)
    run.log({"step": 30})
    assert (log.stat().st_ino, log.stat().st_size, False) in synced
    run.finish({})
    assert (record.stat().st_ino, record.stat().st_size, False) in synced
    assert run.directory.stat().st_ino == synced[-1][0]


def test_finishing_writes_the_outcome(run):
    run.finish({"test": {"correct": 9}})
    record = read_record(run.directory)
    assert record["finished"]
    assert record["final"] == {"test": {"correct": 9}}
    assert record["seed"] == 0
    assert Run(run.directory, HEADER).finished


def test_opening_again_goes_on_and_changes_nothing(run):
    before = content(run.directory)
    again = Run(run.directory, HEADER)
    assert content(run.directory) == before
    again.log({"step": 30})
    assert [entry["step"] for entry in read_metrics(run.directory)] == [0, 10, 20, 30]


def test_another_environment_is_noted_once_it_goes_on_in_it(run):
    other = ENVIRONMENT | {"python": "4"}
    Run(run.directory, HEADER | {"environment": other})
    record = read_record(run.directory)
    assert record["environment"] == ENVIRONMENT
    assert record["resumed_under"] == [other]


def test_another_environment_leaves_a_finished_run_alone(run):
    run.finish({})
    before = content(run.directory)
    Run(run.directory, HEADER | {"environment": {"python": "4"}})
    assert content(run.directory) == before


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"arm": "b"}, "arm: stored 'a', given 'b'"),
        ({"rates": (0.1, 0.3)}, "rates.1: stored 0.2, given 0.3"),
        ({"rates": (0.1,)}, "rates.1: stored 0.2, given nothing"),
        ({"config": {"decay": 0.99, "name": None}}, "config.decay: stored 0.9, given 0.99"),
        ({"config": {"decay": 0.9}}, "config.name: stored None, given nothing"),
        ({"new": 1}, "new: stored nothing, given 1"),
    ],
)
def test_another_configuration_is_refused_with_the_difference(run, change, line):
    before = content(run.directory)
    with pytest.raises(RecordError) as error:
        Run(run.directory, changed(**change))
    lines = str(error.value).splitlines()
    assert lines[0] == f"{run.directory} holds a run of another configuration:"
    assert [text.strip() for text in lines[1:-1]] == [line]
    assert "Choose another --out" in lines[-1]
    assert content(run.directory) == before


@pytest.mark.parametrize(
    ("step", "kept"), [(-1, []), (0, [0]), (10, [0, 10]), (15, [0, 10]), (99, [0, 10, 20])]
)
def test_rewinding_drops_what_came_later(run, step, kept):
    run.rewind(step)
    assert [entry["step"] for entry in read_metrics(run.directory)] == kept
    run.log({"step": 100})
    assert [entry["step"] for entry in read_metrics(run.directory)] == [*kept, 100]


@pytest.mark.parametrize(
    ("step", "logged", "missing"), [(30, [0, 20, 30], 30), (20, [0, 5, 20], 5)]
)
def test_a_log_with_a_hole_is_refused_and_kept(run, step, logged, missing):
    """As a run that goes on from a checkpoint without its log would leave it."""
    before = content(run.directory)
    with pytest.raises(
        RecordError, match=rf"metrics\.jsonl lacks step {missing}, which .*checkpoint"
    ):
        run.rewind(step, logged)
    assert content(run.directory) == before
    run.rewind(10, [0, 10])
    assert [entry["step"] for entry in read_metrics(run.directory)] == [0, 10]


def test_rewinding_what_was_never_logged(tmp_path):
    run = Run(tmp_path, HEADER)
    run.rewind(-1)
    assert read_metrics(tmp_path) == []


def test_rewinding_keeps_every_byte_of_what_it_keeps(run):
    """The lines of a resumed run are compared bitwise with those of an uninterrupted one."""
    metrics = run.directory / "metrics.jsonl"
    run.log({"step": 30, "loss": 1e-7, "units": [0.1, 1e22, -0.0]})
    before = metrics.read_bytes()
    run.log({"step": 40})
    run.rewind(30)
    assert metrics.read_bytes() == before


@pytest.mark.parametrize("torn", ['{"step":30,"lo', "{", '{"step":30,"loss":2.5}'])
def test_a_torn_last_line_is_dropped_on_rewinding(run, torn):
    """A kill within a write; the last case lacks the end of line alone and is whole."""
    metrics = run.directory / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + torn)
    run.rewind(20)
    run.log({"step": 30, "loss": 3})
    assert [entry["step"] for entry in read_metrics(run.directory)] == [0, 10, 20, 30]


def test_a_torn_last_line_is_no_result(run):
    """A truncated file would pass an earlier evaluation for the final one."""
    metrics = run.directory / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-4])
    with pytest.raises(RecordError, match=r"metrics.jsonl, line 3 is damaged: '{.step.:20"):
        read_metrics(run.directory)
    assert [entry["step"] for entry in read_metrics(run.directory, torn=True)] == [0, 10]


def test_an_older_identity_is_completed_by_defaults(run):
    """Of fields that are newer; what it states stays."""
    identity = HEADER["identity"]
    config = identity["config"] | {"depth": 3}
    newer = HEADER | {"identity": identity | {"config": config}}
    with pytest.raises(RecordError, match=r"config\.depth: stored nothing, given 3"):
        Run(run.directory, newer)
    before = content(run.directory)
    Run(run.directory, newer, {"config": {"depth": 3, "decay": 0.5}, "settings": {}})
    assert content(run.directory) == before
    with pytest.raises(RecordError, match=r"config\.depth: stored 2, given 3"):
        Run(run.directory, newer, {"config": {"depth": 2}})


def test_a_damaged_line_in_the_middle_is_refused(run):
    metrics = run.directory / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"step":10', '"step"10'))
    before = content(run.directory)
    for read in (lambda: run.rewind(20), lambda: read_metrics(run.directory)):
        with pytest.raises(RecordError, match=r"metrics\.jsonl, line 2 is damaged"):
            read()
    assert content(run.directory) == before


def test_missing_metrics_are_refused(run):
    (run.directory / "metrics.jsonl").unlink()
    with pytest.raises(RecordError, match=r"metrics\.jsonl is missing"):
        read_metrics(run.directory)


def test_a_folder_without_a_run(run, tmp_path):
    """One beside it or below it, if there is any, is named."""
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(RecordError, match=r"empty holds no run: there is no record\.json\.$"):
        read_record(empty)
    for folder in (run.directory.parent, run.directory.parent / "nowhere"):
        with pytest.raises(RecordError, match=f"; one that does is {run.directory}"):
            read_record(folder)
    with pytest.raises(RecordError, match="nowhere does not exist"):
        read_record(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", '{"schema": 1', "\x00\x00"])
def test_a_damaged_record_is_refused_and_kept(run, text):
    path = run.directory / "record.json"
    path.write_text(text)
    before = content(run.directory)
    for opening in (lambda: read_record(run.directory), lambda: Run(run.directory, HEADER)):
        with pytest.raises(RecordError, match=r"record\.json is damaged .*remove the folder"):
            opening()
    assert content(run.directory) == before


@pytest.mark.parametrize("text", ["[]", "3", "null"])
def test_a_record_that_is_no_object_is_refused(run, text):
    (run.directory / "record.json").write_text(text)
    with pytest.raises(RecordError, match=r"record\.json is damaged"):
        read_record(run.directory)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 100_000, b'{"schema": 2}', b"5"])
def test_a_record_of_any_bytes_is_refused(run, content):
    (run.directory / "record.json").write_bytes(content)
    with pytest.raises(RecordError, match=r"record\.json is damaged"):
        read_record(run.directory)


def test_a_record_that_is_a_folder_is_refused(run):
    (run.directory / "record.json").unlink()
    (run.directory / "record.json").mkdir()
    with pytest.raises(RecordError, match=r"record\.json cannot be read \(Is a directory"):
        read_record(run.directory)


@pytest.mark.parametrize("finished", [False, True])
def test_any_change_of_a_record_is_noticed(run, finished):
    """Of a value, a key or its place; in what layout it stands does not matter."""
    run.rewind(20)
    if finished:
        run.finish({"test": {"correct": 9}})
    path = run.directory / "record.json"
    record = read_record(run.directory)
    path.write_text(json.dumps(record, indent=3, sort_keys=True))
    assert read_record(run.directory) == record
    for change in ({"seed": 1}, {"new": None}, {"environment": {}}, {"sha256": "0" * 64}):
        path.write_text(json.dumps(record | change))
        with pytest.raises(RecordError, match="differs from its own sha256"):
            read_record(run.directory)


def test_any_change_of_a_finished_log_is_noticed(run):
    run.finish({"test": {"correct": 9}})
    check_log_digest(run.directory, read_record(run.directory))
    metrics = run.directory / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("2.0", "2.1"))
    with pytest.raises(RecordError, match=r"metrics\.jsonl is not what the run wrote"):
        check_log_digest(run.directory, read_record(run.directory))


@pytest.mark.parametrize(
    "line", [b"5", b"null", b"[]", b"{}", b'{"step":"1"}', b"\xff", b"[" * 9999]
)
def test_a_line_of_another_shape_is_refused(run, line):
    metrics = run.directory / "metrics.jsonl"
    first, *rest = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join([first, line + b"\n", *rest]))
    for read in (lambda: run.rewind(20), lambda: read_metrics(run.directory)):
        with pytest.raises(RecordError, match=r"metrics\.jsonl, line 2 is damaged"):
            read()


def test_a_line_twice_is_refused_on_rewinding(run):
    metrics = run.directory / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step":20,"loss":3.0}\n')
    before = content(run.directory)
    with pytest.raises(RecordError, match="its steps do not grow"):
        run.rewind(20, [0, 10, 20])
    assert content(run.directory) == before


def test_a_folder_that_goes_away_in_mid_run_is_named(run):
    run.directory.rename(run.directory.with_name("moved"))
    for write in (lambda: run.log({"step": 30}), lambda: run.finish({}), lambda: run.rewind(20)):
        with pytest.raises(RecordError, match=r"cannot be written .*moved or removed"):
            write()
    assert not run.directory.exists()


@pytest.mark.parametrize("schema", [SCHEMA + 1, None, 0, True, "2"])
def test_another_schema_is_refused(run, schema):
    path = run.directory / "record.json"
    path.write_text(json.dumps(run.record | {"schema": schema}))
    with pytest.raises(RecordError, match=f"has schema {schema}, this bnjax reads {SCHEMA}"):
        Run(run.directory, HEADER)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float64])
def test_numbers_read_back_as_the_same_value(dtype):
    """Red for float(value) with its 17 digits, or for a fixed number of digits."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=200) * 10.0 ** rng.integers(-30, 30, 200)
    for value in values.astype(dtype):
        text = json.dumps(number(value))
        assert np.asarray(float(text), dtype) == value
    assert json.dumps(number(np.float32(0.1))) == "0.1"
    assert json.dumps(number(jnp.float32(2302.5852))) == "2302.5852"


@pytest.mark.parametrize("value", [np.int32(-7), jnp.int32(-7), np.array([-7])[0], -7])
def test_whole_numbers_stay_whole(value):
    assert json.dumps(number(value)) == "-7"


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_diverged_losses_are_logged(run, value):
    """A learning rate that is too high ends in NaN; the run is a result all the same."""
    run.log({"step": 30, "loss": number(np.float32(value))})
    assert str(read_metrics(run.directory)[-1]["loss"]) == value


TREE = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": (np.float32(1), np.int32([2]))}


def test_the_digest_of_a_tree_does_not_depend_on_where_it_lies():
    digest = tree_sha256(TREE)
    assert tree_sha256({key: TREE[key] for key in ("b", "a")}) == digest
    assert tree_sha256(TREE | {"a": jnp.asarray(TREE["a"])}) == digest
    assert tree_sha256(TREE | {"a": np.asfortranarray(TREE["a"])}) == digest
    assert tree_sha256(TREE | {"a": np.repeat(TREE["a"], 2, axis=1)[:, ::2]}) == digest


@pytest.mark.parametrize(
    "change",
    [
        {"a": np.nextafter(TREE["a"], 9)},
        {"a": -0.0 * TREE["a"]},
        {"a": TREE["a"].astype(np.float64)},
        {"a": TREE["a"].view(np.int32)},
        {"a": TREE["a"].reshape(3, 2)},
        {"a": TREE["a"].ravel()},
        {"b": (np.float32([1]), np.int32([2]))},
        {"b": {"0": np.float32(1), "1": np.int32([2])}},
        {"b": (np.int32([2]), np.float32(1))},
        {"c": np.zeros(0, np.float32)},
    ],
    ids=["value", "sign", "dtype", "bits", "shape", "rank", "scalar", "path", "order", "leaf"],
)
def test_the_digest_of_a_tree_notices(change):
    zeros = {"a": 0.0 * TREE["a"]} if np.all(change.get("a", 1) == 0) else {}
    assert tree_sha256(TREE | change) != tree_sha256(TREE | zeros)


def test_the_digest_of_a_tree_is_the_one_of_the_published_results():
    digest = "bce3d9959819c083839df1cec9e28a228ffcdd3ec1a8a0a9b88c97edab71a56f"
    assert tree_sha256({"params": {"kernel": np.arange(3, dtype=np.float32)}}) == digest


def test_differences_of_equal_values():
    value = {"a": [1, {"b": float("nan")}], "c": "text"}
    assert differences(value, json.loads(json.dumps(value))) == []


def test_differences_are_named_by_their_path():
    stored = {"a": {"b": [1, 2]}, "c": 1, "d": True}
    given = {"a": {"b": [1, 3]}, "c": 1.0, "d": "True"}
    assert differences(stored, given) == [
        "a.b.1: stored 2, given 3",
        "c: stored 1, given 1.0",
        "d: stored True, given 'True'",
    ]
