"""Common parts of the benchmarks: command lines, provenance, turns, memory, machine."""

import itertools
import json
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from benchmark_commands import call

from experiments.benchmarks import input_pipeline, machine, memory, mnist, turns
from experiments.benchmarks.benchmark import provenance
from experiments.benchmarks.turns import Spread, spread, take_turns


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("nope", "nope"),
        ("batch_norm --shapes 3x", "shape '3x' is none: give examples x features"),
        ("batch_norm --shapes 1x5", "two values per feature"),
        ("batch_norm --shapes 2x3 2x3", "shapes must name one or more, each once"),
        ("batch_norm --contestants ours nope", "contestants: unknown 'nope'; choose from ours,"),
        ("batch_norm --repeats 0", "repeats must be >= 1, got 0"),
        ("batch_norm --turn-seconds 0", "turn_seconds must be > 0, got 0"),
        ("batch_norm --bandwidth-bytes 3", "bandwidth_bytes must be >= 4, got 3"),
        ("batch_norm --dtypes float16", "float16"),
        ("mnist --nope 1", "--nope"),
        ("mnist --steps 0", "steps must be >= 1, got 0"),
        ("mnist --repeats -1", "repeats must be >= 1, got -1"),
        ("mnist --steps 150", "steps=150 must be a multiple of steps_per_dispatch=100"),
        ("mnist --data cifar", "data: unknown 'cifar'; choose from mnist5k"),
        ("train_step --contestants ours nope", "contestants: unknown 'nope'; choose from ours,"),
        ("train_step --dtypes float32 float32", "dtypes must name one or more, each once"),
        ("train_step --batch-size 0", "batch_size must be >= 1, got 0"),
        ("train_step --width 0", "width must be > 0, got 0"),
        ("train_step --stem-stride 3", "3"),
        ("networks --sizes wide", "sizes: unknown 'wide'; choose from narrow, full, full_128"),
        ("networks --sizes full full", "sizes must name one or more, each once"),
        ("networks --contestants flax", "contestants: unknown 'flax'; choose from ours, torch,"),
        ("networks --repeats 0", "repeats must be >= 1, got 0"),
        ("networks --learning-rate 0", "learning_rate must be > 0, got 0"),
        ("networks --turn-seconds inf", "turn_seconds must be > 0, got inf"),
        ("input_pipeline --contestants ours dali", "contestants: unknown 'dali'"),
        ("input_pipeline --contestants ours ours", "each once"),
        ("input_pipeline --files 0", "files must be >= 1, got 0"),
        ("input_pipeline --seed -1", "seed must be >= 0, got -1"),
        ("input_pipeline --quality 0", "quality must be >= 1, got 0"),
        ("input_pipeline --quality 100", "quality must be in [1, 95], got 100"),
        ("input_pipeline --turn-seconds 0", "turn_seconds must be > 0"),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong(monkeypatch, capsys, argv, said):
    monkeypatch.setattr(memory.os, "execve", lambda *_: pytest.fail("started again"))
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, argv)
    assert stop.value.code != 0
    assert said in f"{stop.value.code} {capsys.readouterr().err}"


@pytest.mark.parametrize(
    ("config", "field"),
    [(mnist.Config, "data_dir"), (input_pipeline.Config, "folder")],
)
def test_provenance_names_no_folder(config, field):
    folder = Path("/home/me/photos")
    result = provenance("x", config(**{field: folder}), peers={}, missing={})
    assert result["config"][field] == "given"
    assert "/home/me" not in json.dumps(result)


@pytest.fixture
def clock(monkeypatch):
    """Time and page faults that the test moves."""
    state = {"now": 0.0, "faults": 0}
    monkeypatch.setattr(turns.time, "perf_counter", lambda: state["now"])
    monkeypatch.setattr(turns, "_page_faults", lambda: state["faults"])
    return state


def runner(clock, log, name, seconds, faults=0):
    def run(calls):
        log.append((name, calls))
        clock["now"] += calls * seconds
        clock["faults"] += calls * faults

    return run


