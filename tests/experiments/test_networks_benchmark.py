"""The benchmarks of whole networks: what they write, and what their tables say.

With one Inception module of ten: compiling the whole network takes a minute.
"""

import json
import sys

import pytest

from bnjax.models import bn_inception
from experiments.benchmarks import memory, networks, networks_table
from experiments.benchmarks.__main__ import main
from experiments.benchmarks.networks import Size

TINY = "--sizes narrow --repeats 2 --turn-seconds 1e-4 --no-keep-memory --contestants ours"


@pytest.fixture(autouse=True)
def _short_network(monkeypatch):
    monkeypatch.setattr(bn_inception, "FIGURE_5", bn_inception.FIGURE_5[2:3])
    monkeypatch.setitem(networks.SIZES, "narrow", Size(0.125, 8, 1, 4, 3))


def test_a_run_writes_json_and_table(monkeypatch, tmp_path, capsys):
    run(monkeypatch, f"networks {TINY} --out {tmp_path}")
    result = json.loads((tmp_path / "networks.json").read_text(), parse_constant=pytest.fail)
    assert (result["schema"], result["benchmark"]) == (1, "networks")
    assert result["config"]["dtype"] == "float32"
    assert (result["peers"], result["threads"], result["missing"]) == ({}, None, {})
    (cell,) = result["cells"]
    assert (cell["size"], cell["width"], cell["batch_size"]) == ("narrow", 0.125, 4)
    assert len(cell["seconds"]["ours"]) == 2
    text = networks.table(result)
    assert (tmp_path / "networks.md").read_text(encoding="utf-8") == text + "\n"
    assert text in capsys.readouterr().out


def test_a_missing_peer_is_named_with_the_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    config = networks.Config(sizes=("narrow",), repeats=1, turn_seconds=1e-4)
    result = networks.measure(config)
    assert result["config"]["contestants"] == ("ours", "torch")
    assert set(result["missing"]) == {"torch"}
    assert " | PyTorch, eager, channels_last | not measured: import of torch " in networks.table(
        result
    )


@pytest.mark.parametrize(
    ("backend", "sizes", "dtype", "contestants"),
    [
        ("cpu", {"narrow", "full"}, "float32", {"ours", "torch"}),
        ("gpu", {"full_128"}, "bfloat16", {"ours", "torch", "torch_compiled"}),
    ],
)
def test_what_is_measured_depends_on_the_machine(monkeypatch, backend, sizes, dtype, contestants):
    """Unless it is given."""
    raced = []
    monkeypatch.setattr(networks.jax, "default_backend", lambda: backend)
    monkeypatch.setattr(networks, "find_torch", lambda names: ({}, {}))
    monkeypatch.setattr(
        networks, "race", lambda setting, names, **_: raced.append((setting, set(names))) or {}
    )
    result = networks.measure(networks.Config())
    assert {cell["size"] for cell in result["cells"]} == sizes
    assert {setting.dtype for setting, _ in raced} == {dtype}
    assert all(names == contestants for _, names in raced)
    networks.measure(networks.Config(sizes=("full",), dtype="bfloat16", contestants=("torch",)))
    assert raced[-1] == (networks.Setting("bfloat16", *networks.SIZES["full"], 1e-3), {"torch"})


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("networks --sizes wide", "sizes: unknown 'wide'; choose from narrow, full, full_128"),
        ("networks --sizes full full", "sizes must be given, each once"),
        ("networks --contestants flax", "contestants: unknown 'flax'; choose from ours, torch,"),
        ("networks --repeats 0", "repeats must be >= 1, got 0"),
        ("networks --learning-rate 0", "learning_rate must be > 0, got 0"),
        ("networks --turn-seconds inf", "turn_seconds must be > 0, got inf"),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong(monkeypatch, capsys, argv, said):
    monkeypatch.setattr(memory.os, "execve", lambda *_: pytest.fail("started anew"))
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, argv)
    assert stop.value.code != 0
    assert said in f"{stop.value.code} {capsys.readouterr().err}"


CELL = {
    "width": 0.25,
    "image_size": 32,
    "batch_size": 32,
    "seconds": {
        "ours": [0.11, 0.22, 0.44],
        "torch": [0.1, 0.2, 0.4],
        "torch_compiled": [0.2, 0.2, 0.2],
    },
}


def made(backend, cell=CELL):
    return {
        "config": {"repeats": 3, "turn_seconds": 0.5, "dtype": "float32"},
        "environment": {
            "backend": backend,
            "device_kind": "G",
            "processor": "P",
            "python": "3",
            "versions": {},
        },
        "peers": {},
        "allocation": {},
        "threads": 2,
        "missing": {},
        "cells": [cell],
    }


def test_the_table_compares_steps_of_the_same_repeat():
    """A machine that is slow in one repeat is slow for all: their ratio stays."""
    lines = networks_table.table(made("cpu")).splitlines()
    where = "width 0.25, 32 images of 32x32"
    assert lines[2:4] == [
        f"| {where} | bnjax | 220.0 (165.0 to 330.0) | 145.5 | 1.10 (1.10 to 1.10) |",
        f"| {where} | PyTorch, eager, channels_last | 200.0 (150.0 to 300.0) | 160.0 |  |",
    ]
    target = f"- Target, {where}: at most 1.15 times PyTorch, eager, channels_last"
    assert f"{target}: 1.10: reached." in lines
    assert "- Threads, XLA's and PyTorch's alike: 2." in lines
    slow = CELL | {"seconds": CELL["seconds"] | {"ours": [0.12, 0.24, 0.48]}}
    assert f"{target}: 1.20: missed." in networks_table.table(made("cpu", slow)).splitlines()


def test_on_a_gpu_the_peer_is_compiled_and_images_count():
    text = networks_table.table(made("gpu"))
    assert "times the images/s of PyTorch, torch.compile, channels_last: 0.91: missed." in text
    assert "Threads" not in text


def run(monkeypatch, argv: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *argv.split()])
    main()
