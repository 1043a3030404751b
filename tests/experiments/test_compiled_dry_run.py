"""The dry run: what is compiled and what is refused.

A small step stands in for the network, whose compilation takes minutes.
"""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from bnjax.compilers.topologies import MissingCompilerError
from bnjax.training.objectives import Metrics
from experiments.compiled import dry_run as module
from experiments.compiled.dry_run import dry_run, subcommand
from experiments.compiled.tables import dry_run_table
from experiments.harness.arm import by_name
from experiments.harness.images.programs import TrainingProgram, training_program
from experiments.imagenet_inception.arms import ARMS
from experiments.imagenet_inception.config import PRESETS
from experiments.imagenet_inception.experiment import EXPERIMENT
from experiments.rethinking_inception import __main__ as rethinking

X5 = by_name(ARMS, "bn_x5")
main = subcommand(EXPERIMENT, "bn_x5")
CONFIG = replace(
    PRESETS["quick"], arms=("bn_x5",), image_size=9, stem_stride=2, steps_per_dispatch=5
)
PIXELS = 9 * 9 * 3


def small_program(config, arm, parallel, *, classes, views=None):
    """A linear classifier in place of the network, with the same shapes around it."""
    assert config.steps_per_dispatch == 1

    def init(seed, learning_rate):
        return jnp.zeros((PIXELS, classes)) + learning_rate

    def loss(weights, images, labels):
        rows = images.reshape(-1, PIXELS).astype(jnp.float32)
        chosen = jax.nn.one_hot(labels.reshape(-1), classes)
        return -(jax.nn.log_softmax(rows @ weights) * chosen).mean()

    def step(weights, batch):
        return weights - jax.grad(loss)(weights, *batch), Metrics.zero()

    n = config.batch_size
    shapes = (
        jax.ShapeDtypeStruct((1, n, 9, 9, 3), jnp.uint8),
        jax.ShapeDtypeStruct((1, n), jnp.int32),
    )
    return TrainingProgram(init, step, shapes, 1)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(module, "training_program", small_program)


def test_each_chip_holds_the_state_and_its_own_images(small):
    """Red where the batch is not split, is that of another size, or the gradient stays local."""
    result = json.loads(json.dumps(dry_run(EXPERIMENT, CONFIG, ("cpu:2", "cpu:8"), per_chip=32)))
    weights = 4 * PIXELS * 10
    for row, devices in zip(result["rows"], (2, 8), strict=True):
        assert (row["arm"], row["platform"], row["devices"]) == ("bn_x5", "cpu", devices)
        assert row["batch_size"] == 32 * devices
        assert row["argument_bytes"] == weights + 32 * (PIXELS + 4)
        assert row["alias_bytes"] == weights  # the old state is given up
        assert row["collectives"] == {"all-reduce": {"count": 1, "bytes": weights}}
        assert 2 * 2 * 32 * PIXELS * 10 < row["flops"] < 3 * 2 * 32 * PIXELS * 10
        assert row["least_time"] is None
        assert row["refused"] is None
    assert result["config"]["arms"] == ["bn_x5"]
    assert result["environment"]["versions"]["jax"] == jax.__version__


def test_a_batch_may_be_split_instead(small):
    (row,) = dry_run(EXPERIMENT, replace(CONFIG, batch_size=64), ("cpu:4",), per_chip=None)["rows"]
    assert row["batch_size"] == 64
    assert row["argument_bytes"] == 4 * PIXELS * 10 + 16 * (PIXELS + 4)


def test_every_arm_is_compiled_for_every_topology(small):
    config = replace(CONFIG, arms=("bn_x5", "inception"))
    result = dry_run(EXPERIMENT, config, ("cpu:1", "cpu:2"))
    assert [(row["arm"], row["topology"]) for row in result["rows"]] == [
        ("bn_x5", "cpu:1"),
        ("bn_x5", "cpu:2"),
        ("inception", "cpu:1"),
        ("inception", "cpu:2"),
    ]
    assert [row["batch_size"] for row in result["rows"]] == [32, 64] * 2


@pytest.mark.slow
def test_what_runs_is_what_is_compiled(monkeypatch):
    """The arm's own network, step and data: state, images and labels as training hands them on."""
    monkeypatch.setattr(module, "compile_cases", lambda cases, *_, **__: cases)
    arms = ("bn_x5",)
    config = replace(PRESETS["quick"], data="imagenette", arms=arms, batch_size=64, width=1 / 32)
    (case,) = dry_run(EXPERIMENT, config, ("cpu:2",), how="pmap")
    assert case.parallel.how == "pmap"
    (case,) = dry_run(EXPERIMENT, config, ("cpu:2",), per_chip=None)
    assert case.parallel.devices == list(case.topology.devices)
    step = case.make()
    program = training_program(config, X5, case.parallel, classes=10)
    assert step.replicated == jax.eval_shape(program.init, jnp.int32(0), jnp.float32(0))
    images, labels = step.batch
    assert (images.shape, images.dtype) == ((1, 64, 32, 32, 3), jnp.uint8)
    assert (labels.shape, labels.dtype) == ((1, 64), jnp.int32)
    assert (step.axis, step.donate) == (1, True)
    assert jax.eval_shape(step.function, step.replicated, step.batch)[0] == step.replicated


