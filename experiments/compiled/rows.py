"""Rows of figures: each is what compilers say of one step for one topology."""

import json
import os
import re
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax

from bnjax.compilers.cost import DoesNotFitError
from bnjax.compilers.step_time import step_time
from bnjax.compilers.topologies import (
    MissingCompilerError,
    Topology,
    compiler_versions,
    find_topology,
)
from bnjax.evidence.records import environment, require_commit
from bnjax.paths import local_path
from bnjax.training.parallel import DataParallel
from experiments.command_line import output_folder
from experiments.compiled.steps import AbstractStep, compile_step
from experiments.kept_rows import KeptRows

Row = dict[str, Any]
Result = dict[str, Any]


class Case(NamedTuple):
    """A step to compile for a topology; one row.

    Attributes:
        identity: JSON values that tell it, with the topology's name, from other cases.
        topology: the chips.
        parallel: over the topology's devices.
        make: makes the step.
    """

    identity: dict[str, Any]
    topology: Topology
    parallel: DataParallel
    make: Callable[[], AbstractStep]


def compile_cases(cases: Sequence[Case], settings: dict[str, Any], keep: Path | None) -> Result:
    """Compiles all cases, and tells on standard error which is next.

    Args:
        cases: to compile, in the order of the rows.
        settings: JSON values that the rows depend on.
        keep: a file for the rows until all are there: the same call goes on after it.

    Returns:
        The settings, with versions under `environment` and `compilers`, and `rows`. A row that a
        compiler refused says why under `refused`.
    """
    conditions = {**settings, "environment": environment(), "compilers": compiler_versions()}
    kept, rows = KeptRows(keep, conditions), []
    for case in cases:
        identity = {**case.identity, "topology": case.topology.name}
        if kept.find(**identity) is None:
            named = ", ".join(f"{name} {value}" for name, value in identity.items())
            print(f"compiling {named}", file=sys.stderr, flush=True)
            kept.add(identity | figures(case))
        rows.append(kept.find(**identity))
    kept.discard()
    return conditions | {"rows": rows}


def figures(case: Case) -> Row:
    """Compiles a case; returns what the compiler says, or why it refuses under `refused`."""
    chip = case.topology.chip
    row: Row = {
        "platform": chip.platform,
        "devices": case.parallel.device_count,
        "memory_bytes": chip.memory_bytes,
        "refused": None,
    }
    try:
        cost = compile_step(case.make(), case.topology, case.parallel)
    except DoesNotFitError as error:
        return row | {"refused": str(error)}
    time = step_time(cost, chip)
    return {
        **row,
        **asdict(cost),
        "collectives": {c.kind: {"count": c.count, "bytes": c.bytes} for c in cost.collectives},
        "least_time": None if time is None else time._asdict() | {"seconds": time.seconds},
    }


def find_topologies(names: Sequence[str]) -> tuple[list[Topology], dict[str, MissingCompilerError]]:
    """Returns the topologies that can be compiled for, and why the others cannot, by name.

    Raises:
        ValueError: for a topology that does not exist.
        MissingCompilerError: if there is none to compile for.
    """
    _start_with_enough_cpu_devices(names)
    found: list[Topology] = []
    missing: dict[str, MissingCompilerError] = {}
    for name in names:
        try:
            found.append(find_topology(name))
        except MissingCompilerError as error:
            missing[name] = error
    if missing and not found:
        raise next(reversed(missing.values()))
    return found, missing


def _start_with_enough_cpu_devices(names: Sequence[str]) -> None:
    """JAX starts once, with as many as the first topology asks for."""
    counts = [int(size) for size in re.findall(r"\bcpu:([1-9]\d*)\b", " ".join(names))]
    if counts:
        find_topology(f"cpu:{max(counts)}")


def check_names(field: str, names: Sequence[Any], known: Collection[str] | None = None) -> None:
    """Raises ValueError unless there are one or more, each once and known."""
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{field} must name one or more, each once, got {tuple(names)}.")
    for name in names:
        if known is not None and name not in known:
            raise ValueError(f"{field}: unknown {name!r}; choose from {', '.join(known)}.")


def write(
    measure: Callable[[Path | None], Result],
    table: Callable[[Result], str],
    out: Path | None,
    results: Path,
) -> None:
    """Measures, writes the result as JSON and prints its table.

    Args:
        measure: of the file that keeps rows.
        table: of the result.
        out: the file; None to write none.
        results: the folder of committed results, which must come from a commit.

    Raises:
        ValueError: before anything is compiled, if `out` cannot be written.
    """
    jax.config.update("jax_platforms", "cpu")  # nothing runs: leave an accelerator to others
    out = None if out is None else _file(out, results)
    result = measure(None if out is None else out.with_suffix(".rows.tmp"))
    try:
        if out is not None:
            out.write_text(json.dumps(result, indent=1) + "\n")
    finally:  # a table needs no disk
        print(table(result))


def _file(out: Path, results: Path) -> Path:
    """Checked before minutes go into what could not be written."""
    out = local_path("--out", out)
    out = output_folder(out.parent) / out.name
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder: give a file, such as {out / 'result.json'}.")
    if out.exists() and not os.access(out, os.W_OK):
        raise ValueError(f"--out {out} cannot be written: give a file that you may write.")
    require_commit(out.parent, results)
    return out
