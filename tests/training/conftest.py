"""A directory of checkpoints, made once."""

import shutil

import pytest
from made_checkpoints import CONFIG, make_state

from bnjax.training.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A directory with steps 1 and 2; copy it before damaging it."""
    directory = tmp_path_factory.mktemp("run")
    with Checkpoints(directory, config=CONFIG) as checkpoints:
        checkpoints.save(1, make_state(1))
        checkpoints.save(2, make_state(2))
    return directory


@pytest.fixture
def run(two_steps, tmp_path):
    return shutil.copytree(two_steps, tmp_path / "run")
