"""What the commands of experiments have in common: presets, going on, and how they end."""

import argparse
import difflib
import shlex
import signal
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bnjax.data import DataError
from bnjax.evidence.records import RecordError
from bnjax.paths import local_path
from bnjax.training.checkpoints import CheckpointError
from bnjax.training.loop import Interrupted
from bnjax.training.parallel import HostsError


@contextmanager
def ending(module: str) -> Iterator[None]:
    """Ends the process as a command does, if something ends what is inside.

    An interruption says how to go on, and exits with 128 plus the signal's number; an error that a
    user can mend is one line without a traceback.

    Args:
        module: what `python -m` was given.
    """

    def again(*flags: str) -> str:
        given = [argument for argument in sys.argv[1:] if argument not in flags]
        return shlex.join(["python", "-m", module, *given, *flags])

    try:
        yield
    except Interrupted as stop:
        print(f"\nStopped at step {stop.step:,}; saved. Go on with:\n  {again('--resume')}")
        sys.exit(128 + stop.signum)
    except KeyboardInterrupt:
        print(f"\nStopped; what was saved is kept. Go on with:\n  {again()}")
        sys.exit(128 + signal.SIGINT)
    except (CheckpointError, DataError, HostsError, RecordError, ValueError) as error:
        sys.exit(f"error: {error}")


def preset_in(argv: Sequence[str], presets: Collection[str], default: str) -> str:
    """The preset that is asked for; the default for an unknown one, which tyro refuses later."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", nargs="?")
    given = first.parse_known_args(argv)[0].preset
    return given if given in presets else default


def output_folder(out: Path) -> Path:
    """The folder of `--out`, made before anything is computed.

    Raises:
        ValueError: it is a URL, or cannot be made.
    """
    folder = local_path("--out", out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--out {folder} cannot be made ({error.strerror}): give a folder that you may write."
        ) from error
    return folder


def require_runs(out: Path) -> None:
    """Raises ValueError if there is nothing for `--resume` to go on with."""
    if not any(out.glob("*-s*/record.json")):
        raise ValueError(f"--resume: {out} holds no run to go on with; leave --resume out.")


def unknown_word(word: str, known: Collection[str]) -> str:
    """The error for a word in front that is no subcommand; it suggests the nearest that is."""
    near = difflib.get_close_matches(word, known, n=1)
    remedy = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}."
    return f"there is no subcommand {word!r}: {remedy}"
