"""Commands whose outputs are closed, full, or read by nobody any more."""

import subprocess
import sys
from pathlib import Path

import pytest

from bnjax.command import BROKEN_PIPE

ROOT = Path(__file__).parents[1]
ALONE = f"""
import sys, types
sys.modules["bnjax"] = types.ModuleType("bnjax")
sys.modules["bnjax"].__path__ = [{str(ROOT / "bnjax")!r}]
"""
"""The package without what it imports: JAX takes each process a second."""

LONG = f"""{ALONE}
from bnjax.command import command
with command():
    print("first", file=sys.STREAM, flush=True)
    sys.stdin.read()
    for _ in range(1000):
        print("more" * 100, file=sys.STREAM)
"""


def run(code, redirections="", **environ):
    return subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {redirections}', sys.executable, ALONE + code],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", **environ},
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_has_gone_ends_the_command_quietly(stream):
    """As `| head -1` does: red if a traceback, or Python's own complaint, is printed."""
    code = LONG.replace("STREAM", stream)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, **pipes) as process:
        read = getattr(process, stream)
        assert read.readline() == "first\n"
        read.close()
        process.stdin.close()
        other = process.stderr if stream == "stdout" else process.stdout
        assert other.read() == ""
    assert process.returncode == BROKEN_PIPE


def test_another_broken_pipe_is_an_error():
    code = "from bnjax.command import command\nwith command(): raise BrokenPipeError(7)"
    ended = run(code)
    assert ended.returncode == 1
    assert "BrokenPipeError: 7" in ended.stderr


def test_closed_outputs_lend_their_numbers_to_no_file(tmp_path):
    """Red if the file becomes descriptor 1 or 2: then what a library prints goes into it."""
    code = f"""
import os
from bnjax.command import command
with command():
    with open({str(tmp_path / "record")!r}, "w") as file:
        os.write(1, b"printed by a library")
        os.write(2, b"logged by a library")
        print("a table")
        file.write(str(file.fileno() > 2))
"""
    ended = run(code, ">&- 2>&-")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert (tmp_path / "record").read_text() == "True"


def test_a_full_disk_behind_the_output_is_an_error():
    code = "from bnjax.command import command\nwith command(): print(7)"
    ended = run(code, ">/dev/full")
    assert ended.returncode == 1
    assert ended.stderr.count("No space left on device") == 1


def test_an_ascii_output_gets_question_marks():
    code = "from bnjax.command import command\nwith command(): print('1 \\u00b1 2')"
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    ended = run(code, **plain)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "1 ? 2\n", "")
