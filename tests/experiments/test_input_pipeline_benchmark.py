"""The benchmark of the input pipeline: what it writes, and what its table says."""

import os
import sys

import numpy as np
import pytest
from benchmark_commands import call, result_in, table_in

from experiments.benchmarks import input_pipeline
from experiments.benchmarks.input_pipeline_photos import synthetic_photo

TINY = "--files 2 --width 90 --height 60 --image-size 32 --repeats 2 --turn-seconds 1e-4"


@pytest.fixture(autouse=True)
def _without_tensorflow(monkeypatch):
    """As for most users, whether it is installed or not."""
    monkeypatch.setitem(sys.modules, "tensorflow", None)


def test_a_run_writes_json_and_table_and_says_what_is_missing(monkeypatch, tmp_path, capsys):
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    call(monkeypatch, f"input_pipeline {TINY} --out {tmp_path}")
    result = result_in(tmp_path, input_pipeline)
    assert {name: len(seconds) for name, seconds in result["seconds"].items()} == {
        "ours": 2,
        "ours_distorted": 2,
    }
    assert set(result["missing"]) == {"tf", "tf_same"}
    assert result["files"]["pixels"] == 90 * 60
    assert 0.08 * 90 * 60 < result["files"]["window_pixels"] < 90 * 60
    text = table_in(tmp_path, capsys.readouterr().out, input_pipeline)
    assert "tf.data, decode_and_crop_jpeg and resize, defaults | not measured: import of" in text
    if cores is not None:
        assert result["pinned"]
        assert os.sched_getaffinity(0) == cores


def made(ours, tf):
    """A result in which a view takes so many milliseconds."""
    config = input_pipeline.Config()
    return {
        "config": {"folder": None, "image_size": 224, "repeats": 3, "turn_seconds": 0.2},
        "environment": {"backend": "cpu", "processor": "P", "python": "3", "versions": {}},
        "allocation": {},
        "peers": {"tensorflow": "2"},
        "missing": {},
        "pinned": True,
        "files": {"count": config.files, "bytes": 9e4, "pixels": 2e5, "window_pixels": 1e5},
        "seconds": {
            "ours": [value / 1e3 for value in ours],
            "tf": [value / 1e3 for value in tf],
        },
        "difference": {"tf": 2.18},
    }


@pytest.mark.parametrize(
    ("ours", "ratio", "verdict"), [((2, 2, 5), "1.00", "reached"), ((4, 4, 4), "0.50", "missed")]
)
def test_the_target_is_judged_by_the_median_ratio(ours, ratio, verdict):
    text = input_pipeline.table(made(ours, (2, 2, 2)))
    assert f"{ratio}: {verdict}." in text
    assert (
        "| tf.data, decode_and_crop_jpeg and resize, defaults | 500 (500 to 500) | 1.00 |" in text
    )
    assert "windows cover 50 %" in text


def test_photos_are_those_of_their_seed_and_weigh_what_real_ones_do():
    photo = synthetic_photo(3, width=500, height=375, quality=90)
    assert photo == synthetic_photo(3, width=500, height=375, quality=90)
    assert photo != synthetic_photo(4, width=500, height=375, quality=90)
    assert 70_000 < len(photo) < 120_000  # ImageNet's mean is 115 kB for 1.07 times the pixels


def test_a_folder_of_photos(monkeypatch, tmp_path):
    (tmp_path / "deep").mkdir()
    for index, suffix in enumerate((".jpg", ".JPEG", ".txt")):
        data = synthetic_photo(index, width=64, height=48, quality=90)
        (tmp_path / "deep" / f"{index}{suffix}").write_bytes(data)
    files = input_pipeline.read_folder(tmp_path, 5)
    assert len(files) == 2
    config = input_pipeline.Config(
        folder=tmp_path, contestants=("ours",), repeats=1, turn_seconds=1e-4, image_size=16
    )
    result = input_pipeline.measure(config)
    assert result["config"]["folder"] == "given"
    assert result["files"]["count"] == 2
    assert np.isfinite(result["seconds"]["ours"]).all()


def test_an_empty_folder_is_refused(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match=r"error: folder .* holds no \.jpg or \.jpeg file"):
        call(monkeypatch, f"input_pipeline --folder {tmp_path} --out {tmp_path / 'out'}")
