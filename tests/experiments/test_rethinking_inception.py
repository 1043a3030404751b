"""The rows of "Rethinking": what each changes, optimizer and loss in float64, tables."""

import json
import sys
from dataclasses import fields, replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configured_norms import CONFIGURED, settings_of
from made_results import write_image_run

from bnjax.data import open_data
from bnjax.evidence.records import read_record
from bnjax.linen import BatchNorm
from bnjax.models import Logits
from bnjax.models.rethinking import TABLE_3
from bnjax.training.parallel import DataParallel
from experiments.harness.images.feed import Feed
from experiments.harness.images.programs import training_program
from experiments.rethinking_inception import sizes
from experiments.rethinking_inception.__main__ import main
from experiments.rethinking_inception.arms import ARMS, GROUPS, RethinkingArm
from experiments.rethinking_inception.config import PRESETS
from experiments.rethinking_inception.experiment import EXPERIMENT
from experiments.rethinking_inception.page import REPORT, changes_table, side_heads_table
from experiments.verify import verify

QUICK, PAPER = PRESETS["quick"], PRESETS["paper"]
SIZES = sizes.read_sizes(EXPERIMENT.results)


def arm(name, config=PAPER):
    return EXPERIMENT.arm(name, config)


def network(name, config=PAPER):
    return arm(name, config).model(config, classes=1000)


def changed(first, second):
    """Fields of the networks, and settings of training, in which two arms differ."""
    one, other = network(first), network(second)
    names = {item.name for item in fields(one)} - {"parent", "name"}
    differing = {name for name in names if getattr(one, name) != getattr(other, name)}
    training = {
        name
        for name in ("rule", "smoothed")
        if getattr(arm(first), name) != getattr(arm(second), name)
    }
    return differing - {"norm"} | training


@pytest.mark.parametrize(
    ("first", "second", "changes"),
    [
        ("inception_v2", "rmsprop", {"rule"}),
        ("rmsprop", "label_smoothing", {"smoothed"}),
        ("label_smoothing", "factorized_7x7", {"stem"}),
        ("factorized_7x7", "inception_v3", {"auxiliary"}),
        ("inception_v3", "half_resolution", {"stem_stride"}),
        ("inception_v3", "quarter_resolution", {"stem_stride"}),
        ("inception_v3", "linear_factors", {"linear_factors"}),
        ("bn_inception", "bn_inception_5x5", {"factorize_5x5"}),
        ("inception_v3", "factorized_3", {"factorized_size"}),
        ("inception_v3", "factorized_5", {"factorized_size"}),
        ("inception_v3", "pool_first", {"grid_reduction"}),
        ("inception_v3", "pool_last", {"grid_reduction"}),
        ("inception_v3", "no_side_head", {"auxiliary"}),
        ("inception_v3", "unsmoothed", {"smoothed"}),
        ("inception_v3", "momentum", {"rule"}),
    ],
)
def test_each_change_is_made_alone(first, second, changes):
    assert changed(first, second) == changes


@pytest.mark.parametrize("name", GROUPS["table3"])
def test_the_paper_s_preset_builds_the_rows_of_table_3(name):
    """Whose parameters and multiply-adds tests/models/test_inception_counts.py holds."""
    row, made = TABLE_3[arm(name).row], network(name)
    expected = row.build(norm=made.norm or "none")
    assert type(made) is type(expected)
    for item in fields(made):
        if item.name not in ("parent", "name"):
            assert getattr(made, item.name) == getattr(expected, item.name), item.name
    assert arm(name).image_size(PAPER) == row.side
    assert (made.norm is None) == (name == "googlenet")


@pytest.mark.parametrize("configured", CONFIGURED, ids=lambda each: each["averaging"])
@pytest.mark.parametrize("name", ["bn_googlenet", "bn_inception", "inception_v3"])
def test_normalization_is_as_configured(name, configured):
    """Seen red without each of the settings."""
    config = replace(PAPER, normalize_together=16, **configured)
    layer = network(name, config).norm(name="norm")
    assert type(layer) is BatchNorm
    assert settings_of(layer) == configured
    assert layer.batch == 16


