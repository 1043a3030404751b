"""How commands end where the disk or the folder fails: one line with the remedy, nothing lost."""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from mnist_commands import ROOT, TINY, assert_same_runs, content, flags
from runs import JAX_HAS_STARTED

from bnjax.evidence.records import Run
from bnjax.paths import local_path
from bnjax.training.checkpoints import Checkpoints
from experiments import report, verify
from experiments.benchmarks import __main__ as benchmarks
from experiments.harness.bounds import check_rates
from experiments.harness.command_line import ending
from experiments.harness.differences import confidence_95
from experiments.imagenet_inception import __main__ as imagenet
from experiments.mnist_lenet import __main__ as mnist

ONE_RUN = [*flags(**TINY, seeds=1), "--arms", "mlp"]
COMMANDS = {
    "mnist_lenet": (mnist, "harness.main.complete", ONE_RUN),
    "imagenet_inception": (imagenet, "harness.main.complete", ["--arms", "bn_x5", "--seeds", "1"]),
    "evaluate": (imagenet, "harness.images.evaluate.evaluate", ["evaluate", "run"]),
    "dry-run": (imagenet, "compiled.dry_run.dry_run", ["dry-run"]),
    "benchmarks": (benchmarks, "benchmarks.batch_norm.measure", ["batch_norm", "--no-keep-memory"]),
}
"""Each command, what computes in it, and arguments."""


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a command in this process: its status, and what it printed."""
    monkeypatch.setattr(*JAX_HAS_STARTED)

    def run(command, *arguments):
        monkeypatch.setattr(sys, "argv", ["main", *map(str, arguments)])
        code, message = 0, ""
        try:
            command.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
            message = "" if isinstance(stop.code, int) else f"{stop.code}\n"
        printed = capsys.readouterr()
        return code, printed.out, message

    return run


def no_compute(monkeypatch, name):
    monkeypatch.setattr(f"experiments.{name}", lambda *_, **__: pytest.fail("computed"))


def read_only(monkeypatch):
    """As a disk is: neither new files nor other content."""

    def refuse(*_, dir=None, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(Path, "write_text", lambda path, *_, **__: refuse(dir=path))
    monkeypatch.setattr(Path, "mkdir", lambda path, **_: path.is_dir() or refuse(dir=path))


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("wrong", ["a file", "below a file", "too long", "empty", "read-only"])
def test_what_cannot_be_written_is_found_before_compute(name, wrong, call, tmp_path, monkeypatch):
    command, compute, arguments = COMMANDS[name]
    no_compute(monkeypatch, compute)
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    if wrong == "read-only":
        read_only(monkeypatch)
    out, said = {
        "a file": ("file", "--out file cannot be written"),
        "below a file": ("file/x", "--out file/x cannot be written (Not a directory)"),
        "too long": (f"{'x' * 300}/y", "cannot be written (File name too long)"),
        "empty": ("", "--out is empty: give it a value, or leave it out"),
        "read-only": ("new", "--out new cannot be written (Read-only file system)"),
    }[wrong]
    if name == "dry-run" and wrong != "empty":  # its --out is a file
        out = f"{out}/dry_run.json"
    code, _, message = call(command, *arguments, "--out", out)
    assert code == 1
    assert message.startswith("error: ")
    assert said in message
    assert message.count("\n") == 1
    assert not Path("new").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run of MNIST, and what its command printed."""
    out = tmp_path_factory.mktemp("endings") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*JAX_HAS_STARTED)
        patch.setattr(sys, "argv", ["main", *ONE_RUN, "--out", str(out)])
        mnist.main()
    return out


