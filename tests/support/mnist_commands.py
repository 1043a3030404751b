"""The MNIST command as a process, and what to compare of its folders."""

import subprocess
import sys
from pathlib import Path

from commands import Ended

from bnjax.evidence.records import read_record

ROOT = Path(__file__).parents[2]
TINY = {
    "steps": 40,
    "steps_per_dispatch": 10,
    "eval_every": 10,
    "sparse_eval_every": 20,
    "checkpoint_every": 10,
    "population_batches": 2,
    "probe_examples": 50,
    "units_every": 20,
}


def flags(**values) -> list[str]:
    return [
        part for key, value in values.items() for part in (f"--{key.replace('_', '-')}", str(value))
    ]


def start(*arguments, **options) -> subprocess.Popen:
    code = [sys.executable, "-m", "experiments.mnist_lenet", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(code, cwd=ROOT, **pipes, **options)


def end(process: subprocess.Popen) -> Ended:
    out, err = process.communicate(timeout=300)
    return Ended(process.returncode, out, err)


def content(directory: Path) -> dict[str, bytes]:
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def assert_same_runs(actual: Path, desired: Path, names):
    """Bitwise the same log, and the same final metrics, parameters and statistics."""
    for name in names:
        first, second = (read_record(out / name)["final"] for out in (actual, desired))
        assert first["state_sha256"] == second["state_sha256"], name
        assert first["test"] == second["test"]
        assert first["test_population"] == second["test_population"]
        logs = [(out / name / "metrics.jsonl").read_bytes() for out in (actual, desired)]
        assert logs[0] == logs[1], name