def test_each_takes_one_turn_in_every_repeat_in_a_new_order(clock):
    log: list = []
    costs = {"a": 1.0, "b": 2.0, "c": 4.0}
    runners = {name: runner(clock, log, name, cost, int(cost)) for name, cost in costs.items()}
    taken = take_turns(runners, repeats=20, turn_seconds=3.0)
    rounds = np.reshape([name for name, _ in log[6::2]], (20, 3)).tolist()
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert len(set(map(tuple, rounds))) > 3
    for name, cost in costs.items():
        assert [turn.seconds for turn in taken[name]] == [cost] * 20
        assert [turn.page_faults for turn in taken[name]] == [cost] * 20


def test_a_turn_is_an_untimed_call_and_as_many_as_its_length_holds(clock):
    log: list = []
    runners = {"a": runner(clock, log, "a", 1.0), "b": runner(clock, log, "b", 9.0)}
    take_turns(runners, repeats=1, turn_seconds=3.0)
    assert Counter(log[4:]) == {("a", 1): 1, ("a", 3): 1, ("b", 1): 2}


def test_spread_is_median_and_quartiles():
    assert spread([5, 1, 2, 3, 4]) == Spread(3, 2, 4)
    assert spread([7]) == Spread(7, 7, 7)


def test_raw_turns_are_by_field_and_contestant():
    taken = {"a": [turns.Turn(1.0, 2.0), turns.Turn(3.0, 4.0)]}
    assert turns.raw(taken) == {"seconds": {"a": [1, 3]}, "page_faults": {"a": [2, 4]}}


def test_bandwidth_counts_three_arrays_in_the_fastest_time(monkeypatch):
    """Each pair of readings encloses one; the first compiles and does not count."""
    readings = itertools.chain.from_iterable((0, d) for d in (1e-9, 4.0, 2.0, 3.0))
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(readings))
    assert machine.bytes_per_second(4096, 3) == 3 * 4096 / 2.0


def test_matmul_rate_is_of_the_fastest_product(monkeypatch):
    """Each pair of readings encloses one product; the first two compile and do not count."""
    readings = itertools.chain.from_iterable((0, d) for d in (1e-9, 1e-9, 4.0, 2.0, 3.0, 5.0))
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(readings))
    assert machine.matmul_flops_per_second(16, 2) == 2 * 16**3 / 2.0


@pytest.fixture
def started(monkeypatch):
    """Arguments and environments of programs that were started again."""
    environments: list = []
    monkeypatch.setattr(
        memory.os, "execve", lambda path, argv, env: environments.append((argv, env))
    )
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "experiments.benchmarks", "mnist"])
    for name in (*memory.KEEP, *memory.SHARE_ACCELERATOR):
        monkeypatch.delenv(name, raising=False)
    return environments


def test_a_program_starts_again_once_as_it_was_called(started, monkeypatch):
    memory.restart_keeping_memory()
    ((argv, environment),) = started
    assert argv == [sys.executable, "-m", "experiments.benchmarks", "mnist"]
    assert {**memory.KEEP, **memory.SHARE_ACCELERATOR}.items() <= environment.items()
    assert environment["PATH"] == os.environ["PATH"]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    memory.restart_keeping_memory()
    assert len(started) == 1


def test_what_the_user_has_set_stands(started, monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "7")
    memory.restart_keeping_memory()
    assert started[0][1]["MALLOC_ARENA_MAX"] == "7"
    assert memory.settings(started[0][1])["MALLOC_ARENA_MAX"] == "7"


def test_other_c_libraries_get_no_settings_of_glibc(started, monkeypatch):
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("", ""))
    memory.restart_keeping_memory()
    assert "MALLOC_ARENA_MAX" not in started[0][1]


def test_provenance_names_no_path_of_a_library():
    assert memory.settings({"LD_PRELOAD": "/home/me/lib/libjemalloc.so.2", "HOME": "x"}) == {
        "LD_PRELOAD": "libjemalloc.so.2"
    }
