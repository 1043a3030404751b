"""Training with the data on the devices: the numbers are those of streamed views."""

import signal
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from marks import slow
from mnist_commands import assert_same_runs
from runs import Entries, inception_task
from small_networks import CONFIG, VIEWS, small_networks
from tolerances import PARALLEL, assert_trees_close

from bnjax.data import DataError, DataSet, open_data
from bnjax.data.data_set import Example
from bnjax.training.loop import Interrupted
from bnjax.training.parallel import DataParallel
from experiments.harness.images import programs, resident
from experiments.harness.images.compute import ImageCompute
from experiments.harness.images.feeds import compile_ahead, open_feed
from experiments.harness.images.resident import ResidentFeed
from experiments.harness.images.train import train
from experiments.harness.runs import complete
from experiments.imagenet_inception.experiment import EXPERIMENT


@pytest.fixture(scope="module", autouse=True)
def _small():
    with small_networks():
        yield


@pytest.fixture(scope="module")
def data():
    return open_data("mnist5k")


@lru_cache
def compute(how, devices):
    """The same devices, so that programs are shared."""
    return ImageCompute(parallel=how, device_count=devices)


def outcome(data, how="jit", devices=1, seed=0, **changes):
    log = Entries()
    task = inception_task(replace(CONFIG, **changes), "bn_baseline", seed)
    (reached,) = train(task, data, compute(how, devices), log)
    return log.entries, reached.final, reached.weights


@pytest.fixture
def in_loops(monkeypatch):
    """As on accelerators: a dispatch up to the next evaluation or checkpoint."""
    monkeypatch.setattr(resident, "loops", lambda parallel: True)


def assert_close(actual, desired):
    """Two runs whose programs round differently."""
    for one, other in zip(actual[0], desired[0], strict=True):
        assert one["step"] == other["step"]
        for name in ("train", "test"):
            assert one[name]["examples"] == other[name]["examples"]
            np.testing.assert_allclose(one[name]["loss"], other[name]["loss"], rtol=2e-5)
    assert_trees_close(actual[2], desired[2], PARALLEL)


def test_it_is_bitwise_what_streamed_views_train(data):
    """Where views are the pixels. Red for another order, label, mask, or batch of Algorithm 2."""
    entries, final, _ = outcome(data, pipeline="resident")
    assert (entries, final) == outcome(data)[:2]
    assert [entry["step"] for entry in entries] == [0, 2, 4, 7]
    assert entries[0]["test"]["examples"] == 1000