def test_the_networks_of_table_2_are_the_paper_s():
    sizes = {name: arm(name).image_size(PAPER) for name in GROUPS["table2"]}
    assert list(sizes.values()) == [299, 151, 79]
    assert [network(name).stem_stride for name in sizes] == [8, 4, 2]


def test_the_size_of_a_network_leaves_side_heads_out():
    """Counted for the paper's table: 11,285,224 parameters, 2.033e9 multiply-adds."""
    size = arm("bn_inception").network_size(PAPER, classes=1000)
    assert size["parameters"] == 11_285_224
    assert size["multiply_adds"] == pytest.approx(2.033e9, rel=1e-3)
    assert SIZES["paper"]["bn_inception"] == {"image_size": 224} | size


@pytest.mark.slow
def test_the_committed_sizes_are_those_of_the_networks(tmp_path):
    sizes.main(["--out", str(tmp_path)])
    assert sizes.read_sizes(tmp_path) == SIZES


def test_resolutions_cost_nearly_the_same():
    """Of the paper's, those with 151 and 79 pixels: as the docstring of InceptionV3 has it."""
    full, half, quarter = (SIZES["paper"][name]["multiply_adds"] for name in GROUPS["table2"])
    assert half / full == pytest.approx(1, abs=0.002)
    assert quarter / full == pytest.approx(1 - 0.0615, abs=0.001)


def test_the_paper_s_numbers():
    assert PAPER.steps == round(100 * 1_281_167 / (50 * 32)) == 80_073
    assert PAPER.decay_every == pytest.approx(2 * PAPER.steps / 100, rel=1e-5)
    for name in ("googlenet", "inception_v2", "inception_v3"):
        expected = 0.0015 if name == "googlenet" else 0.045
        assert arm(name).first_rate(PAPER) == pytest.approx(expected)


def moved(name, gradients):
    """A kernel after steps by the arm's optimizer."""
    tx = arm(name, CONFIG).optimizer(CONFIG, 0.0)
    params = {"conv": {"kernel": jnp.float32([[0.5, -1.0]])}}
    state = arm(name, CONFIG).optimizer(CONFIG, 0.3).init(params)
    for gradient in gradients:
        updates, state = tx.update({"conv": {"kernel": jnp.float32(gradient)}}, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params["conv"]["kernel"]


CONFIG = replace(QUICK, l2=0.01, decay_every=2.0, decay_factor=0.5, arms=("bn_inception",))
GRADIENTS = np.array([[[3.0, -4.0]], [[0.2, 1.5]], [[-1.0, 0.1]]])


def test_rmsprop_is_tensorflow_s_and_clips():
    """Float64: the mean square starts at one, epsilon is inside the root, the norm is at most 2.

    Red without clipping, with epsilon outside of the root, or with the rate outside of momentum.
    """
    w, square, momentum = np.array([[0.5, -1.0]]), 1.0, 0.0
    for step, gradient in enumerate(GRADIENTS):
        g = gradient + 0.01 * w
        g = g * min(1, 2 / np.linalg.norm(g))
        square = 0.9 * square + 0.1 * g**2
        momentum = 0.9 * momentum + 0.3 * 0.5 ** (step // 2) * g / np.sqrt(square + 1)
        w = w - momentum
    np.testing.assert_allclose(moved("rmsprop", GRADIENTS), w, rtol=1e-6)


def test_momentum_neither_divides_nor_clips():
    w, momentum = np.array([[0.5, -1.0]]), 0.0
    for step, gradient in enumerate(GRADIENTS):
        momentum = 0.9 * momentum + gradient + 0.01 * w
        w = w - 0.3 * 0.5 ** (step // 2) * momentum
    np.testing.assert_allclose(moved("inception_v2", GRADIENTS), w, rtol=1e-6)


def test_kernels_are_he_s_and_side_heads_keep_theirs():
    """Red where a side head's kernels, of a hundredth, are drawn as large as the others."""
    params = {"conv": {"kernel": jnp.zeros((3, 3, 50, 64))}, "logits": {"kernel": jnp.ones((2, 2))}}
    params["auxiliary"] = {"hidden": {"kernel": jnp.full((1, 1, 8, 8), 0.01)}}
    drawn = arm("inception_v3").draw(params, jax.random.key(0))
    kernel = np.float64(drawn["conv"]["kernel"])
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 50)), rel=0.02)  # of 28,800 values
    assert abs(kernel.mean()) < 0.002
    for name in ("auxiliary", "logits"):
        assert jax.tree.all(jax.tree.map(jnp.array_equal, drawn[name], params[name]))


