"""What the arms of the ImageNet experiment differ in, and GoogLeNet's side heads in training."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configured_norms import CONFIGURED, settings_of

from bnjax.linen import BatchNorm
from bnjax.models import Logits, apply_train
from bnjax.training.parallel import DataParallel
from bnjax.training.updates import step_keys
from experiments.harness.images.programs import logits_of, training_program
from experiments.harness.runs import run_name
from experiments.imagenet_inception.arms import ARMS, FIVE, GROUPS
from experiments.imagenet_inception.config import PRESETS
from experiments.imagenet_inception.experiment import EXPERIMENT

QUICK = PRESETS["quick"]
CHANGES = (
    *("learning_rate_factor", "dropout", "l2", "decay_speed"),
    *("local_response_norm", "shuffle", "photometric"),
)


def arm(name, **changes):
    return EXPERIMENT.arm(name, replace(QUICK, **changes))


def differing(first, second):
    """Settings in which two arms differ; how long they train is among them."""
    names = (*arm(first).settings(), "accelerated")
    return {n for n in names if getattr(arm(first), n) != getattr(arm(second), n)}


@pytest.mark.parametrize("setting", CHANGES)
def test_each_change_is_made_alone_and_left_out_alone(setting):
    assert differing(f"alone_{setting}", "bn_baseline") == {setting}
    assert differing(f"left_out_{setting}", "bn_x5") == {setting}
    values = [getattr(arm(name), setting) for name in ("bn_x5", "bn_baseline")]
    assert [getattr(arm(f"{kind}_{setting}"), setting) for kind in ("alone", "left_out")] == values


@pytest.mark.parametrize(
    ("plain", "twin"),
    [
        ("inception", "bn_baseline"),
        ("recipe_x1", "left_out_learning_rate_factor"),
        ("recipe_x5", "bn_x5"),
        ("recipe_x30", "bn_x30"),
        ("googlenet", "bn_googlenet"),
    ],
)
def test_controls_differ_from_their_twins_in_normalization_alone(plain, twin):
    assert differing(plain, twin) == {"normalized"}
    assert type(arm(plain)) is type(arm(twin))


def test_the_sigmoid_network_that_the_paper_could_not_train():
    assert differing("inception_sigmoid", "inception") == {"activation"}


def test_normalization_and_activation_are_settings_like_the_changes():
    assert arm("bn_x5", normalized=False).settings() == arm("recipe_x5").settings()
    assert arm("inception", activation="sigmoid").settings() == arm("inception_sigmoid").settings()
    assert arm("inception", normalized=True).settings() == arm("bn_baseline").settings()


@pytest.mark.parametrize("configured", CONFIGURED, ids=lambda each: each["averaging"])
@pytest.mark.parametrize("name", ["bn_baseline", "bn_googlenet"])
def test_normalization_is_as_configured(name, configured):
    """Seen red without each of the settings."""
    config = replace(QUICK, normalize_together=8, **configured)
    layer = arm(name).model(config, classes=10).norm(name="norm")
    assert type(layer) is BatchNorm
    assert settings_of(layer) == configured
    assert layer.batch == 8


def test_a_word_stands_for_its_arms():
    config = replace(QUICK, arms=("recipes", "alone", "bn_x5"))
    recipes = ("recipe_x1", "recipe_x5", "recipe_x30")
    assert config.arms == (*recipes, *(f"alone_{name}" for name in CHANGES), "bn_x5")
    assert replace(QUICK, arms=("five",)).arms == FIVE == QUICK.arms
    assert not GROUPS.keys() & {each.name for each in ARMS}
    with pytest.raises(ValueError, match=r"each once, got bn_x5, inception, .*bn_x5"):
        EXPERIMENT.tasks_of(replace(QUICK, arms=("bn_x5", "five")))


def test_a_sweep_has_a_run_of_each_arm_seed_and_rate():
    """The arms' factors are on its rates."""
    tasks = EXPERIMENT.tasks_of(replace(QUICK, arms=("inception", "bn_x5"), rates=(0.002, 0.04)))
    named = {run_name(task, *task.members): task.arm.first_rate(task.config) for task in tasks}
    assert named == pytest.approx(
        {
            "sweep/inception-lr0.002-s0": 0.002,
            "sweep/inception-lr0.04-s0": 0.04,
            "sweep/bn_x5-lr0.002-s0": 0.01,
            "sweep/bn_x5-lr0.04-s0": 0.2,
        }
    )
    assert [task.schedule.steps for task in tasks] == [QUICK.steps] * 2 + [150] * 2