@pytest.mark.slow
def test_a_finished_run_on_a_read_only_disk_prints_its_table(call, finished, monkeypatch):
    before = content(finished)
    read_only(monkeypatch)
    code, printed, message = call(mnist, *ONE_RUN, "--out", finished)
    assert code == 1
    assert "| 3x100 sigmoid | 1 |" in printed
    assert message == (
        f"error: {finished / 'summary.json'}: Read-only file system: "
        "give a folder that you may write.\n"
    )
    assert content(finished) == before
    code, _, message = call(mnist, *ONE_RUN, "--seeds", 2, "--out", finished)  # another one is left
    assert f"error: --out {finished} cannot be written (Read-only file system)" in message


def test_a_full_disk_in_mid_run_is_one_line_and_the_run_goes_on(
    call, finished, tmp_path, monkeypatch
):
    log = Run.log

    def full(run, entry):
        if entry["step"] == 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        log(run, entry)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", full)
        code, _, message = call(mnist, *ONE_RUN, "--out", tmp_path / "out")
    assert (code, message) == (
        1,
        "error: No space left on device: make room, then go on with the same command.\n",
    )
    assert call(mnist, *ONE_RUN, "--out", tmp_path / "out")[0] == 0
    assert_same_runs(tmp_path / "out", finished, ["mlp-s0"])


@pytest.mark.slow
def test_a_folder_that_is_moved_in_mid_run_is_named_and_goes_on_when_it_is_back(
    call, finished, tmp_path, monkeypatch
):
    log, save, out, away = Run.log, Checkpoints.save, tmp_path / "out", tmp_path / "away"

    def moved(run, entry):
        if entry["step"] == 30:
            out.rename(away)
        log(run, entry)

    def wait(checkpoints, *given):  # a save under way would make the folder again
        save(checkpoints, *given)
        checkpoints.latest()

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", moved)
        patch.setattr(Checkpoints, "save", wait)
        code, _, message = call(mnist, *ONE_RUN, "--out", out)
    assert code == 1
    lost = out / "mlp-s0" / "metrics.jsonl"
    assert message.startswith(f"error: {lost} cannot be written (No such file or directory)")
    assert "put it back" in message
    away.rename(out)
    assert call(mnist, *ONE_RUN, "--out", out)[0] == 0
    assert_same_runs(out, finished, ["mlp-s0"])


def test_verify_and_report_end_in_one_line(call, tmp_path, monkeypatch):
    code, _, message = call(verify, "")
    assert (code, message) == (
        1,
        "error: the first argument is empty: give it a value, or leave it out.\n",
    )
    read_only(monkeypatch)
    monkeypatch.setattr(report, "figures", list)
    code, _, message = call(report)
    assert code == 1
    assert "Read-only file system: give a folder that you may write." in message


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: confidence_95(["a", "b"]),  # Python's, in a line of this repository
        lambda: np.random.default_rng(-1),  # a library's
    ],
)
def test_a_mistake_in_code_keeps_its_traceback(mistake):
    """As in an arm of one's own. Seen red: "error: could not convert string to float" alone."""
    with pytest.raises(ValueError, match=r"could not convert|non-negative"), ending("any"):
        mistake()


def test_what_this_repository_refuses_is_one_line():
    with (
        pytest.raises(SystemExit, match=r"^error: rates must be > 0 and finite, got 0"),
        ending("any"),
    ):
        check_rates("rates", (0.0,))


@pytest.mark.slow
def test_little_address_space_is_named():
    """XLA would abort the process, with status 134."""
    code = [sys.executable, "-m", "experiments.mnist_lenet"]
    limited = ["bash", "-c", 'ulimit -v 1900000; exec "$0" "$@"', *code]
    ended = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr == (
        "error: the address space is limited to 1.9 GB, and JAX needs more than 2.1 GB: "
        "ulimit -v unlimited.\n"
    )


def test_a_path_that_the_locale_cannot_read_is_refused():
    """Orbax takes text alone; Python keeps the bytes that LC_ALL=C cannot read as surrogates."""
    path = b"r\xc3\xa4".decode("ascii", "surrogateescape")
    with pytest.raises(ValueError, match=r"--out .* is no text in this locale.*LC_ALL=C.UTF-8"):
        local_path("--out", path)
