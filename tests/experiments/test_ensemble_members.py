"""The six networks of section 4.2.3, with two Inception modules, the last, in the place of ten."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from bnjax.models import bn_inception
from bnjax.training.divergence import raise_if_diverged
from bnjax.training.parallel import DataParallel
from experiments.harness.arm import by_name
from experiments.harness.images.programs import programs_of
from experiments.imagenet_inception.arms import ARMS
from experiments.imagenet_inception.config import PRESETS

CONFIG = replace(
    PRESETS["quick"],
    image_size=9,
    width=1 / 64,
    stem="dense",
    stem_stride=2,
    batch_size=8,
    normalize_together=8,
    averaging="ema",
)
CHANGED = ("init_scale", "dropout", "per_activation")
ENSEMBLE = [f"ensemble_{number}" for number in range(1, 7)]
X30 = by_name(ARMS, "bn_x30")


def test_they_are_bn_x30_with_some_of_three_changes():
    """Larger initial weights; dropout of 5 or 10 %; per-activation normalization, 4.2.3."""
    unchanged = {name: getattr(X30, name) for name in CHANGED}
    assert unchanged == {"init_scale": 1, "dropout": 0, "per_activation": ()}
    members = [by_name(ARMS, name) for name in ENSEMBLE]
    same = dict.fromkeys(("name", "label"), "") | {"color": None}
    plain = [replace(member, **unchanged, **same) for member in members]
    assert plain == [replace(X30, **same)] * 6
    assert len({*members, X30}) == 7
    assert {member.dropout for member in members} == {0, 0.05, 0.1}
    assert {member.init_scale > 1 for member in members} == {False, True}
    assert min(member.init_scale for member in members) == 1
    assert {member.per_activation for member in members} == {(), ("5a", "5b")}


@pytest.fixture
def small_programs(monkeypatch):
    """Two branches of two modules, compiled in half the time: what it runs is little."""
    last = [row for row in bn_inception.FIGURE_5 if row.name in ("5a", "5b")]
    rows = [row._replace(conv1x1=0, project=0) for row in last]
    monkeypatch.setattr(bn_inception, "FIGURE_5", rows)
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1, 8, 9, 9, 3)).astype(np.uint8)
    return images, rng.integers(0, 10, (1, 8)).astype(np.int32)


def leaves(tree):
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in paths}


@pytest.mark.slow
@pytest.mark.parametrize("arm", ENSEMBLE)
def test_each_trains(small_programs, batch, arm):
    """Red if an arm does not compile, has other initial weights, or other normalization."""
    settings = by_name(ARMS, arm)
    parallel = DataParallel(devices=jax.devices()[:1])
    programs = programs_of(CONFIG, settings, parallel, classes=10)
    state = programs.init(np.int32(3), np.float32(settings.first_rate(CONFIG)))
    params = leaves(state.train.params)
    kernels = [leaf for leaf in params.values() if leaf.ndim == 4]
    normal = [leaf.ravel() / (2 / np.prod(leaf.shape[:3])) ** 0.5 for leaf in kernels]
    assert np.concatenate(normal).std() == pytest.approx(settings.init_scale, rel=0.1)
    for name, leaf in params.items():
        if name.endswith("['scale']"):
            own = any(f"inception_{module}" in name for module in settings.per_activation)
            assert leaf.ndim == (3 if own else 1), name
    losses = []
    for _ in range(8):
        state, metrics = programs.train(state, parallel.split(batch, axis=programs.axis))
        losses.append(float(metrics.loss) / int(metrics.examples))
    raise_if_diverged(state.train)
    assert losses[0] == pytest.approx(np.log(10), rel=0.5)
    assert losses[-1] < 0.8 * losses[0], losses