def test_arms_that_are_drawn_can_be_told_apart():
    """Controls have the colour of their twins, dotted."""
    looks = [(each.color, each.line) for each in ARMS if each.color]
    assert len(set(looks)) == len(looks)
    for rate in ("x5", "x30"):
        assert (arm(f"recipe_{rate}").color, arm(f"recipe_{rate}").line) == (
            arm(f"bn_{rate}").color,
            ":",
        )


def test_side_heads_need_more_positions():
    with pytest.raises(ValueError, match=r"image_size=32 of googlenet: .*needs 9x9.*33x33"):
        replace(QUICK, arms=("inception", "googlenet"))


def cross_entropy(logits, labels):
    """Summed, in float64; and its gradient by the logits."""
    logits = np.float64(logits)
    e = np.exp(logits - logits.max(1, keepdims=True))
    p, at = e / e.sum(1, keepdims=True), np.arange(len(labels))
    loss = -np.log(p[at, labels]).sum()
    p[at, labels] -= 1
    return loss, p


def test_the_side_heads_losses_are_added():
    """Red if they are left out, or count as much as the classifier's."""
    rng = np.random.default_rng(0)
    heads, labels = rng.normal(size=(3, 5, 4)).astype(np.float32), np.array([0, 3, 1, 1, 2])
    outputs = Logits(jnp.asarray(heads[0]), tuple(map(jnp.asarray, heads[1:])))
    total, metrics = arm("googlenet").objective(QUICK)(outputs, jnp.asarray(labels))
    main, first, second = (cross_entropy(head, labels)[0] for head in heads)
    # Means of five logarithms in float32: some roundings of 6e-8.
    np.testing.assert_allclose(total, main + 0.3 * (first + second), rtol=1e-6)
    np.testing.assert_allclose(metrics.loss, main, rtol=1e-6)


@pytest.mark.slow
def test_a_step_trains_the_side_heads_with_their_weight():
    """A head's last bias, zero before, moves by -rate * weight * mean(p - onehot)."""
    rate = 0.5
    config = replace(
        QUICK, image_size=33, width=0.0625, batch_size=4, normalize_together=4, dropout=0.0
    )
    chosen = EXPERIMENT.arm("googlenet", config)
    one = DataParallel("jit", devices=jax.devices()[:1])
    program = training_program(config, chosen, one, classes=4)
    state = jax.jit(program.init)(np.int32(0), np.float32(rate))
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, program.batch_shapes[0].shape, dtype=np.uint8)
    labels = np.array([0, 3, 1, 1], np.int32)
    model = chosen.model(config, classes=4)
    variables = state.train.variables
    unit = jnp.asarray(images[0] / np.float32(127.5) - 1)
    outputs, _ = jax.jit(partial(apply_train, model))(variables, unit, *step_keys(state.train))
    after, metrics = jax.jit(program.step)(state, (images, labels[None]))
    for layers, weight, logits in (
        (("logits",), 1.0, outputs.main),
        (("auxiliary_4a", "logits"), 0.3, outputs.auxiliary[0]),
        (("auxiliary_4d", "logits"), 0.3, outputs.auxiliary[1]),
    ):
        bias = after.train.params
        for layer in layers:
            bias = bias[layer]
        gradient = cross_entropy(logits, labels)[1].mean(0)
        # Two programs of float32, whose logits differ in their last digits.
        np.testing.assert_allclose(bias["bias"], -rate * weight * gradient, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(metrics.loss, cross_entropy(outputs.main, labels)[0], rtol=1e-4)
    logits = jax.eval_shape(partial(logits_of, model), variables, images[0])
    assert logits.shape == (4, 4)
