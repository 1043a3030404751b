"""What the commands of experiments have in common: presets, going on, and how they end."""

import argparse
import difflib
import errno
import resource
import shlex
import signal
import sys
import traceback
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import absl.logging

from bnjax.compilers.topologies import MissingCompilerError
from bnjax.data import DataError
from bnjax.evidence.records import RecordError
from bnjax.training.checkpoints import CheckpointError
from bnjax.training.loop import Interrupted, OutOfTime
from bnjax.training.parallel import HostsError
from experiments.harness.experiment import ROOT

_ADDRESSES = 1 << 31
_REMEDIES = {
    errno.ENOSPC: "make room, then go on with the same command",
    errno.EDQUOT: "make room, then go on with the same command",
    errno.EROFS: "give a folder that you may write",
    errno.EACCES: "give a folder that you may write",
    errno.EPERM: "give a folder that you may write",
    errno.ENOENT: "if it was moved or removed, put it back, and go on with the same command",
    errno.ENOTDIR: "give a folder, not a file",
    errno.EISDIR: "give a file, not a folder",
    errno.ENAMETOOLONG: "give a shorter name",
}


@contextmanager
def ending(module: str, *, saves: bool = False) -> Iterator[None]:
    """Ends the process as a command does, if something ends what is inside.

    An interruption says how to go on, and exits with 128 plus the signal's number; so does the end
    of the time that was asked for, and exits with 0. An error that a user can mend is one line
    without a traceback; one of the code, an arm's say, keeps it.

    Args:
        module: what `python -m` was given.
        saves: whether the command saves checkpoints, and takes `--resume`.
    """

    def again(*flags: str) -> str:
        given = [argument for argument in sys.argv[1:] if argument not in flags]
        return shlex.join(["python", "-m", *module.split(), *given, *flags])

    if saves:
        # Orbax tells what fails once a thread, with tracebacks; CheckpointError tells it once.
        absl.logging.set_verbosity(absl.logging.FATAL)
    try:
        _check_address_space()
        _refuse_empty(sys.argv[1:])
        yield
    except Interrupted as stop:
        if saves:
            _say(f"\nStopped at step {stop.step:,}; saved. Go on with:\n  {again('--resume')}")
        else:
            _say(f"\nStopped. Again with:\n  {again()}")
        sys.exit(128 + stop.signum)
    except OutOfTime as stop:
        _say(f"\nStopped, {stop}. Go on with:\n  {again()}")
    except KeyboardInterrupt:
        kept = "; what was saved is kept. Go on with" if saves else ". Again with"
        _say(f"\nStopped{kept}:\n  {again()}")
        sys.exit(128 + signal.SIGINT)
    except (CheckpointError, DataError, HostsError, MissingCompilerError, RecordError) as error:
        sys.exit(f"error: {error}")
    except ValueError as error:
        if not _refused(error):
            raise
        sys.exit(f"error: {error}")
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        where = "" if error.filename is None else f"{error.filename}: "
        sys.exit(f"error: {where}{error.strerror}: {_REMEDIES[error.errno]}.")


def _refused(error: ValueError) -> bool:
    """Whether a `raise` of this repository made the error."""
    # Those name what to mend; what Python or a library raises does not, without the lines before.
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = any(Path(last.filename).is_relative_to(ROOT / room) for room in ("bnjax", "experiments"))
    return ours and (last.line or "").startswith("raise ")


def _say(text: str) -> None:
    """To a terminal that may be gone: its end is one of the signals."""
    with suppress(OSError):
        print(text, flush=True)


def _check_address_space() -> None:
    """XLA's threads and libraries abort the process, without a word of the cause."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < _ADDRESSES:
        raise ValueError(
            f"the address space is limited to {limit / 1e9:.1f} GB, and JAX needs more than "
            f"{_ADDRESSES / 1e9:.1f} GB: ulimit -v unlimited."
        )


def _refuse_empty(argv: Sequence[str]) -> None:
    """An empty path would be the current folder; it comes from a variable that is not set."""
    for flag, argument in zip(("the first argument", *argv), argv, strict=False):
        if not argument or (argument.startswith("--") and argument.endswith("=")):
            name = argument.rstrip("=") or flag
            raise ValueError(f"{name} is empty: give it a value, or leave it out.")


def preset_in(argv: Sequence[str], presets: Collection[str], default: str) -> str:
    """The preset that is asked for; the default for an unknown one, which tyro refuses later."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", nargs="?")
    given = first.parse_known_args(argv)[0].preset
    return given if given in presets else default


def refuse_no_values(argv: Sequence[str], config: type[Any]) -> None:
    """Refuses a list's flag without a value; as an empty list it would change what is run, unsaid.

    Raises:
        ValueError: naming the flag.
    """
    flags = {"--" + f.name.replace("_", "-") for f in fields(config) if "tuple[" in str(f.type)}
    for argument, after in pairwise((*argv, "--")):
        flag = argument.replace("_", "-")
        if flag in flags and after.startswith("--"):
            raise ValueError(f"{flag} has no value: give it one or more, or leave it out.")


def unknown_word(word: str, known: Collection[str]) -> str:
    """The error for a word in front that is no subcommand; it suggests the nearest that is."""
    near = difflib.get_close_matches(word, known, n=1)
    remedy = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}."
    return f"there is no subcommand {word!r}: {remedy}"
