"""Turns, the machine's memory, and the tables made of them."""

import itertools
import os
import sys
from collections import Counter

import numpy as np
import pytest

from experiments.benchmarks import batch_norm_table, memory, turns
from experiments.benchmarks.turns import Spread, spread, take_turns


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


def test_bandwidth_counts_three_arrays_in_the_fastest_time(monkeypatch):
    """Each pair of readings encloses one; the first compiles and does not count."""
    readings = itertools.chain.from_iterable((0, d) for d in (1e-9, 4.0, 2.0, 3.0))
    monkeypatch.setattr(memory.time, "perf_counter", lambda: next(readings))
    assert memory.bytes_per_second(4096, 3) == 3 * 4096 / 2.0


@pytest.fixture
def started(monkeypatch):
    """The environments that programs were started anew with."""
    environments: list = []
    monkeypatch.setattr(
        memory.os, "execve", lambda path, argv, env: environments.append((argv, env))
    )
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "experiments.benchmarks", "mnist"])
    for name in (*memory.KEEP, *memory.SHARE_ACCELERATOR):
        monkeypatch.delenv(name, raising=False)
    return environments


def test_a_program_starts_anew_once_as_it_was_called(started, monkeypatch):
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


def test_the_table_compares_medians_and_names_targets():
    """Every number here can be checked by hand."""
    lines = batch_norm_table.table(_result()).splitlines()
    assert lines[:4] == [
        "| input | bnjax, ms | x Flax Linen | target | x PyTorch, eager | target | of the floor |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| 4x10, float32 | 2.00 (1.50 to 2.50) | 0.50 | 0.7 | 2.00 | 1.1 | 64 % |",
        "| 4x10, bfloat16 + ReLU | 2.00 (1.50 to 2.50) | 0.50 |  | 2.00 |  | 32 % |",
    ]
    for line in (
        "| Haiku | not measured: gone |",
        "| bnjax | 2 |  |",
        "| Flax Linen | 11 | 3.00 |",
        "| bnjax | 1.0e-03 | 1.0e-03 | 1.0e-03 |",
        "| Flax Linen, use_fast_variance=False | not finite | 1.0e-03 | 1.0e-03 |",
        "| bnjax | 1 | 1 | 1 | 2 |",
        "| Flax Linen | 1 | 1 | no | no |",
        "- Target: at most 0.7 x Flax Linen in float32: 0.50 at 4x10: reached.",
        "- Target: at most 1.1 x PyTorch, eager in float32: 2.00 at 4x10: missed.",
        "- Target: bnjax keeps at most 2 bytes a value in bfloat16 with ReLU: 2: reached.",
        "- Target: one collective forward and one backward under jit: 1 forward, 1 backward: "
        "reached.",
        "- Target: one collective forward and one backward under shard_map: 1 forward, 2 backward: "
        "missed.",
    ):
        assert line in lines, line
    assert not any("bfloat16" in line and line.startswith("- Target: at most") for line in lines)


def test_on_an_accelerator_the_target_is_a_share_of_the_floor():
    result = _result()
    result["environment"] |= {"backend": "gpu", "device_kind": "G"}
    targets = [line for line in batch_norm_table.table(result).splitlines() if "Target: " in line]
    assert targets[0] == "- Target: 80 % of the floor, float32, 4x10: 64 %: missed."
    assert not any("x Flax" in line for line in targets)


def _result():
    """1,000 bytes a ms: 4 x 10 float32 values, eight times, need 1.28 ms."""
    times = {
        "ours": [1e-3, 2e-3, 3e-3],
        "flax": [4e-3] * 3,
        "torch": [1e-3] * 3,
        "torch_one_thread": [8e-3] * 3,
    }
    cell = {
        "shape": [4, 10],
        "seconds": times,
        "page_faults": {name: [0.0] * 3 for name in times},
        "temporary_bytes": {"ours": None, "flax": 3_000_000},
    }
    error = {"y": 1e-3, "dx": 1e-3, "dscale": 1e-3}
    return {
        "config": {
            "shapes": ["4x10"],
            "repeats": 3,
            "turn_seconds": 0.1,
            "accuracy_shape": "4x10",
        },
        "environment": {"backend": "cpu", "processor": "P", "python": "3", "versions": {}},
        "peers": {},
        "allocation": {},
        "missing": {"haiku": "gone"},
        "bytes_per_second": 1e6,
        "cells": [
            {**cell, "dtype": "float32", "activation": "none"},
            {**cell, "dtype": "bfloat16", "activation": "relu"},
        ],
        "residual_bytes": [
            {"dtype": "bfloat16", "activation": "relu", "per_value": {"ours": 2.0, "flax": 11.0}}
        ],
        "accuracy": [
            {"offset": 0.0, "errors": {"ours": error, "flax_two_pass": {**error, "y": None}}}
        ],
        "collectives": {
            "ours": {
                "jit": {"forward": 1, "backward": 1},
                "shard_map": {"forward": 1, "backward": 2},
            },
            "flax": {"jit": {"forward": 1, "backward": 1}, "shard_map": {"refused": "no"}},
        },
    }
