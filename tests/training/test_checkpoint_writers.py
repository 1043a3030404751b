"""Checkpoints: one writer to a directory, its errors and its death."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from made_checkpoints import CONFIG, make_state, steps_on_disk
from marks import slow

from bnjax.training.checkpoints import CheckpointError, Checkpoints


def test_a_second_writer_is_refused(tmp_path):
    with (
        Checkpoints(tmp_path, config=CONFIG),
        pytest.raises(CheckpointError, match=rf"{tmp_path} is in use.*process {os.getpid()}"),
    ):
        Checkpoints(tmp_path, config=CONFIG)
    with Checkpoints(tmp_path, config=CONFIG):
        pass


def test_closed_checkpoints_say_so(tmp_path):
    checkpoints = Checkpoints(tmp_path, config=CONFIG)
    checkpoints.close()
    checkpoints.close()
    with pytest.raises(CheckpointError, match="are closed"):
        checkpoints.save(0, make_state(0))


def test_a_full_disk_is_reported_before_writing(run, monkeypatch):
    usage = shutil.disk_usage(run)._replace(free=7)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with Checkpoints(run, config=CONFIG) as checkpoints:
        with pytest.raises(CheckpointError, match=r"state has 16 bytes, .* has only 7 free"):
            checkpoints.save(3, {"a": np.zeros(2)})
        assert checkpoints.latest() == 2


def block_writes(run):
    (run / "3").write_text("a file where the checkpoint is to be")


def test_a_failed_write_surfaces_in_the_next_save_and_can_be_repeated(run):
    with Checkpoints(run, config=CONFIG) as checkpoints:
        block_writes(run)
        checkpoints.save(3, make_state(3))
        with pytest.raises(CheckpointError, match=r"step 3 was not saved in .*NotADirectoryError"):
            checkpoints.save(4, make_state(4))
        (run / "3").unlink()
        checkpoints.save(4, make_state(4))
    assert steps_on_disk(run) == ["2", "4"]


def test_a_write_that_fails_half_way_gives_its_space_back(run, monkeypatch):
    def fail(descriptor):
        raise OSError(28, "No space left on device")

    with Checkpoints(run, config=CONFIG) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            checkpoints.save(3, make_state(3))
            with pytest.raises(CheckpointError, match=r"step 3 .* No space left on device"):
                checkpoints.latest()
        assert steps_on_disk(run) == ["1", "2"]
        assert checkpoints.restore(make_state(0)).step == 2


def test_a_disk_that_fills_while_arrays_are_written(run):
    """The system refuses the bytes, not a function of ours: red if Orbax's error is lost."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(run, config=CONFIG) as checkpoints:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            checkpoints.save(3, {"a": np.random.default_rng(0).normal(size=100_000)})
            with pytest.raises(CheckpointError, match=r"step 3 was not saved in .*free space"):
                checkpoints.latest()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert steps_on_disk(run) == ["1", "2"]
        checkpoints.save(3, make_state(3))
        assert checkpoints.latest() == 3


def test_a_failed_write_surfaces_on_close_and_frees_the_directory(run):
    checkpoints = Checkpoints(run, config=CONFIG)
    block_writes(run)
    checkpoints.save(3, make_state(3))
    with pytest.raises(CheckpointError, match="step 3 was not saved"):
        checkpoints.close()
    (run / "3").unlink()
    with Checkpoints(run, config=CONFIG) as checkpoints:
        assert checkpoints.restore(make_state(0)).step == 2


def test_a_failed_write_does_not_hide_the_error_that_ended_the_block(run):
    def train():
        with Checkpoints(run, config=CONFIG) as checkpoints:
            block_writes(run)
            checkpoints.save(3, make_state(3))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        train()
    assert "step 3 was not saved" in caught.value.__notes__[0]


FORGETFUL_WRITER = """
import sys
import numpy as np
from bnjax.training.checkpoints import Checkpoints

Checkpoints(sys.argv[1], config={}).save(1, {"a": np.zeros(1_000_000)})
"""


@pytest.mark.slow
def test_a_save_lost_because_nobody_closed_is_reported(tmp_path):
    """Orbax cannot finish while Python shuts down; red if that passes in silence."""
    ended = subprocess.run(
        [sys.executable, "-c", FORGETFUL_WRITER, tmp_path], capture_output=True, text=True
    )
    assert (tmp_path / "1").is_dir() or "step 1 was not saved" in ended.stderr