@pytest.mark.slow
def test_the_network_normalizes_without_collectives_where_groups_stay_on_a_chip(short_network):
    """The gradients' are the only ones, few and together; one Inception module of ten."""
    config = replace(PRESETS["quick"], arms=("bn_x5",), width=1 / 32, normalize_together=4)
    (row,) = dry_run(EXPERIMENT, config, ("cpu:2",), per_chip=4)["rows"]
    (sums,) = row["collectives"].values()
    parameters = 4 * sum(
        leaf.size
        for leaf in jax.tree.leaves(
            jax.eval_shape(
                training_program(
                    replace(config, batch_size=8),
                    by_name(ARMS, "bn_x5"),
                    module.DataParallel(),
                    classes=10,
                ).init,
                jnp.int32(0),
                jnp.float32(0),
            ).train.params
        )
    )
    assert list(row["collectives"]) == ["all-reduce"]
    assert sums["count"] <= 4
    assert parameters <= sums["bytes"] <= 1.05 * parameters + 1_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--topology", "v9:2x2"], r"topology: unknown chip 'v9' in 'v9:2x2'; choose from v4, v5e"),
        (["--topology", "v5e:3x3"], r"there is no slice 'v5e:3x3'; choose from 1x1"),
        (["--topology", "cpu"], "'cpu' has no size"),
        (["--topology", "cpu:2", "cpu:2"], "topology must name one or more, each once"),
        (["--topology", "cpu:2", "--per-chip", "0"], "per_chip must be in 1 .. 65536"),
        (
            ["--topology", "cpu:3", "--per-chip", "None"],
            r"cpu:3: batch_size=32 cannot be split evenly over 3 devices.*--per-chip 32",
        ),
        (["--topology", "cpu:2", "--per-chip", "3"], "normalize_together=32 must be 2 or more"),
        (["--topology", "cpu:2", "--data", "folder:photos"], "classes .* not known.*imagenet2012"),
        (["--topology", "cpu:2", "--out", "."], r"--out \. is a folder: give a file"),
        (["--topology", "cpu:2", "--out", "gs://b/dry.json"], "--out must be a local folder"),
    ],
)
def test_bad_input_is_refused_before_anything_is_compiled(arguments, said, monkeypatch):
    monkeypatch.setattr(module, "compile_cases", None)
    with pytest.raises(SystemExit, match=f"error: .*{said}"):
        main(["--preset", "quick", *arguments])


def test_a_missing_compiler_names_what_installs_it(no_libtpu, monkeypatch):
    monkeypatch.setattr(module, "compile_cases", None)
    with pytest.raises(SystemExit, match=r"needs libtpu.*pip install -c .* -e '\.\[tpu-aot\]'"):
        main(["--topology", "cpu:1", "v5e:4x4"])
    with pytest.raises(MissingCompilerError):
        dry_run(EXPERIMENT, CONFIG, ("v5e:4x4",))


def test_the_command_writes_its_result_and_prints_its_table(small, tmp_path, capsys):
    out = tmp_path / "new" / "result.json"
    options = [
        "--preset",
        "quick",
        "--image-size",
        "9",
        "--stem-stride",
        "2",
        "--topology",
        "cpu:2",
    ]
    main([*options, "--arm=bn_x30", "--out", str(out)])
    result = json.loads(out.read_text())
    assert [row["arm"] for row in result["rows"]] == ["bn_x30"]
    assert capsys.readouterr().out == dry_run_table(result, ARMS) + "\n"
    assert list(out.parent.iterdir()) == [out]


def test_the_paper_is_where_the_command_begins(monkeypatch):
    seen = []

    def keep(experiment, config, names, *, per_chip, **_):
        seen.append((config, names, per_chip))
        raise MissingCompilerError("enough")

    monkeypatch.setattr(module, "dry_run", keep)
    with pytest.raises(SystemExit):
        main([])
    config, names, per_chip = seen[0]
    assert config == replace(PRESETS["paper"], arms=("bn_x5",))
    assert (names, per_chip) == (("v5e:2x4",), 32)


def test_rows_have_the_pixels_of_their_arms(monkeypatch, capsys):
    """Of another experiment, by its command; red where all arms have those of the configuration."""
    monkeypatch.setattr(module, "training_program", small_program)
    small = "--preset quick --image-size 24 --googlenet-size 9 --stem-stride 1 --topology cpu:2"
    monkeypatch.setattr("sys.argv", ["rethinking", "dry-run", *small.split(), "--arm", "googlenet"])
    rethinking.main()
    printed = capsys.readouterr().out
    assert printed.startswith("**GoogLeNet**")
    assert "One training step at 9 pixels" in printed
    assert "The paper's steps" not in printed
