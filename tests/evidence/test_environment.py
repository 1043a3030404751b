"""What a record says of the machine and the code it was made with."""

import json
import platform
import socket
from pathlib import Path

import numpy as np
import pytest

import bnjax
from bnjax.evidence.environment import environment


def test_the_environment_names_what_numbers_depend_on():
    seen = environment()
    assert seen["python"] == platform.python_version()
    assert seen["versions"]["numpy"] == np.__version__
    assert seen["versions"]["bnjax"] == bnjax.__version__
    assert {"jax", "jaxlib", "flax", "optax"} < set(seen["versions"])
    assert (seen["backend"], seen["device_count"]) == ("cpu", 8)
    assert {"device_kind", "processor", "matmul_precision", "xla_flags"} < set(seen)
    assert seen["git"] is None or len(seen["git"]["commit"]) == 40
    assert json.loads(json.dumps(seen)) == seen


@pytest.mark.parametrize(
    ("cpuinfo", "said"),
    [
        (
            "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: A\n\nmodel\t: 9\n",
            "A, cpu family 25, model 17",
        ),
        ("processor\t: 0\nBogoMIPS\t: 50.00\n", platform.machine()),
    ],
    ids=["x86", "arm"],
)
def test_processors_of_one_name_are_told_apart(monkeypatch, cpuinfo, said):
    """A virtual machine's is called after its family alone, and rounds as its model does."""
    read = Path.read_text
    monkeypatch.setattr(
        Path,
        "read_text",
        lambda path, **how: cpuinfo if str(path) == "/proc/cpuinfo" else read(path, **how),
    )
    assert environment()["processor"] == said


def test_the_environment_names_no_host_user_or_path(monkeypatch):
    for name in ("HOSTNAME", "USER", "LOGNAME", "HOME"):
        monkeypatch.setenv(name, "/home/some-body")
    monkeypatch.setattr(socket, "gethostname", lambda: "some-body")
    monkeypatch.setattr(platform, "node", lambda: "some-body")
    monkeypatch.setenv(
        "XLA_FLAGS", "--xla_dump_to=/home/some-body/x --xla_cpu_enable_fast_math=false"
    )
    seen = environment()
    text = json.dumps(seen)
    assert "some-body" not in text
    assert seen["xla_flags"] == "--xla_dump_to=(path) --xla_cpu_enable_fast_math=false"
    assert str(Path(__file__).parents[2]) not in text
