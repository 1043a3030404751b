"""The memory of whole networks: what is written, and what its table says.

With one Inception module of ten: compiling the whole network takes a minute.
"""

import json
import sys

import jax
import pytest

from bnjax.models import bn_inception
from bnjax.training.program_cost import DoesNotFitError
from experiments.benchmarks import networks_memory
from experiments.benchmarks.__main__ import main


@pytest.fixture(autouse=True)
def _short_network(monkeypatch):
    monkeypatch.setattr(bn_inception, "FIGURE_5", bn_inception.FIGURE_5[2:3])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("networks_memory --networks lenet", "networks: unknown 'lenet'; choose from bn_incep"),
        ("networks_memory --batch-sizes 0", "batch_sizes must be >= 1, got 0"),
        ("networks_memory --batch-sizes 8 8", "batch_sizes must be given, each once"),
        ("networks_memory --topologies v9:1", "unknown chip 'v9'"),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong(monkeypatch, capsys, argv, said):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, argv)
    assert stop.value.code != 0
    assert said in f"{stop.value.code} {capsys.readouterr().err}"


@pytest.mark.slow
def test_memory_by_batch_of_a_whole_step(monkeypatch):
    """A larger batch takes more; compiled for CPU devices, which every machine has."""
    config = networks_memory.Config(("bn_inception",), (1, 2), ("cpu:1",))
    monkeypatch.setitem(networks_memory.NETWORKS, "bn_inception", small_step)
    with jax.numpy_dtype_promotion("standard"):
        result = json.loads(json.dumps(networks_memory.measure(config)))
    one, two = result["rows"]
    assert (one["batch_size"], two["batch_size"]) == (1, 2)
    assert two["peak_bytes"] > one["peak_bytes"] > one["argument_bytes"]
    line = networks_memory.table(result).splitlines()[2]
    assert line.startswith("| BN-Inception, 224x224 | cpu:1 | 0.")


def small_step(remat, examples):
    """The real one at an eighth of the widths, for 64x64 pixels."""
    model = bn_inception.BNInception(norm=networks_memory._NORM, width=0.125, remat=remat)
    return networks_memory.training_step(
        model, networks_memory.momentum_sgd(0.1), (64, 64, 3), examples
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", networks_memory.NETWORKS)
def test_the_steps_are_whole(name):
    """State in, state out: statistics of all layers, side heads and optimizer included."""
    program = networks_memory.NETWORKS[name](False, 2)
    state, metrics = jax.eval_shape(program.function, program.shared, program.split)
    assert jax.tree.structure(state) == jax.tree.structure(program.shared)
    assert ("auxiliary" in state.batch_stats) == (name == "inception_v3")
    assert metrics.loss.shape == ()


@pytest.mark.parametrize(
    ("changed", "again"), [({}, 1), ({"dirty": True}, 2), ({"commit": "b"}, 2)]
)
def test_a_run_that_was_cut_short_goes_on(monkeypatch, tmp_path, changed, again):
    """After what it has done, if the code is the same; the file goes when all is done."""
    git = {"commit": "a", "dirty": False}
    compiled = []

    def compile_(make, size, topology):
        compiled.append(size)
        if len(compiled) == 2:
            raise KeyboardInterrupt
        raise DoesNotFitError("the program does not fit")

    monkeypatch.setattr(networks_memory, "environment", lambda: {"git": git})
    monkeypatch.setattr(networks_memory, "compile_data_parallel", compile_)
    config = networks_memory.Config(("bn_inception",), (32, 64), ("cpu:1",))
    keep = tmp_path / "rows.tmp"
    with pytest.raises(KeyboardInterrupt):
        networks_memory.measure(config, keep)
    git = git | changed
    result = networks_memory.measure(config, keep)
    assert [row["batch_size"] for row in result["rows"]] == [32, 64]
    assert len(compiled) == 2 + again
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_is_a_result(monkeypatch):
    def refuse(make, size, topology):
        raise DoesNotFitError("the program does not fit")

    monkeypatch.setattr(networks_memory, "compile_data_parallel", refuse)
    result = networks_memory.measure(networks_memory.Config(("inception_v3",), (256,), ("cpu:2",)))
    assert result["rows"][0]["refused"] == "the program does not fit"
    assert "| Inception-v3, 299x299 | cpu:2 | does not fit |" in networks_memory.table(result)


def run(monkeypatch, argv: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *argv.split()])
    main()