def test_unfinished_folders_are_ignored_and_cleared(run):
    shutil.copytree(run / "2", run / "3.tmp")
    (run / "3.tmp" / "arrays.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(run, config=CONFIG) as checkpoints:
        assert checkpoints.latest() == 2
    assert steps_on_disk(run) == ["1", "2"]


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
import numpy as np
from bnjax.training.checkpoints import Checkpoints

rename, killed_at = Path.rename, sys.argv[2:]

def rename_or_die(path, target):
    names = [path.name, Path(target).name]
    if killed_at == ["before", *names]:
        os.kill(os.getpid(), signal.SIGKILL)
    moved = rename(path, target)
    if killed_at == ["after", *names]:
        os.kill(os.getpid(), signal.SIGKILL)
    return moved

Path.rename = rename_or_die
with Checkpoints(sys.argv[1], config={}, keep=1) as checkpoints:
    for step in range(3):
        checkpoints.save(step, {"a": np.full(1_000_000, float(step))})
"""


@pytest.mark.parametrize(
    ("killed_at", "left", "last"),
    [
        pytest.param(("before", "1.tmp", "1"), ["0", "1.tmp"], 0, id="written"),
        slow(("after", "1.tmp", "1"), ["0", "1"], 1, id="named"),
        slow(("before", "0", "0.tmp"), ["0", "1"], 1, id="outlived"),
        slow(("after", "0", "0.tmp"), ["0.tmp", "1"], 1, id="deleted"),
    ],
)
def test_kill_in_mid_save_leaves_the_last_finished_checkpoint(tmp_path, killed_at, left, last):
    """Red if a checkpoint has its name before it is whole, or the lock outlives its owner."""
    ended = subprocess.run([sys.executable, "-c", KILLED_WRITER, tmp_path, *killed_at])
    assert ended.returncode == -signal.SIGKILL
    assert steps_on_disk(tmp_path) == left
    with Checkpoints(tmp_path, config={}) as checkpoints, warnings.catch_warnings():
        warnings.simplefilter("error")
        restored = checkpoints.restore({"a": np.zeros(1_000_000)})
    assert restored.step == last
    np.testing.assert_array_equal(restored.state["a"], last)
    assert not any(path.suffix == ".tmp" for path in tmp_path.iterdir())


TRAINING = """
import hashlib, sys
import numpy as np
from bnjax.training.checkpoints import Checkpoints
from bnjax.training.loop import RunFunctions, Progress, Schedule, fit
from bnjax.training.objectives import Metrics

def train(state, first):
    assert first == state["step"]
    x = np.sin(state["x"] * 3 + first)
    return {"step": first + 1, "x": x}, Metrics(np.float32(x[0]), np.int32(0), np.int32(1))

functions = RunFunctions(
    train, lambda state: None, lambda first, steps: np.int32(first), lambda s: s
)
zero = Metrics(np.float32(0), np.int32(0), np.int32(0))
start = Progress({"step": np.int32(0), "x": np.linspace(0, 1, 100_000)}, zero)
schedule = Schedule(120, 1, 120, 120, 120, 1)
with Checkpoints(sys.argv[1], config={}) as checkpoints:
    found = checkpoints.restore(start)
    first, start = (found.step, found.state) if found else (0, start)
    print(first, flush=True)
    end = fit(functions, start, schedule, first_step=first, record=lambda *_: None,
              checkpoints=checkpoints)
print(hashlib.sha256(end["x"].tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_bitwise_as_one_that_was_not(tmp_path):
    """It saves after every step, so that most kills fall into a save."""

    def begin(folder):
        process = subprocess.Popen(
            [sys.executable, "-c", TRAINING, tmp_path / folder],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        return process, int(process.stdout.readline())

    def finished(folder):
        return [int(name) for name in steps_on_disk(folder) if name.isdigit()]

    moments = random.Random(0)
    straight, _ = begin("straight")
    expected = straight.communicate()[0].strip()
    began = []
    for _ in range(4):
        process, first = begin("killed")
        began.append(first)
        while max(finished(tmp_path / "killed"), default=0) <= first:
            assert process.poll() is None, "it ended before it saved"
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.1))
        assert process.poll() is None, "it ended before it was killed: make it longer"
        process.kill()
        process.communicate()
    last, first = begin("killed")
    assert last.communicate()[0].strip() == expected
    assert 0 == began[0] < began[1] < began[2] < began[3] < first
