"""Two processes that are the hosts of one run."""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path

SUPPORT = Path(__file__).parent
ROOT = SUPPORT.parents[1]


def free_port():
    """One that no system gives away by itself, so that it is still free when it is used."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)  # Linux gives those from 32,768 on
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port


def run_two_hosts(worker, out):
    """What each says in `out/INDEX.json` of two processes `worker ADDRESS 2 INDEX out`."""
    address = f"127.0.0.1:{free_port()}"
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    processes = [
        subprocess.Popen(
            [sys.executable, SUPPORT / worker, address, "2", str(index), out],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment | {"PYTHONPATH": str(ROOT)},  # experiments are not installed
        )
        for index in (0, 1)
    ]
    try:
        said = [process.communicate(timeout=400)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return [json.loads((out / f"{index}.json").read_text()) for index in (0, 1)]
