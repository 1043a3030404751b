"""Rows of figures, from the compilers: one step for one topology each."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from bnjax.compilers.cost import DoesNotFitError
from bnjax.compilers.step_time import step_time
from bnjax.compilers.topologies import Topology, compiler_versions, find_topologies
from bnjax.evidence.environment import environment
from bnjax.training.parallel import DataParallel
from experiments.compiled.kept_rows import KeptRows, Row
from experiments.compiled.steps import AbstractStep, compile_step

SCHEMA = 1

Result = dict[str, Any]
Progress = Callable[[str], None]


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


def measure(
    name: str, config: Any, *, keep: Path | None = None, progress: Progress = lambda text: None
) -> Result:
    """Compiles every case of a configuration for every topology.

    Args:
        name: the result's.
        config: of `memory` or `normalization`.
        keep: as for `compile_cases`.
        progress: as for `compile_cases`.

    Returns:
        JSON values, raw; `missing` names the topologies whose compiler is not installed, and why.

    Raises:
        ValueError: for a topology that does not exist.
        MissingCompilerError: if nothing at all can be compiled.
    """
    found, missing = find_topologies(config.topologies)
    settings = {
        "schema": SCHEMA,
        "benchmark": name,
        "config": asdict(config),
        "missing": {topology: str(error) for topology, error in missing.items()},
    }
    cases = [case for topology in found for case in config.cases(topology)]
    return compile_cases(cases, settings, keep=keep, progress=progress)


def compile_cases(
    cases: Sequence[Case],
    settings: dict[str, Any],
    *,
    keep: Path | None = None,
    progress: Progress = lambda text: None,
) -> Result:
    """Compiles all cases.

    Args:
        cases: to compile, in the order of the rows.
        settings: JSON values that the rows depend on.
        keep: a file for the rows until all are there: the same call goes on after it.
        progress: is told what is compiled next.

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
            progress(f"compiling {named}")
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
