"""How a command ends, and commands that run in this process."""

import sys
from typing import NamedTuple


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def in_process(main, monkeypatch, capsys):
    """What runs a command; a message to exit with goes to `err`, as Python does it."""

    def call(*arguments) -> Ended:
        monkeypatch.setattr(sys, "argv", ["main", *map(str, arguments)])
        code, message = 0, ""
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
            message = "" if isinstance(stop.code, int) else f"{stop.code}\n"
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err + message)

    return call