@pytest.mark.parametrize(
    ("name", "smoothing", "weights"),
    [
        ("googlenet", 0, (0.3, 0.3)),
        ("bn_inception", 0, ()),
        ("rmsprop", 0, (0.4,)),
        ("inception_v3", 0.1, (0.4,)),
        ("no_side_head", 0.1, ()),
    ],
)
def test_losses_are_smoothed_and_side_heads_added(name, smoothing, weights):
    """Float64, section 7: (1 - e) times the label's cross-entropy, e times the uniform one's."""
    rng = np.random.default_rng(0)
    heads, labels = rng.normal(size=(1 + len(weights), 5, 4)), np.array([0, 3, 1, 1, 2])
    logs = heads - np.log(np.exp(heads).sum(-1, keepdims=True))
    targets = (1 - smoothing) * np.eye(4)[labels] + smoothing / 4
    losses = -(targets * logs).sum((1, 2))
    main, *auxiliary = map(jnp.float32, heads)
    total, metrics = arm(name).objective(PAPER)(Logits(main, tuple(auxiliary)), jnp.asarray(labels))
    np.testing.assert_allclose(total, losses @ [1, *weights], rtol=1e-6)
    plain = -logs[0, np.arange(5), labels].sum()
    np.testing.assert_allclose(metrics.loss, plain, rtol=1e-6)