@pytest.mark.slow
def test_loops_train_the_same(data, in_loops):
    """Red if a dispatch takes a step too many or too few, or counts what only fills it up."""
    assert_close(
        outcome(data, pipeline="resident", micro_batches=2), outcome(data, micro_batches=2)
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", ["jit", "shard_map", "pmap"])
def test_eight_devices_train_as_one(data, in_loops, how):
    """Red if a device takes another's keys or examples, or sums its own alone."""
    alone = outcome(data, pipeline="resident", **VIEWS)
    assert_close(outcome(data, how, 8, pipeline="resident", **VIEWS), alone)


@pytest.mark.parametrize("looped", [False, slow(True)])
def test_a_run_that_is_interrupted_goes_on_bitwise(data, tmp_path, monkeypatch, looped):
    """Red if sums, order or views start anew."""
    monkeypatch.setattr(resident, "loops", lambda parallel: looped)
    config = replace(CONFIG, pipeline="resident", **VIEWS)
    task, one = inception_task(config, "bn_baseline"), compute("jit", 1)
    indices = ResidentFeed.training

    def interrupting(self, first_step, steps):
        if first_step == 2:
            signal.raise_signal(signal.SIGTERM)
        return indices(self, first_step, steps)

    with monkeypatch.context() as patch:
        patch.setattr(ResidentFeed, "training", interrupting)
        with pytest.raises(Interrupted) as stop:
            complete(EXPERIMENT, task, data, one, tmp_path / "stopped")
    assert stop.value.step == 2
    for out in ("stopped", "whole"):
        complete(EXPERIMENT, task, data, one, tmp_path / out)
    assert_same_runs(tmp_path / "stopped", tmp_path / "whole", ["bn_baseline-s0"])


@contextmanager
def counted():
    """Yields a list that gets an entry for each program that XLA compiles meanwhile."""
    compiled = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiled
    finally:
        jax.monitoring.clear_event_listeners()


def test_runs_that_differ_in_numbers_compile_once(data, in_loops):
    """Red if seed, rate, order, length of a dispatch or the data were constants of a program."""
    first = outcome(data, pipeline="resident")
    changed = {"steps": 9, "learning_rate": 0.1, "learning_rate_factor": 2.0}
    with counted() as compiled:
        other = outcome(data, seed=1, pipeline="resident", **changed)
    assert first[1]["state_sha256"] != other[1]["state_sha256"]
    assert not compiled


def test_each_host_takes_its_share(data, monkeypatch):
    """Red if hosts read the same examples, or leave some out."""
    task = inception_task(replace(CONFIG, pipeline="resident", micro_batches=2), "bn_baseline")
    parallel = DataParallel(devices=jax.devices()[:1])
    monkeypatch.setattr(DataParallel, "split", lambda self, batch, axis=0: batch)
    _, feed = resident.open_resident(task, data, parallel)
    whole = feed.training(3, 2)[0]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    parts = []
    for index in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        parts.append(feed.training(3, 2)[0])
    for leaf, *shares in zip(whole, *parts, strict=True):
        assert shares[0].shape == (2, 2, 8)
        rows = [share.reshape(2, 16) for share in shares]
        np.testing.assert_array_equal(np.concatenate(rows, 1), leaf.reshape(2, 32))
    np.testing.assert_array_equal(whole.positions.ravel(), np.arange(96, 160))


def of_sizes(*sizes):
    images = [np.zeros((size, size, 3), np.uint8) for size in sizes]

    class Split(list):
        shard_sizes = (len(sizes),)

    split = Split(Example(image, 0, f"image {i}") for i, image in enumerate(images))
    return DataSet("photos", 10, 3, split, split, "0")


def test_images_of_many_sizes_are_refused_with_a_remedy():
    config = replace(CONFIG, pipeline="resident")
    with pytest.raises(DataError, match=r"(?s)image 1: has 9 x 9.*Or give --pipeline streamed"):
        EXPERIMENT.decode(config, of_sizes(8, 9))
    streamed = of_sizes(8, 9)
    assert EXPERIMENT.decode(CONFIG, streamed) is streamed


class SmallChip(DataParallel):
    """A device that says how much memory it has."""

    devices = (SimpleNamespace(process_index=0, device_kind="T4", memory_stats=lambda: MEMORY),)


MEMORY = {"bytes_limit": 1_000_000}


@pytest.mark.parametrize(
    ("how", "changes", "words"),
    [
        ({"workers": 2}, {}, "workers=2 would do nothing: .* give --pipeline streamed"),
        ({}, {"image_size": 37, "crop": "pad"}, "smaller than image_size=37"),
        ({"devices": SmallChip()}, {}, "mnist5k takes 3,940,000 bytes, a T4 has 1,000,000. Give"),
    ],
)
def test_what_cannot_be_is_said_before_any_compute(data, how, changes, words):
    task = inception_task(replace(CONFIG, pipeline="resident", **changes), "bn_baseline")
    with pytest.raises((ValueError, DataError), match=words):
        resident.check(
            task, data, SimpleNamespace(**{"workers": 0, "devices": DataParallel()} | how)
        )


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", ["resident", "streamed"])
def test_programs_are_compiled_ahead_once(pipeline, data, in_loops):
    """Red if a run compiles what a thread has: as JAX does if arguments had no place."""
    config = replace(CONFIG, pipeline=pipeline, momentum=0.8)
    tasks = [inception_task(config, arm) for arm in ("bn_baseline", "bn_x5_sigmoid")]
    compile_ahead(tasks, data, compute("jit", 1))
    for task in tasks:
        own, feed = open_feed(task, data, compute("jit", 1))
        state = own.init(np.int32(0), np.float32(0.1))
        with feed:
            arguments = feed.training(0, feed.schedule.dispatch(0))
            with counted() as compiled:
                state, _ = own.train(state, *arguments)
                own.evaluate(programs.variables_of(state), next(feed.validation()))
        assert not compiled


def test_decoded_data_keeps_its_shards():
    """Red if they are equal parts: the order of examples would be another than streamed."""
    data = of_sizes(8, 8)
    data.train.shard_sizes = (1, 1)
    decoded = EXPERIMENT.decode(replace(CONFIG, pipeline="resident"), data)
    assert decoded.train.shard_sizes == (1, 1)
