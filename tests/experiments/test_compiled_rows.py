"""Compiling for absent chips: rows of steps that can be counted by hand, and files of results."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from bnjax.compilers import topologies
from bnjax.compilers.cost import DoesNotFitError
from bnjax.compilers.topologies import find_topology
from bnjax.training.parallel import DataParallel
from experiments.compiled import __main__ as command
from experiments.compiled import dry_run, memory, normalization, rows
from experiments.compiled.rows import Case, compile_cases
from experiments.compiled.steps import AbstractStep

WEIGHTS = jax.ShapeDtypeStruct((32, 16), jnp.float32)
SIZE = 4 * 32 * 16


def step(examples, **changes):
    """A step of one product, whose batch `[3, n, 32]` is split along its second axis."""

    def update(weights, batch):
        return weights - jax.grad(lambda w: jnp.square(batch @ w).mean())(weights)

    batch = jax.ShapeDtypeStruct((3, examples, 32), jnp.float32)
    return AbstractStep(update, WEIGHTS, batch, axis=1)._replace(**changes)


def case(name, topology="cpu:2", make=None, how="jit"):
    topology = find_topology(topology)
    parallel = DataParallel(how, devices=topology.devices)
    make = make or (lambda: step(16))
    return Case({"name": name}, topology, parallel, make)


@pytest.mark.parametrize("how", ["jit", "shard_map", "pmap"])
def test_a_row_holds_the_figures_of_one_chip(how, capsys):
    """Red where the batch is not split, or along another axis, or the state is not given up."""
    told = []
    result = compile_cases([case("a", how=how)], {"schema": 7}, progress=told.append)
    result = json.loads(json.dumps(result))
    assert result["schema"] == 7
    assert result["environment"]["versions"]["jax"] == jax.__version__
    assert result["compilers"] == topologies.compiler_versions()
    (row,) = result["rows"]
    assert (row["name"], row["topology"], row["platform"]) == ("a", "cpu:2", "cpu")
    assert (row["devices"], row["refused"], row["least_time"]) == (2, None, None)
    assert row["argument_bytes"] == SIZE + 4 * 3 * 8 * 32
    assert row["alias_bytes"] == SIZE
    assert row["memory_bytes"] == find_topology("cpu:2").chip.memory_bytes
    if how == "jit":  # the others leave the gradient of a chip's own examples
        assert row["collectives"] == {"all-reduce": {"count": 1, "bytes": SIZE}}
    assert told == ["compiling name a, topology cpu:2"]
    assert capsys.readouterr().err == ""


def test_nothing_is_given_up_where_a_step_only_reads():
    (row,) = compile_cases([case("a", make=lambda: step(16, donate=False))], {})["rows"]
    assert (row["alias_bytes"], row["output_bytes"]) == (0, SIZE)


def refuse(*_):
    raise DoesNotFitError("does not fit: 20 GB.")


def test_a_step_that_does_not_fit_is_a_row(monkeypatch):
    monkeypatch.setattr(rows, "compile_step", refuse)
    result = compile_cases([case("a"), case("b", "cpu:1")], {})
    assert [row["refused"] for row in result["rows"]] == ["does not fit: 20 GB."] * 2
    assert result["rows"][1]["topology"] == "cpu:1"


@pytest.mark.parametrize(
    ("git", "settings", "again"),
    [({}, {}, 2), ({"dirty": True}, {}, 3), ({"commit": "b"}, {}, 3), ({}, {"size": 2}, 3)],
)
def test_a_command_that_was_cut_short_goes_on(monkeypatch, tmp_path, git, settings, again):
    """Red if a row is compiled twice, lost, or taken over from other code or settings."""
    compiled = []

    def stop_at_the_second(case):
        compiled.append(case.identity["name"])
        if len(compiled) == 2:
            raise KeyboardInterrupt
        return {"figure": case.identity["name"] * 2}

    here = {"commit": "a", "dirty": False}
    monkeypatch.setattr(rows, "environment", lambda: {"git": here})
    monkeypatch.setattr(rows, "figures", stop_at_the_second)
    cases, keep = [case(name) for name in "xyz"], tmp_path / "rows.tmp"
    with pytest.raises(KeyboardInterrupt):
        compile_cases(cases, {"size": 1}, keep=keep)
    here |= git
    result = compile_cases(cases, {"size": 1} | settings, keep=keep)
    assert [row["figure"] for row in result["rows"]] == ["xx", "yy", "zz"]
    assert compiled == ["x", "y", *"xyz"[-again:]]
    assert list(tmp_path.iterdir()) == []


REFUSED = {"platform": "cpu", "memory_bytes": None, "refused": "no room"}


@pytest.mark.parametrize("module", [memory, normalization])
def test_what_could_not_be_compiled_is_said_in_the_result(module, no_libtpu, monkeypatch):
    monkeypatch.setattr(rows, "figures", lambda case: REFUSED)
    result = rows.measure("name", module.Config(topologies=("v5e:1x1", "cpu:1")))
    assert list(result["missing"]) == ["v5e:1x1"]
    assert {row["topology"] for row in result["rows"]} == {"cpu:1"}
    table = command.memory_table if module is memory else command.normalization_table
    lines = table(json.loads(json.dumps(result))).splitlines()
    assert [line for line in lines if line.startswith("- Not compiled: v5e:1x1: ")]


@pytest.mark.slow
def test_importing_the_command_starts_no_backend_and_loads_no_compiler():
    """With a platform's package installed, nothing else changes; in a process of its own."""
    lines = [
        "import os, jax",
        "jax.config.update('jax_platforms', 'cpu')",
        "with_jax = dict(os.environ)",
        "import experiments.compiled.__main__",
        "import jax._src.xla_bridge as bridge",
        "assert not bridge._backends, 'importing starts a backend'",
        "assert dict(os.environ) == with_jax, 'importing loads a compiler'",
    ]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", "-c", "\n".join(lines)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def call(monkeypatch, argv):
    monkeypatch.setattr(sys, "argv", ["compiled", *argv.split()])
    command.main()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("memroy", "there is no subcommand 'memroy': did you mean 'memory'?"),
        ("zebra", "choose from dry-run, memory, normalization."),
        ("memory --networks lenet", "networks: unknown 'lenet'; choose from bn_inception, incep"),
        ("memory --batch-sizes 0", "batch_sizes must be >= 1, got 0"),
        ("memory --batch-sizes 8 8", "batch_sizes must name one or more, each once, got 8, 8"),
        ("memory --topologies v9:1", "unknown chip 'v9'"),
        ("memory --topologies cpu:1 v9:1", "unknown chip 'v9'"),
        ("memory --out gs://b/memory.json", "--out must be a local folder"),
        ("normalization --out .", "--out . is a folder: give a file"),
        (
            "normalization --programs resnet",
            "programs: unknown 'resnet'; choose from bn_incep",
        ),
        ("normalization --programs", "programs must name one or more, each once, got nothing"),
        ("normalization --topologies cpu:1 cpu:1", "topologies must name one or more, each once"),
        ("normalization --batch-size 0", "batch_size must be >= 1, got 0"),
        ("normalization --layers -1", "layers must be >= 1, got -1"),
        ("normalization --width 0", "width must be > 0, got 0"),
        ("dry-run --topology cpu", "'cpu' has no size"),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong(monkeypatch, tmp_path, capsys, argv, said):
    """Before anything is compiled."""
    for module in (rows, dry_run):
        monkeypatch.setattr(module, "compile_cases", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, argv)
    assert stop.value.code not in (0, None)
    assert said in f"{stop.value.code} {capsys.readouterr().err}"


def test_help_names_what_there_is(monkeypatch, capsys):
    for argv in ("", "--help"):
        call(monkeypatch, argv)
        text = capsys.readouterr().out
        assert all(f"\n  {word} " in text for word in ("dry-run", "memory", "normalization"))


@pytest.mark.parametrize("word", ["memory", "normalization"])
def test_the_command_writes_its_result_and_prints_its_table(monkeypatch, tmp_path, capsys, word):
    monkeypatch.setattr(rows, "figures", lambda case: REFUSED)
    out = tmp_path / "new" / "result.json"
    call(monkeypatch, f"{word} --topologies cpu:1 --out {out}")
    result = json.loads(out.read_text())
    assert (result["schema"], result["benchmark"]) == (1, word)
    table = command.memory_table if word == "memory" else command.normalization_table
    printed = capsys.readouterr()
    assert printed.out == table(result) + "\n"
    assert printed.err.splitlines()[0].startswith("compiling ")
    assert list(out.parent.iterdir()) == [out]
