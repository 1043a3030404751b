"""Streams: the same batches for any workers and hosts, resume, masks, damage, memory given back.

Processes take seconds to start, so few tests do.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from itertools import islice
from multiprocessing import parent_process
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from marks import slow

from bnjax.data import DataError
from bnjax.data.data_set import Example
from bnjax.data.order import Order
from bnjax.data.stream import evaluation_batches, training_batches
from bnjax.data.workers import Stream

TESTS = Path(__file__).parents[1]
PLACES = (TESTS / "data", TESTS / "support", TESTS.parent)  # of what a process imports
SIZE = 23


class Numbers:
    """Example i is an image of one pixel, i; labels are i % 7. Some records are damaged."""

    shard_sizes = (10, 13)

    def __init__(self, unreadable=()):
        self.unreadable = unreadable

    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        if index in self.unreadable:
            raise DataError(f"record {index}: checksum")
        return Example(np.full((1, 1, 1), index, np.uint8), index % 7, f"record {index}")


def training_view(image, rng):
    """The pixel and three draws."""
    return np.concatenate([image.ravel(), rng.integers(0, 256, 3, np.uint8)])


def evaluation_view(image):
    return np.repeat(image.ravel(), 2)


def refusing(image, *rng, damaged=()):
    if int(image.ravel()[0]) in damaged:
        raise DataError("truncated")
    return image.ravel()


class TwoArgumentError(Exception):
    """Cannot be pickled and read back: its constructor takes two arguments."""

    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def failing(image, *rng):
    if int(image.ravel()[0]) == 12:
        raise TwoArgumentError("no", "memory")
    return image.ravel()


def train(view=training_view, examples=None, **choices):
    choices = {"seed": 3, "first_step": 0, "batch_size": 6} | choices
    return training_batches(examples or Numbers(), view, **choices)


def taken(stream, count=None):
    with stream:
        return list(islice(stream, count))


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        for one, two in zip(batch, other, strict=True):
            assert one.dtype == two.dtype
            np.testing.assert_array_equal(one, two)


def expected(step, batch_size, seed=3, shuffle="thorough"):
    """A training batch, made from nothing but the order and Philox."""
    indices = Order(seed, (10, 13), shuffle).indices(step * batch_size, batch_size)
    images = []
    for row, index in enumerate(indices):
        key = np.array([seed, step * batch_size + row], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, 1]))
        images.append([index, *rng.integers(0, 256, 3, np.uint8)])
    return np.array(images, np.uint8), (indices % 7).astype(np.int32), np.ones(batch_size, bool)


@pytest.mark.parametrize("shuffle", ["shards", "within_shard", "thorough"])
@pytest.mark.parametrize("step", [0, 2, 3, 1000])
def test_batches_are_a_function_of_seed_and_step(shuffle, step):
    """Also where a batch ends an epoch and begins the next: 23 examples in batches of 6."""
    batches = taken(train(first_step=step, shuffle=shuffle), 5)
    assert_same(batches, [expected(step + i, 6, shuffle=shuffle) for i in range(5)])


def test_a_step_of_numpy_does_not_wrap():
    (batch,) = taken(train(first_step=np.int32(2**30)), 1)
    assert_same([batch], [expected(2**30, 6)])


def test_views_differ_from_epoch_to_epoch_and_from_seed_to_seed():
    views = {tuple(image) for batch in taken(train(), 12) for image in batch.images}
    assert len(views) == 72
    other = {tuple(image) for batch in taken(train(seed=4), 12) for image in batch.images}
    assert len(views & other) <= 1


@pytest.mark.parametrize("count", [1, 2, 3])
def test_hosts_share_the_global_batch(count):
    hosts = [taken(train(process_index=i, process_count=count), 9) for i in range(count)]
    joined = [
        tuple(np.concatenate(arrays) for arrays in zip(*batches, strict=True))
        for batches in zip(*hosts, strict=True)
    ]
    assert_same(joined, [expected(step, 6) for step in range(9)])


@pytest.mark.parametrize("batch_size", [1, 4, 6, 12, 23, 40])
@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_every_example_is_measured_exactly_once(batch_size, count):
    """With more hosts than batches or examples, too: some are given nothing but padding."""
    batch_size *= count
    hosts = [
        taken(
            evaluation_batches(
                Numbers(),
                evaluation_view,
                batch_size=batch_size,
                process_index=i,
                process_count=count,
            )
        )
        for i in range(count)
    ]
    assert {len(batches) for batches in hosts} == {-(-SIZE // batch_size)}
    seen: Counter = Counter()
    for images, labels, mask in (batch for batches in hosts for batch in batches):
        assert (images.dtype, images.shape) == (np.uint8, (batch_size // count, 2))
        assert (labels.dtype, mask.dtype) == (np.int32, bool)
        assert not images[~mask].any()
        assert not labels[~mask].any()
        np.testing.assert_array_equal(images[mask, 0] % 7, labels[mask])
        seen.update(images[mask, 0].tolist())
    assert seen == Counter(range(SIZE))


def test_what_is_measured_keeps_the_type_of_its_view():
    batches = taken(evaluation_batches(Numbers(), lambda image: image / 256, batch_size=6))
    assert {batch.images.dtype.name for batch in batches} == {"float64"}
    values = np.concatenate([batch.images[batch.mask].ravel() for batch in batches])
    np.testing.assert_array_equal(values, np.arange(23) / 256)


@pytest.mark.slow
def test_two_processes_change_nothing():
    assert_same(taken(train(first_step=2, workers=2), 7), taken(train(first_step=2), 7))


def told_to_end_view(image):
    """The pixel twice; to a worker process come the signals that its parent gets, too."""
    if parent_process() is not None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
    return evaluation_view(image)


@pytest.mark.slow
def test_evaluation_in_processes():
    """They go on after a signal, until their parent has saved and closes them."""

    def batches(workers):
        return evaluation_batches(Numbers(), told_to_end_view, batch_size=5, workers=workers)

    assert_same(taken(batches(2)), taken(batches(0)))


def test_a_damaged_image_is_refused_by_name():
    view = partial(refusing, damaged=(4, 9))
    with pytest.raises(DataError, match=r"record [49]: truncated"):
        taken(train(view), 4)
    with pytest.raises(DataError, match="record 4: truncated"):
        taken(evaluation_batches(Numbers(), view, batch_size=8))


def test_an_image_without_a_label_is_refused():
    """-1 says so in tensorflow-datasets. An evaluation may mark what does not count by it."""

    class Unlabelled(Numbers):
        def __getitem__(self, index):
            example = super().__getitem__(index)
            return example._replace(label=-1) if index == 4 else example

    said = "record 4: labels must be >= 0, got -1, the mark of what has none"
    with pytest.raises(DataError, match=said):
        taken(train(examples=Unlabelled()), 4)
    batches = taken(evaluation_batches(Unlabelled(), evaluation_view, batch_size=8))
    assert -1 in batches[0].labels


def test_an_unreadable_record_is_an_error():
    """The shard is broken, not an image."""
    with pytest.raises(DataError, match="record 4: checksum"):
        taken(train(examples=Numbers({4})), 4)


@pytest.mark.parametrize("workers", [0, slow(1)])
def test_an_exception_of_a_view_names_the_image_and_closes_the_stream(workers):
    """From a process as from a thread, and although it cannot be pickled; after the same batches.

    Example 12 comes at position 20 of this seed, in the fourth batch.
    """
    stream = train(failing, workers=workers)
    assert_same([next(stream) for _ in range(3)], taken(train(refusing), 3))
    with pytest.raises(RuntimeError, match="record 12: TwoArgumentError: no memory"):
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)


def test_a_closed_stream_ends_and_may_be_closed_again():
    stream = train()
    next(stream)
    stream.close()
    stream.close()
    assert list(stream) == []


def test_what_comes_out_can_be_written_and_kept():
    """A batch is the caller's own: no later one overwrites it."""
    with train() as stream:
        first = next(stream)
        copy = first.images.copy()
        list(islice(stream, 20))
        np.testing.assert_array_equal(first.images, copy)
        first.images[:] = 0


