"""What fields affect: identities of all committed records, shared programs, changed arms."""

import json
from dataclasses import dataclass, fields

import flax.linen as nn
import pytest

from bnjax.evidence.records import read_record
from bnjax.training.parallel import DataParallel
from experiments.harness import affects
from experiments.harness.affects import network, nothing, numbers, training, views
from experiments.harness.arm import Arm
from experiments.harness.experiment import identity
from experiments.harness.found import experiments
from experiments.harness.images.arm import ImageArm
from experiments.harness.images.config import ImageConfig
from experiments.harness.images.programs import programs_of, training_program
from experiments.harness.repetition import task_of

RECORDS = [
    pytest.param(experiment, path.parent, id=str(path.parent.relative_to(experiment.results)))
    for experiment in experiments()
    for path in sorted(experiment.results.rglob("record.json"))
]


@pytest.mark.parametrize("experiment", experiments(), ids=lambda experiment: experiment.name)
def test_every_field_says_what_it_affects(experiment):
    for kind in (experiment.config, *map(type, experiment.arms)):
        for item in fields(kind):
            assert affects.affected(item, kind) in affects.Affects.__args__, item.name


def test_every_experiment_has_committed_records():
    assert {param.values[0].name for param in RECORDS} == {each.name for each in experiments()}


@pytest.mark.parametrize(("experiment", "folder"), RECORDS)
def test_the_identity_of_a_committed_record_is_what_it_was(experiment, folder):
    """Red if a field's kind moves it into the identity or out of it, or a value is lost."""
    record = read_record(folder)
    task = task_of(experiment, record)

    class Data:
        sha256 = record["identity"]["data_sha256"]

    repeated = json.loads(json.dumps(identity(task, task.members[0], Data)))
    stated = record["identity"]
    known = {**repeated["config"], **stated["config"]}  # a record may be older than a field
    assert repeated | {"config": known} == stated | {"config": known}
    assert set(stated["config"]) <= set(repeated["config"])


def test_a_run_is_repeated_with_the_settings_of_its_record():
    """Red if they are today's of the arm's name: another network would be trained."""
    (param,) = [each for each in RECORDS if each.id == "bn_x5-s0"]
    experiment, folder = param.values
    record = read_record(folder)
    record["identity"]["settings"] |= {"activation": "sigmoid", "per_activation": ["5a"]}
    arm = task_of(experiment, record).arm
    assert (arm.activation, arm.per_activation) == ("sigmoid", ("5a",))


@dataclass(frozen=True)
class Config:
    width: float = network(1.0)
    momentum: float = training(0.9)
    rate: float = numbers(0.1)
    crop: str = views("none")
    dropout: float | None = affects.arm(None)
    max_norm: float = numbers(2.0)  # its name says "max", as that of no identity's field once could
    seeds: int = nothing(1)


@dataclass(frozen=True, kw_only=True)
class OneArm(Arm):
    dropout: float = training(0.4)
    depth: int = network(3)


def test_identities_and_programs_follow_from_what_fields_affect():
    config = Config(seeds=4)
    stated = {"width": 1.0, "momentum": 0.9, "rate": 0.1, "crop": "none", "max_norm": 2.0}
    assert affects.identity(config) == stated
    assert affects.programs(config) == {"width": 1.0, "momentum": 0.9}
    assert affects.names(Config, "arm", "nothing") == ["dropout", "seeds"]


def test_a_configuration_changes_the_settings_of_all_arms():
    one = OneArm(name="one", label="One")
    assert one.settings() == {"dropout": 0.4, "depth": 3}
    assert one.changed_by(Config()) == one
    assert one.changed_by(Config(dropout=0.0)).settings() == {"dropout": 0.0, "depth": 3}


@dataclass(frozen=True, kw_only=True)
class WronglyDeclared(ImageArm):
    """Its network reads a field that says that no program depends on it."""

    depth: int = numbers(1)

    def model(self, config, *, classes, axis_name=None):
        return nn.Dense(self.depth)


def test_programs_cannot_read_what_is_declared_to_be_no_matter_of_theirs():
    """Red if they get its default, with which all arms were one network."""
    arm = WronglyDeclared(name="deep", depth=3)
    assert arm.model(None, classes=10).features == 3
    with pytest.raises(AttributeError, match="depth"):
        training_program(ImageConfig(), arm, DataParallel("jit"), classes=10)
    with pytest.raises(AttributeError, match="depth"):
        programs_of(ImageConfig(), arm, DataParallel("jit"), classes=10)


def test_a_field_that_says_nothing_is_refused_by_name():
    @dataclass
    class Silent:
        depth: int = 3

    with pytest.raises(TypeError, match="depth does not say what it affects"):
        affects.identity(Silent())
