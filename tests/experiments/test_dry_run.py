"""The dry run: what is compiled, what is refused, and its table. A small step stands in for the
network, whose compilation takes minutes."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from bnjax.compilers import topologies
from bnjax.compilers.cost import DoesNotFitError
from bnjax.compilers.topologies import MissingCompilerError
from bnjax.training.objectives import Metrics
from experiments.imagenet_inception import dry_run as module
from experiments.imagenet_inception.config import PRESETS
from experiments.imagenet_inception.dry_run import compile_step, dry_run, main
from experiments.imagenet_inception.dry_run_table import table
from experiments.imagenet_inception.programs import TrainingProgram, training_program

CONFIG = replace(
    PRESETS["quick"], arms=("bn_x5",), image_size=9, stem_stride=2, steps_per_dispatch=5
)
PIXELS = 9 * 9 * 3


def small_program(config, arm, parallel, *, classes):
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
    result = json.loads(json.dumps(dry_run(CONFIG, ("cpu:2", "cpu:8"), per_chip=32)))
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
    (row,) = dry_run(replace(CONFIG, batch_size=64), ("cpu:4",), per_chip=None)["rows"]
    assert row["batch_size"] == 64
    assert row["argument_bytes"] == 4 * PIXELS * 10 + 16 * (PIXELS + 4)


def test_every_arm_is_compiled_for_every_topology(small):
    seen = []
    config = replace(CONFIG, arms=("bn_x5", "inception"))
    result = dry_run(config, ("cpu:1", "cpu:2"), progress=seen.append)
    assert [(row["arm"], row["topology"]) for row in result["rows"]] == [
        ("bn_x5", "cpu:1"),
        ("bn_x5", "cpu:2"),
        ("inception", "cpu:1"),
        ("inception", "cpu:2"),
    ]
    assert seen[1] == "compiling bn_x5 for cpu:2, a batch of 64"


def test_what_runs_is_what_is_compiled(monkeypatch):
    """The arm's own network, step and data: state, images and labels as training hands them on."""
    given = {}

    def keep(program, topology, state, batch):
        given.update(program=program, state=state, batch=batch)
        raise DoesNotFitError("seen")

    monkeypatch.setattr(module, "compile_program", keep)
    topology = topologies.find_topology("cpu:2")
    parallel = module.DataParallel("jit", devices=topology.devices)
    config = replace(PRESETS["quick"], data="imagenette", batch_size=64, width=1 / 32)
    with pytest.raises(DoesNotFitError, match="seen"):
        compile_step(config, "bn_x5", topology, parallel)
    program = training_program(config, "bn_x5", parallel, classes=10)
    state = jax.eval_shape(program.init, jnp.int32(0), jnp.float32(0))
    assert jax.tree.structure(given["state"]) == jax.tree.structure(state)
    assert [leaf.shape for leaf in jax.tree.leaves(given["state"])] == [
        leaf.shape for leaf in jax.tree.leaves(state)
    ]
    images, labels = given["batch"]
    assert (images.shape, images.dtype) == ((1, 64, 32, 32, 3), jnp.uint8)
    assert (labels.shape, labels.dtype) == ((1, 64), jnp.int32)
    assert images.sharding.shard_shape(images.shape) == (1, 32, 32, 32, 3)


@pytest.mark.slow
def test_the_network_normalizes_without_collectives_where_groups_stay_on_a_chip():
    """The gradients' are the only ones, few and together."""
    config = replace(PRESETS["quick"], arms=("bn_x5",), width=1 / 32, normalize_together=4)
    (row,) = dry_run(config, ("cpu:2",), per_chip=4)["rows"]
    (sums,) = row["collectives"].values()
    parameters = 4 * sum(
        leaf.size
        for leaf in jax.tree.leaves(
            jax.eval_shape(
                training_program(
                    replace(config, batch_size=8), "bn_x5", module.DataParallel(), classes=10
                ).init,
                jnp.int32(0),
                jnp.float32(0),
            ).train.params
        )
    )
    assert list(row["collectives"]) == ["all-reduce"]
    assert sums["count"] <= 4
    assert parameters <= sums["bytes"] <= 1.05 * parameters + 1_000


def test_a_program_that_does_not_fit_is_a_row(monkeypatch):
    def refuse(*_):
        raise DoesNotFitError("the program does not fit cpu:1: 20 GB.")

    monkeypatch.setattr(module, "compile_step", refuse)
    result = dry_run(CONFIG, ("cpu:1", "cpu:2"))
    assert [row["refused"] for row in result["rows"]] == [
        "the program does not fit cpu:1: 20 GB."
    ] * 2


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
    monkeypatch.setattr(module, "compile_step", None)
    with pytest.raises(SystemExit, match=f"error: .*{said}"):
        main(["--preset", "quick", *arguments])