def test_an_arm_s_images_have_its_own_size():
    """In training, in evaluation, and in the compiled program; red where the configuration's is."""
    config = replace(
        PRESETS["tiny"], pipeline="streamed", arms=("half_resolution",), data="mnist5k"
    )
    (task, *_), one = EXPERIMENT.tasks_of(config), DataParallel("jit", devices=jax.devices()[:1])
    shapes = training_program(config, task.arm, one, classes=10).batch_shapes
    assert shapes[0].shape[2:] == (32, 32, 3)
    with Feed(task, open_data("mnist5k"), one, axis=1, workers=0) as feed:
        ((images, _),) = feed.training(0, 1)
        assert images.shape[2:] == (32, 32, 3)
        assert next(feed.validation()).images.shape[1:] == (32, 32, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image_size": 20},
            r"^image_size=20 of inception_v3: images of 20x20 are too small.*21x21 at least",
        ),
        (
            {"stem_stride": 4},
            r"^googlenet_size=24 of googlenet: images of 24x24 are too small for stem_stride=4",
        ),
        ({"arms": ("table2",)}, r"stem_stride=2 must be 4 or more for quarter_resolution"),
        ({"clip_norm": 0.0}, "clip_norm must be > 0"),
        ({"rmsprop_epsilon": 0.0}, "rmsprop_epsilon must be > 0"),
        ({"rmsprop_decay": 1.0}, r"rmsprop_decay must be in \[0, 1\)"),
        ({"unnormalized_factor": -1.0}, "unnormalized_factor must be > 0"),
        ({"decay_factor": 1.5}, r"decay_factor must be in \(0, 1\]"),
        ({"l2": -1.0}, "l2 must be >= 0"),
        ({"normalize_together": 5}, "normalize_together=5 must be 2 or more and divide the 32"),
        ({"arms": ("table4",)}, "unknown 'table4'.*, or from the words for several: table3,"),
    ],
)
def test_what_cannot_be_is_refused_before_compute(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(QUICK, **changes)


def test_an_arm_of_two_words_trains_once():
    config = replace(QUICK, arms=("figure2", "side_heads"))
    assert config.arms == ("inception_v3", "linear_factors", "no_side_head", "factorized_7x7")
    assert {name for names in GROUPS.values() for name in names} == {each.name for each in ARMS}
    assert not GROUPS.keys() & {each.name for each in ARMS}


def write_runs(out, name, seeds, every=10):
    """Runs that were right so often of 100 images, at step 0, every so many steps, and at 40."""
    network = {"parameters": 1_234, "multiply_adds": 56_789}
    options = {"settings": arm(name).settings(), "every": every, "network": network}
    for seed, correct in enumerate(seeds):
        write_image_run(out, name, seed, correct, **options)


def test_changes_are_paired_by_seed_and_stand_beside_the_paper_s(tmp_path):
    write_runs(
        tmp_path, "inception_v3", [[9, 20, 30, 40, 50], [9, 21, 33, 44, 55], [9, 9, 9, 9, 60]]
    )
    write_runs(
        tmp_path, "no_side_head", [[9, 20, 31, 41, 40], [9, 20, 31, 41, 40], [9, 9, 9, 9, 42]]
    )
    write_runs(tmp_path, "momentum", [[9, 20, 30, 40, 51], [9, 21, 33, 44, 54], [9, 9, 9, 9, 60]])
    runs = REPORT.load(tmp_path)
    _, _, side_head, rmsprop = changes_table(runs).splitlines()
    # Of 9, 14 and 18: mean 13.67, deviation 4.51; 4.302653 is Student's t of two degrees.
    mean, half = 41 / 3, 4.302653 * np.std([9, 14, 18], ddof=1) / np.sqrt(3)
    text = f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"
    assert side_head.endswith(f" | 3 | {text} | shown | no number |")
    assert "| 3 | +0.00 (-2.48 to +2.48) | not shown |" in rmsprop
    early, *_, late = side_heads_table(runs).splitlines()[2:]
    assert early.startswith("| 10 | +0.33 (")
    assert late.startswith("| 40 | +14.33 (")
    summary = REPORT.summarize(tmp_path)
    assert summary["arms"]["momentum"]["network"]["parameters"] == 1_234
    assert "| 1,234 | 56,789 | 21.2 | 5.6 | 4.8 |" in REPORT.arms_table(summary)


def test_the_untrained_network_and_one_evaluation_twice_are_no_quarters_of_training(tmp_path):
    """Red where a quarter without an evaluation has that of the quarter before."""
    write_runs(tmp_path, "inception_v3", [[9, 30, 50], [9, 31, 50]], every=20)
    write_runs(tmp_path, "no_side_head", [[9, 20, 40], [9, 20, 30]], every=20)
    _, _, *rows = side_heads_table(REPORT.load(tmp_path)).splitlines()
    assert [row.split(" (")[0] for row in rows] == ["| 20 | +10.50", "| 40 | +15.00"]


class Small(nn.Module):
    """Means of 6x6 pixels, normalization, and two dense layers: a classifier and a side head."""

    norm: type | None
    heads: int

    def check_size(self, height, width):
        assert (height, width) == (24, 24)

    @nn.compact
    def __call__(self, images, *, train):
        x = images.reshape(-1, 4, 6, 4, 6, 3).mean((2, 4)).reshape(-1, 48)
        x = nn.Dense(8, name="hidden")(x)
        if self.norm is not None:
            x = self.norm(use_running_average=not train, name="norm")(x)
        heads = [nn.Dense(10, name=f"auxiliary_{i}")(x) for i in range(self.heads)]
        return Logits(nn.Dense(10, name="logits")(nn.relu(x)), tuple(heads) if train else ())


def small_model(self, config, *, classes, axis_name=None):
    return Small(None if self.row == "googlenet" else BatchNorm, len(self.head_weights()))


@pytest.mark.slow
def test_the_command_says_how_large_networks_are_and_runs_can_be_verified(
    tmp_path, monkeypatch, capsys
):
    """A small network stands in for Inception, whose compilation takes minutes."""
    monkeypatch.setattr(RethinkingArm, "model", small_model)
    short = "--steps 4 --eval-every 2 --population-batches 2 --arms inception_v3"
    monkeypatch.setattr(sys, "argv", ["rethinking", *short.split(), "--out", str(tmp_path)])
    main()
    out = capsys.readouterr().out
    assert "| parameters | multiply-adds | paper: top-1 error, %" in out
    record = read_record(tmp_path / "inception_v3-s0")
    hidden = 4 * 4 * 3 * 8 + 8
    assert record["final"]["network"] == {
        "parameters": hidden + 2 * 8 + 90,
        "multiply_adds": 384 + 80,
    }
    assert json.loads((tmp_path / "summary.json").read_text())["arms"]["inception_v3"]["network"]
    verdict = verify(tmp_path / "inception_v3-s0")
    assert verdict.agrees
    assert verdict.bitwise
