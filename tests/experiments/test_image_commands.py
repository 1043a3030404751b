"""The commands of experiments on images: each flag reaches its field, and --help has them all."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from experiments.harness.images.compute import ImageCompute
from experiments.harness.main import parse
from experiments.imagenet_inception.experiment import EXPERIMENT as INCEPTION
from experiments.norms.experiment import EXPERIMENT as NORMS
from experiments.rethinking_inception.experiment import EXPERIMENT as RETHINKING

COMPUTE = {
    "--parallel pmap": {"parallel": "pmap"},
    "--workers 3": {"workers": 3},
    "--profile there": {"profile": Path("there")},
    "--coordinator here:1 --process-count 4 --process-index 2": {
        "coordinator": "here:1",
        "process_count": 4,
        "process_index": 2,
    },
    "--stop-after 1.5h": {"stop_after": "1.5h"},
    "--tensorboard": {"tensorboard": True},
}
NO_FLAGS = {"device_count", "started"}


@pytest.mark.parametrize("words", COMPUTE)
def test_flags_of_the_machine_reach_their_fields(words):
    assert parse(INCEPTION, shlex.split(words)).how == ImageCompute(**COMPUTE[words])


def test_all_flags_of_the_machine_are_tried():
    tried = {name for given in COMPUTE.values() for name in given}
    assert tried == {field.name for field in fields(ImageCompute)} - NO_FLAGS


@pytest.mark.parametrize("experiment", [INCEPTION, NORMS, RETHINKING], ids=lambda e: e.name)
def test_help_names_every_field(experiment, capsys):
    with pytest.raises(SystemExit, match="0"):
        parse(experiment, ["--help"])
    named = set(re.findall(r"--([a-z0-9-]+)", capsys.readouterr().out))
    known = {field.name for kind in (experiment.config, ImageCompute) for field in fields(kind)}
    known |= {"preset", "out", "resume", "data_dir"}
    assert {name.replace("_", "-") for name in known - NO_FLAGS} <= named