def test_a_missing_compiler_names_what_installs_it(monkeypatch):
    def describe(**_):
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology.")

    monkeypatch.setattr(topologies.jax_topologies, "get_topology_desc", describe)
    monkeypatch.setattr(module, "compile_step", None)
    with pytest.raises(SystemExit, match=r"needs libtpu.*pip install 'bnjax\[tpu-aot\]'"):
        main(["--topology", "cpu:1", "v5e:4x4"])
    with pytest.raises(MissingCompilerError):
        dry_run(CONFIG, ("v5e:4x4",))


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
    assert capsys.readouterr().out == table(result) + "\n"
    assert list(out.parent.iterdir()) == [out]


def test_the_paper_is_where_the_command_begins(monkeypatch):
    seen = []

    def keep(config, names, **options):
        seen.append((config, names, options["per_chip"]))
        raise ValueError("enough")

    monkeypatch.setattr(module, "dry_run", keep)
    with pytest.raises(SystemExit):
        main([])
    config, names, per_chip = seen[0]
    assert config == replace(PRESETS["paper"], arms=("bn_x5",))
    assert (names, per_chip) == (("v5e:2x4",), 32)


def row(topology, devices, **changes):
    """A chip that takes 20 ms a step, 16 of them for memory and 4 for its links."""
    return {
        "arm": "bn_x5",
        "topology": topology,
        "platform": "tpu",
        "devices": devices,
        "batch_size": 32 * devices,
        "memory_bytes": 17 * 10**9,
        "refused": None,
        "peak_bytes": 2_345_000_000,
        "fits": True,
        "flops": 0.4e12,
        "bytes_accessed": 13.1e9,
        "seconds": 0.018,
        "collectives": {
            "all-reduce": {"count": 2, "bytes": 45_000_000},
            "all-gather": {"count": 1, "bytes": 1_000_000},
        },
        "least_time": {"products": 0.002, "memory": 0.016, "exchange": 0.004, "seconds": 0.02},
        **changes,
    }


MADE = {
    "config": {
        "image_size": 224,
        "width": 1.0,
        "compute": "bfloat16",
        "normalize_together": 32,
        "remat": False,
        "micro_batches": 1,
    },
    "parallel": "jit",
    "environment": {"python": "3.11.7", "versions": {"jax": "1"}},
    "compilers": {"libtpu": "2"},
    "rows": [
        row("v5e:2x4", 8),
        row("v5e:1x1", 1, refused="no room", peak_bytes=None, least_time=None),
        row("h100:8", 8, platform="cuda", fits=False, peak_bytes=90e9, seconds=None),
        row("cpu:2", 2, platform="cpu", memory_bytes=8 * 10**9, least_time=None),
    ],
}


def test_the_table_shows_what_a_step_takes():
    lines = table(MADE).splitlines()
    assert lines[0] == "**BN-x5**"
    assert lines[4:8] == [
        "| v5e:2x4 | 256 | 2.35, fits 17.00 GB | 0.400 | 13.10 | 3 (46.0) |",
        "| v5e:1x1 | 32 | does not fit 17.00 GB |  |  |  |",
        "| h100:8 | 256 | 90.00, does not fit 17.00 GB | 0.400 | 13.10 | 3 (46.0) |",
        "| cpu:2 | 64 | 2.35, fits 8.00 GB | 0.400 | 13.10 | 3 (46.0) |",
    ]


def test_a_small_network_has_small_units():
    small = row("cpu:1", 1, peak_bytes=41_230, flops=3.4e6, bytes_accessed=51.0e3, collectives={})
    lines = table({**MADE, "rows": [small | {"least_time": None}]}).splitlines()
    assert lines[2].split(" | ")[2:4] == ["peak memory of a chip, kB", "MFLOP on a chip"]
    assert lines[4] == "| cpu:1 | 32 | 41.23, fits 17.00 GB | 3.400 | 51.00 | 0 (0.0) |"


def test_the_table_shows_the_time_to_the_papers_accuracy():
    """2.1 million steps of 20 ms; of 256 images, an eighth of them see as many images."""
    lines = table(MADE).splitlines()
    hours, images = 2.1e6 * 0.02 / 3600, 2.1e6 / 8 * 0.02 / 3600
    assert f"{hours:.2f} {images:.2f}" == "11.67 1.46"
    assert lines[11:13] == [
        "| v5e:2x4 | 2.00 | 16.00 | 4.00 | 20.00 | 18.00 | 12,800 | 11.67 | 1.46 |",
        "| h100:8 | 2.00 | 16.00 | 4.00 | 20.00 |  | 12,800 | 11.67 | 1.46 |",
    ]
    assert lines[13] == ""  # a CPU has no stated rates, and what was refused has no time
    notes = [line for line in lines if line.startswith("- ")]
    assert notes[0] == (
        "- One training step at 224 pixels, width 1, bfloat16 activations, normalization over "
        "groups of 32, `jit` over all chips."
    )
    assert "- BN-x5, v5e:1x1: no room" in notes
    assert notes[-1] == "- Python 3.11.7, jax 1, libtpu 2."


def test_an_arm_without_such_an_accuracy_has_no_hours():
    sigmoid = {**MADE, "rows": [row("v5e:2x4", 8, arm="bn_x5_sigmoid")]}
    assert "| 12,800 |  |  |" in table(sigmoid)
