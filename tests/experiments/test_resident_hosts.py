"""Two processes of four devices with the data on each are one run of eight devices."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from host_processes import run_two_hosts
from runs import Entries, inception_task
from small_networks import CONFIG, VIEWS, small_networks
from tolerances import PARALLEL, assert_close

from bnjax.data import open_data
from experiments.harness.images import resident
from experiments.harness.images.compute import ImageCompute
from experiments.harness.images.train import train


@pytest.mark.slow
def test_two_processes_train_on_resident_data_as_one(tmp_path, monkeypatch):
    """Red if a process takes the other's examples, keys of views, or test images."""
    first, second = run_two_hosts("two_hosts_resident.py", tmp_path)
    assert first == second
    assert first["devices"] == 8

    monkeypatch.setattr(resident, "loops", lambda parallel: True)
    task = inception_task(replace(CONFIG, pipeline="resident", **VIEWS), "bn_baseline")
    log = Entries()
    with small_networks():
        (alone,) = train(task, open_data("mnist5k"), ImageCompute(), log)
    for entry, wanted in zip(first["entries"], log.entries, strict=True):
        assert entry["step"] == wanted["step"]
        for part in ("train", "test"):
            assert entry[part]["examples"] == wanted[part]["examples"]
            np.testing.assert_allclose(entry[part]["loss"], wanted[part]["loss"], rtol=2e-5)
    own, other = (np.load(tmp_path / f"{index}.npz") for index in (0, 1))
    leaves = jax.tree.leaves(alone.weights)
    assert len(leaves) == len(own.files)
    for name, wanted in zip(own.files, leaves, strict=True):
        np.testing.assert_array_equal(own[name], other[name])
        assert_close(own[name], wanted, PARALLEL, name)
