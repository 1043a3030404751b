"""The MNIST experiment interrupted or killed: it goes on bitwise."""

import contextlib
import re
import signal
import time
from pathlib import Path

import pytest
from mnist_commands import TINY, assert_same_runs, end, flags, start

from bnjax.evidence.records import read_record

LONG = TINY | {"steps": 1_000, "eval_every": 50, "sparse_eval_every": 50}
LONG |= {"checkpoint_every": 100, "units_every": 100, "seeds": 2, "arms": "mlp_bn"}
NAMES = ("mlp_bn-s0", "mlp_bn-s1")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    ended = end(start(*flags(**LONG), "--out", out))
    assert ended.code == 0, ended.err
    return out


@contextlib.contextmanager
def running(out: Path, *, until):
    """A training process that has come as far as `until` says; ended with the block."""
    with start(*flags(**LONG), "--out", out) as process:
        try:
            deadline = time.monotonic() + 240
            while not until():
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield process
        finally:
            process.kill()


def first_bar(err: str) -> str:
    """Steps done when a progress bar was first drawn."""
    return re.search(r"% *([0-9.]+k?)/", err)[1]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_resumes_bitwise(uninterrupted, tmp_path, number):
    out = tmp_path / "with blank"
    metrics = out / NAMES[0] / "metrics.jsonl"
    with running(
        out, until=lambda: metrics.exists() and '"step":50' in metrics.read_text()
    ) as process:
        process.send_signal(number)
        ended = end(process)
    assert ended.code == 128 + number, ended.err
    assert "Traceback" not in ended.err
    step = int(re.search(r"Stopped at step ([\d,]+); saved\.", ended.out)[1].replace(",", ""))
    assert 50 <= step < 1_000
    advice = ended.out.strip().splitlines()[-1].strip()
    assert advice.startswith("python -m experiments.mnist_lenet ")
    assert advice.endswith(f"--out '{out}' --resume")
    assert not read_record(out / NAMES[0])["finished"]

    whole = metrics.read_text()
    metrics.unlink()  # as another set of seeds, begun meanwhile, would do
    holed = end(start(*flags(**LONG), "--out", out, "--resume"))
    assert holed.code == 1
    assert "metrics.jsonl lacks step 0, which lies behind the checkpoint" in holed.err
    metrics.write_text(whole)

    resumed = end(start(*flags(**LONG), "--out", out, "--resume"))
    assert resumed.code == 0, resumed.err
    assert first_bar(resumed.err) not in ("0", "0.00")
    assert_same_runs(out, uninterrupted, NAMES)


@pytest.mark.slow
def test_a_killed_run_goes_on_bitwise(uninterrupted, tmp_path):
    """From its last checkpoint; a torn line at the end of the log is made whole."""

    def saved():
        return any(path.name.isdigit() for path in tmp_path.glob("checkpoints/*/*"))

    with running(tmp_path, until=saved) as process:
        process.kill()
        process.wait()
    metrics = tmp_path / NAMES[1] / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step":29')
    again = end(start(*flags(**LONG), "--out", tmp_path))
    assert again.code == 0, again.err
    assert first_bar(again.err) not in ("0", "0.00")
    assert_same_runs(tmp_path, uninterrupted, NAMES)