class Bad(NamedTuple):
    choices: dict
    said: str


def ended_by(image, rng, *, signum):
    os.kill(os.getpid(), signum)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "said"),
    [
        (signal.SIGBUS, r"no room in shared memory \(/dev/shm\): enlarge it .* --workers 0"),
        pytest.param(
            signal.SIGKILL,
            "was killed, as the system does when memory runs out: .* --workers",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_worker_that_finds_no_memory_says_so(signum, said):
    """The kernel sends SIGBUS where /dev/shm is full."""
    with (
        train(partial(ended_by, signum=signum), workers=1) as stream,
        pytest.raises(DataError, match=said),
    ):
        next(stream)


BAD = [
    Bad({"seed": -1}, "seed must be in .* got -1"),
    Bad({"shuffle": "much"}, "shuffle must be one of .* got 'much'"),
    Bad({"first_step": -1}, "first_step must be >= 0, got -1"),
    Bad({"seed": 2**64}, "seed must be in .* got 18446744073709551616"),
    Bad({"seed": 1.5}, "seed must be an integer, got 1.5"),
    Bad({"workers": 1.5}, "workers must be an integer, got 1.5"),
    Bad({"process_count": "2"}, "process_count must be an integer, got '2'"),
    Bad({"first_step": 0.5}, "first_step must be an integer, got 0.5"),
    Bad({"batch_size": 0}, "batch_size must be between 1 and the 23 examples, got 0"),
    Bad({"batch_size": 24}, "batch_size must be between 1 and the 23 examples, got 24"),
    Bad({"workers": -1}, "workers must be >= 0, got -1"),
    Bad({"process_count": 4}, "batch_size=6 must be a multiple of process_count=4"),
    Bad({"process_index": 2, "process_count": 2}, "process_index=2, process_count=2"),
    Bad({"process_index": -1}, "process_index=-1"),
]


@pytest.mark.parametrize("bad", BAD, ids=[bad.said for bad in BAD])
def test_bad_arguments_are_refused_at_once(bad):
    with pytest.raises(ValueError, match=bad.said):
        train(**bad.choices)


@pytest.mark.parametrize("sizes", [(10, 12), (10, 14)])
def test_shards_that_are_not_the_examples_are_refused(sizes):
    """Red if an example is never seen, or one that is not there is asked for."""
    examples = Numbers()
    examples.shard_sizes = sizes
    with pytest.raises(ValueError, match=f"shard_sizes .* {sum(sizes)}, .* 23 examples"):
        train(examples=examples)


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"batch_size": "4"}, "batch_size must be an integer, got '4'"),
        ({"batch_size": 4, "workers": -2}, "workers must be >= 0, got -2"),
        ({"batch_size": 4, "process_count": 3}, "must be a multiple of process_count=3"),
    ],
)
def test_bad_arguments_of_an_evaluation_are_refused_at_once(choices, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        evaluation_batches(Numbers(), evaluation_view, **choices)


def test_a_stream_is_an_iterator():
    with train() as stream:
        assert isinstance(stream, Stream)
        assert iter(stream) is stream


PARENT = """
import signal, time
import multiprocessing
from test_stream import train

if __name__ == "__main__":
    # As from a terminal: a shell starts what runs in its background with Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stream = train(workers=1)
    next(stream)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    while True:
        next(stream)
        time.sleep(0.01)
"""


def running(pid):
    """A process that has ended may be waited for by nobody: a zombie does not run."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def ended(parent, signum):
    """What it wrote. Python drops a Ctrl-C that meets a finalizer: then, as one does, once more."""
    for seconds in (20, 60):
        (os.killpg if signum == signal.SIGINT else os.kill)(parent.pid, signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return parent.communicate(timeout=seconds)[1]
    raise AssertionError("the parent goes on")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only /proc tells a zombie")
@pytest.mark.parametrize("signum", [slow(signal.SIGINT), signal.SIGKILL])
def test_no_worker_outlives_its_parent(signum, tmp_path):
    """Ctrl-C goes to the whole group, as from a terminal; SIGKILL to the parent alone."""
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, str(tmp_path / "parent.py")]
    with subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, PLACES))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        try:
            assert len(workers) == 1
            assert all(map(running, workers))
            errors = ended(parent, signum)
            assert ("KeyboardInterrupt" in errors) == (signum == signal.SIGINT), errors
            deadline = time.monotonic() + 20
            while any(map(running, workers)) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not any(map(running, workers))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(parent.pid, signal.SIGKILL)


def growing(image, *rng):
    """One number more from example 4 on."""
    return np.zeros(1 + (int(image.ravel()[0]) >= 4), np.uint8)


def test_views_of_several_shapes_are_refused_by_name():
    """Red for NumPy's error, which names no example."""
    said = r"record 4: its view has shape \(2,\), that of the batch's first example has \(1,\)"
    with pytest.raises(ValueError, match=said):
        taken(evaluation_batches(Numbers(), growing, batch_size=8))
    with pytest.raises(ValueError, match=r"record \d+: its view has shape"):
        taken(train(growing), 4)
