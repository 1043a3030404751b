"""The processes of a run meet, and compare what they expect, before JAX starts.

`jax.distributed.initialize` alone does not serve. Measured with JAX 0.10: where a process does not
come, two have one index, or the coordinator does not answer, it aborts the process (SIGABRT) with a
stack trace in C++ that names none of them; processes that expect different counts it lets pass. So
they meet first at the coordinator's address, for a moment: each sends a line, "process 2 of 8";
process 0 compares and answers each with a line, which is "welcome" or the problem.
"""

import contextlib
import logging
import re
import socket
import time

PATIENCE_S = 5.0
"""Seconds for a connection that says nothing, such as a port scanner's; others wait behind it."""
SILENCE_S = 3.0
"""Seconds of waiting after which a process logs for whom it waits."""
_WELCOME = "welcome"
_PROBLEM = "problem: "
_LOG = logging.getLogger(__name__)


class HostsError(RuntimeError):
    """The processes of a run did not find each other, or do not agree."""


def call_roll(coordinator: str, count: int, index: int, *, timeout_s: float) -> None:
    """Returns on all processes when all have come; one that waits for long logs for whom.

    Args:
        coordinator: `host:port` of process 0.
        count: number of processes that this one expects.
        index: number of this process.
        timeout_s: how long to wait for the others.

    Raises:
        HostsError: on every process that has come, if one is missing, comes twice or expects
            another number of them; or if process 0 cannot be reached, or cannot listen.
        ValueError: for an address without a port.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(
            f"coordinator must be host:port of process 0, with a port of 1 to 65535, got "
            f"{coordinator!r}."
        )
    address = host.strip("[]"), int(port)
    if index == 0:
        problem = _call(coordinator, address, count, timeout_s)
    else:
        problem = _answer(coordinator, address, count, index, timeout_s)
    if problem is not None:
        raise HostsError(problem)


def _call(coordinator: str, address: tuple[str, int], count: int, timeout_s: float) -> str | None:
    """Process 0 hears the others; returns the problem, which all are told."""
    come: dict[int, socket.socket] = {}
    problem, told = None, False
    deadline = time.monotonic() + timeout_s
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(_listen(address))
        while problem is None and len(come) < count - 1:
            missing = [other for other in range(1, count) if other not in come]
            left = deadline - time.monotonic()
            if left <= 0:
                problem = (
                    f"of {count} processes, {missing} did not come to {coordinator} within "
                    f"{timeout_s:g} s: start them, with this coordinator, or expect fewer."
                )
                break
            listening.settimeout(min(left, SILENCE_S))
            try:
                connection = stack.enter_context(listening.accept()[0])
            except TimeoutError:
                if not told and left > SILENCE_S:
                    _LOG.warning(
                        "process 0 of %d waits at %s for %s, %.0f s at most.",
                        *(count, coordinator, missing, left),
                    )
                    told = True
                continue
            said = re.fullmatch(r"process (\d+) of (\d+)", _read(connection, PATIENCE_S))
            if said is None:
                continue  # a stranger
            other, expected = map(int, said.groups())
            if expected != count:
                problem = (
                    f"process {other} expects {expected} processes, process 0 expects {count}."
                )
            elif other in come:
                problem = f"two processes say that they are process {other} of {count}."
                _send(connection, _PROBLEM + problem)
            come.setdefault(other, connection)
        for connection in come.values():
            _send(connection, _WELCOME if problem is None else _PROBLEM + problem)
        for connection in come.values():
            _read(connection, timeout_s)  # until it is closed there: then the port is free for JAX
    return problem


def _answer(
    coordinator: str, address: tuple[str, int], count: int, index: int, timeout_s: float
) -> str | None:
    """Another process says who it is; returns the problem that process 0 tells."""
    with _connect(coordinator, address, index, timeout_s) as connection:
        _send(connection, f"process {index} of {count}")
        reply = _read(connection, 2 * timeout_s)  # process 0 may have started to wait later
    if reply == _WELCOME:
        return None
    if reply.startswith(_PROBLEM):
        return reply.removeprefix(_PROBLEM)
    return (
        f"process 0 at {coordinator} took the call of process {index} and then was silent: it has "
        "stopped, or another program listens there; give it another port."
    )


def _listen(address: tuple[str, int]) -> socket.socket:
    both = socket.has_dualstack_ipv6()  # the others may find a name's address of either kind
    family = socket.AF_INET6 if both or ":" in address[0] else socket.AF_INET
    try:
        return socket.create_server(("", address[1]), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise HostsError(
            f"process 0 cannot listen on port {address[1]} ({error}): give the coordinator another."
        ) from error


def _connect(
    coordinator: str, address: tuple[str, int], index: int, timeout_s: float
) -> socket.socket:
    started, told = time.monotonic(), False
    while True:
        left = max(started + timeout_s - time.monotonic(), 0.001)
        try:
            return socket.create_connection(address, min(left, SILENCE_S))
        except OSError as error:
            waited = time.monotonic() - started
            if waited >= timeout_s:
                raise HostsError(
                    f"coordinator {coordinator} did not answer within {timeout_s:g} s ({error}): "
                    "is process 0 running there, and is the port open?"
                ) from error
            if not told and waited >= SILENCE_S:
                told = True
                _LOG.warning(
                    "process %d waits for process 0 at %s, %.0f s at most (%s).",
                    *(index, coordinator, left, error),
                )
            time.sleep(0.1)


def _send(connection: socket.socket, line: str) -> None:
    with contextlib.suppress(OSError):  # one that is gone is missed by the reader
        connection.sendall(line.encode() + b"\n")


def _read(connection: socket.socket, timeout_s: float) -> str:
    """Returns a line; it is empty if the other side closed or was silent."""
    connection.settimeout(timeout_s)
    try:
        with connection.makefile(errors="replace") as lines:
            return lines.readline(4096).rstrip("\n")
    except OSError:
        return ""
