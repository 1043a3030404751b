"""Finds out whether all processes of a run have come, before JAX relies on it.

JAX's own client ends a process with a stack trace in C++ where the coordinator does not answer, a
process is missing or two have one number, and takes different counts for granted. So they meet
first, at the coordinator's address, for a moment: each says who it is, the first one compares.
"""

import contextlib
import json
import logging
import socket
import time
from typing import Any

_PATIENCE_S = 5.0
"""With one who connects and says nothing, such as a port scanner: others wait behind."""
_SILENCE_S = 3.0
"""Seconds of waiting after which a process says for whom."""
_ATTEMPT_S = 10.0
"""Seconds after which a connection that is neither made nor refused is tried again."""
_LOG = logging.getLogger(__name__)


class HostsError(RuntimeError):
    """The processes of a run did not find each other, or do not agree."""


def call_roll(coordinator: str, count: int, index: int, *, timeout_s: float) -> None:
    """Returns on all processes when all have come; one that waits for long logs for whom.

    Args:
        coordinator: `host:port` of process 0.
        count: how many processes this one expects.
        index: its number.
        timeout_s: how long it waits for the others.

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
    deadline = time.monotonic() + timeout_s
    if index == 0:
        _call(address, count, deadline, timeout_s)
    else:
        _answer(address, count, index, deadline, timeout_s)


def _call(address: tuple[str, int], count: int, deadline: float, timeout_s: float) -> None:
    come: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(_listen(address))
        problem, silence = None, _SILENCE_S
        while problem is None and len(come) < count - 1:
            left = max(deadline - time.monotonic(), 0.001)
            listening.settimeout(min(left, silence))
            try:
                connection, _ = listening.accept()
            except TimeoutError:
                missing = sorted(set(range(1, count)) - set(come))
                if silence < left:
                    silence = timeout_s
                    _LOG.warning(
                        "process 0 of %d waits at %s for %s, %.0f s at most.",
                        *(count, _name(address), missing, left),
                    )
                    continue
                problem = (
                    f"of {count} processes, {missing} did not come to {_name(address)} within "
                    f"{timeout_s:g} s: start them, with this coordinator, or expect fewer."
                )
                break
            stack.enter_context(connection)
            said = _read(connection, min(deadline, time.monotonic() + _PATIENCE_S))
            if said is None or not {"count", "index"} <= said.keys():
                continue  # a stranger
            problem = _objection(said, count, come)
            come.setdefault(said["index"], connection)
            if problem is not None and come[said["index"]] is not connection:
                _send(connection, {"problem": problem})
        for connection in come.values():
            _send(connection, {"problem": problem})
        for connection in come.values():
            _read(connection, deadline)  # until they have closed: then the port is free
    if problem is not None:
        raise HostsError(problem)


def _objection(said: dict[str, Any], count: int, come: dict[int, socket.socket]) -> str | None:
    index = said["index"]
    if said["count"] != count:
        return f"process {index} expects {said['count']} processes, process 0 expects {count}."
    if index in come:
        return f"two processes say that they are process {index} of {count}."
    return None


def _answer(
    address: tuple[str, int], count: int, index: int, deadline: float, timeout_s: float
) -> None:
    reply = None
    with _connect(address, index, deadline, timeout_s) as connection:
        _send(connection, {"count": count, "index": index})
        reply = _read(connection, deadline + timeout_s)  # process 0 may have started to wait later
    if reply is None:
        raise HostsError(
            f"process 0 at {_name(address)} took the call of process {index} and then was silent: "
            "it has stopped, or another program listens there; give it another port."
        )
    if reply["problem"] is not None:
        raise HostsError(reply["problem"])


def _connect(
    address: tuple[str, int], index: int, deadline: float, timeout_s: float
) -> socket.socket:
    started, told = time.monotonic(), False
    while True:
        left = max(deadline - time.monotonic(), 0.001)
        try:
            return socket.create_connection(
                address, timeout=min(left, _ATTEMPT_S if told else _SILENCE_S)
            )
        except OSError as error:
            if time.monotonic() >= deadline:
                raise HostsError(
                    f"coordinator {_name(address)} did not answer within {timeout_s:g} s "
                    f"({error}): is process 0 running there, and is the port open?"
                ) from error
            if not told and time.monotonic() - started >= _SILENCE_S:
                told = True
                _LOG.warning(
                    "process %d waits for process 0 at %s, %.0f s at most (%s).",
                    *(index, _name(address), left, error),
                )
            time.sleep(0.1)


def _listen(address: tuple[str, int]) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("", address[1]))
        listening.listen()
    except OSError as error:
        listening.close()
        raise HostsError(
            f"process 0 cannot listen on port {address[1]} ({error}): give the coordinator another."
        ) from error
    return listening


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # who is gone is missed by the reader
        connection.sendall(json.dumps(message).encode() + b"\n")


def _read(connection: socket.socket, deadline: float) -> dict[str, Any] | None:
    """One message; None if the other side closed, was silent or said something else."""
    text = b""
    try:
        while not text.endswith(b"\n"):
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            part = connection.recv(4096)
            if not part:
                return None
            text += part
        message = json.loads(text)
    except (OSError, ValueError):
        return None
    return message if isinstance(message, dict) else None


def _name(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"
