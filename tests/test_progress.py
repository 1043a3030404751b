"""The progress bar: on a terminal, in a log, in a notebook, and when what it writes to ends."""

import io
import os
import re
import subprocess
import sys

import pytest
import tqdm.std

from bnjax.progress import LINE_S, ProgressBar


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds as tqdm counts them; tests let them pass."""
    now = [1000.0]
    monkeypatch.setattr(tqdm.std, "time", lambda: now[0])
    return now


def show(stream, monkeypatch, **changes):
    monkeypatch.setattr(sys, "stderr", stream)
    given = {"description": "mlp", "unit": "step", "compiles": True, **changes}
    return ProgressBar(1000, **given)


def test_a_compilation_counts_neither_in_the_rate_nor_in_the_time_left(clock, monkeypatch):
    """Two minutes of it, then 100 steps in 10 s: 10 a second, and 80 s for the other 800."""
    terminal = Terminal()
    with show(terminal, monkeypatch) as bar:
        assert terminal.getvalue().split("\r")[-1].startswith("mlp, compiling:   0%")
        clock[0] += 120
        bar.update(100)
        assert "mlp:  10%" in terminal.getvalue()
        clock[0] += 10
        bar.update(100, "loss 1")
        last = terminal.getvalue().split("\r")[-1]
    assert "compiling" not in last
    assert last.startswith("mlp:  20%")
    assert "200/1.00k [00:10<01:20, 10.0step/s, loss 1]" in last


def test_images_are_counted_over_the_time_of_the_steps(clock, monkeypatch):
    """A second compilation and its steps are left out, an evaluation is not: 200 steps in 20 s."""
    terminal = Terminal()
    with show(terminal, monkeypatch) as bar:
        bar.update(100)
        clock[0] += 10
        bar.update(100, "loss 1", images=60)
        clock[0] += 50
        bar.update(50, "loss 1", compiled_s=50, images=60)
        clock[0] += 90
        bar.leave_out(90)
        clock[0] += 10  # an evaluation among them
        bar.update(100, "loss 1", images=60)
    assert "[00:20<01:05, 10.0step/s, loss 1, 600 images/s]" in terminal.getvalue()


def test_a_run_that_goes_on_counts_from_there(clock, monkeypatch):
    terminal = Terminal()
    with show(terminal, monkeypatch, initial=500) as bar:
        clock[0] += 60
        bar.update(100)
        clock[0] += 5
        bar.update(100)
        assert "700/1.00k [00:05<00:15, 20.0step/s" in terminal.getvalue().split("\r")[-1]


def test_without_a_terminal_there_is_a_line_every_30_seconds(clock, monkeypatch):
    """Red if a bar is drawn over itself twice a second: 1,000 updates over 100 s."""
    log = io.StringIO()
    with show(log, monkeypatch, compiles=False) as bar:
        for _ in range(1000):
            clock[0] += 0.1
            bar.update(1)
    assert "\r" not in log.getvalue()
    lines = log.getvalue().splitlines()
    assert [re.match(r"mlp: +(\d+)%", line)[1] for line in lines] == ["0", "30", "60", "90", "100"]
    assert "300/1.00k [00:30<01:10, 10.0step/s]" in lines[1]
    assert LINE_S == 30


@pytest.mark.parametrize("fails", [BrokenPipeError(), OSError(28, "No space left"), ValueError()])
@pytest.mark.parametrize("terminal", [True, False])
def test_work_outlives_its_output(fails, terminal, clock, monkeypatch):
    class Ended(io.StringIO):
        def write(self, text):
            raise fails

    Ended.isatty = lambda self: terminal
    with show(Ended(), monkeypatch) as bar:
        clock[0] += 60
        bar.update(1000)


def test_no_output_at_all(monkeypatch):
    """As Python sets it where file descriptor 2 is closed."""
    with show(None, monkeypatch) as bar:
        bar.update(1000)


def test_an_ascii_terminal_gets_ascii(clock, monkeypatch):
    terminal = Terminal()
    terminal.encoding = "ascii"
    with show(terminal, monkeypatch) as bar:
        clock[0] += 1
        bar.update(500)
        clock[0] += 1
        bar.update(250)
    assert terminal.getvalue().isascii()
    assert "#" in terminal.getvalue()


@pytest.mark.slow
def test_a_notebook_without_ipywidgets_gets_lines_and_no_warning():
    """tqdm warns there on standard error; here the warning would be an error."""
    code = """
import sys
sys.modules["ipywidgets"] = None
from ipykernel.zmqshell import ZMQInteractiveShell
ZMQInteractiveShell.instance()
from bnjax.progress import ProgressBar
with ProgressBar(10, description="mlp", unit="step") as bar:
    bar.update(10)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error:IProgress", "-c", code],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert [line[:9] for line in done.stderr.splitlines()] == ["mlp:   0%", "mlp: 100%"]
