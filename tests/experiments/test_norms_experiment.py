"""The arms of the third experiment differ in their normalization alone."""

from dataclasses import fields, replace

import flax.linen as nn
import pytest
from configured_norms import CONFIGURED, settings_of

from bnjax.linen import BatchNorm
from experiments.norms.experiment import ARMS, EXPERIMENT

CONFIG = EXPERIMENT.presets["cifar"]
MADE = {
    "none": None,
    "batch": (BatchNorm, {"batch": "all"}),
    "ghost": (BatchNorm, {"batch": 8}),
    "group": (nn.GroupNorm, {"num_groups": 4}),
    "layer": (nn.LayerNorm, {}),
}


@pytest.mark.parametrize("configured", CONFIGURED, ids=lambda each: each["averaging"])
@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_each_network_has_its_normalization(arm, configured):
    """Seen red without each of the settings."""
    model = arm.model(replace(CONFIG, **configured), classes=10, axis_name="batch")
    if MADE[arm.name] is None:
        assert model.norm is None
        return
    kind, stated = MADE[arm.name]
    layer = model.norm(name="norm")
    assert type(layer) is kind
    stated = stated | {"epsilon": configured["epsilon"]}
    if kind is BatchNorm:
        assert settings_of(layer) == configured
        stated |= {"axis_name": "batch"}
    assert {name: getattr(layer, name) for name in stated} == stated


def test_nothing_but_the_normalization_differs():
    networks = [arm.model(CONFIG, classes=10) for arm in ARMS]
    for item in fields(networks[0]):
        if item.name not in ("norm", "parent", "name"):
            assert len({getattr(network, item.name) for network in networks}) == 1, item.name
    assert {name for arm in ARMS for name in arm.settings()} == {"norm"}


def test_the_schedules_of_all_arms_are_one():
    made = EXPERIMENT.tasks_of(CONFIG)
    assert len(made) == 3 * len(ARMS)
    assert len({task.schedule for task in made}) == 1
    assert {arm.first_rate(CONFIG) for arm in ARMS} == {CONFIG.learning_rate}
