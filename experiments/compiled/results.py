"""The file and the table of a result."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import jax

from bnjax.evidence.environment import require_commit
from bnjax.paths import local_path, writable_folder
from experiments.compiled.rows import Result


def write(
    measure: Callable[..., Result],
    table: Callable[[Result], str],
    out: Path | None,
    results: Path,
) -> None:
    """Measures, writes the result as JSON and prints its table.

    Args:
        measure: takes `keep` and `progress`, as `compile_cases` does.
        table: of the result.
        out: the file; None to write none.
        results: the folder of committed results, which must come from a commit.

    Raises:
        ValueError: before anything is compiled, if `out` cannot be written.
    """
    jax.config.update("jax_platforms", "cpu")  # nothing runs: leave an accelerator to others
    out = None if out is None else _file(out, results)
    keep = None if out is None else out.with_suffix(".rows.tmp")
    result = measure(keep=keep, progress=_say)
    try:
        if out is not None:
            out.write_text(json.dumps(result, indent=1) + "\n")
    finally:  # a table needs no disk
        print(table(result))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _file(out: Path, results: Path) -> Path:
    """Returns the file, checked before minutes go into what could not be written."""
    out = local_path("--out", out)
    out = writable_folder("--out", out.parent) / out.name
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder: give a file, such as {out / 'result.json'}.")
    if out.exists() and not os.access(out, os.W_OK):
        raise ValueError(f"--out {out} cannot be written: give a file that you may write.")
    require_commit(out.parent, results)
    return out
