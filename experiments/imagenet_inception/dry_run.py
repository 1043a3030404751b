"""python -m experiments.imagenet_inception dry-run: a run's step, compiled for chips elsewhere.

XLA's own compilers for TPUs and GPUs run on any machine. They say what a step holds, moves and
exchanges on each chip; makers' rates say how long that takes at least. Nothing runs.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bnjax.compilers.cost import DoesNotFitError, ProgramCost, abstract, compile_program
from bnjax.compilers.step_time import step_time
from bnjax.compilers.topologies import (
    Topology,
    compiler_versions,
    find_topology,
)
from bnjax.data.image_data import FACTS
from bnjax.evidence.records import environment, require_commit
from bnjax.paths import local_path
from bnjax.training.parallel import DataParallel, How
from experiments.command_line import ending, output_folder, preset_in
from experiments.imagenet_inception.config import PRESETS, Config
from experiments.imagenet_inception.dry_run_table import table
from experiments.imagenet_inception.programs import training_program
from experiments.kept_rows import KeptRows

SCHEMA = 1
_RESULTS = Path(__file__).parent / "results"
PER_CHIP = 32
"""Images on a chip: the paper's mini-batch, of one replica."""
MOST_PER_CHIP = 1 << 16
"""Of 224 pixels, as many as no chip holds."""


@dataclass(frozen=True)
class Arguments:
    """Compiles the training step for TPUs, GPUs or CPU devices that need not be here.

    Prints, for each arm and topology, memory, FLOPs, bytes, collectives and the least time of a
    step. One step a dispatch is compiled, whatever steps_per_dispatch says. --arm is --arms.
    """

    config: Config
    preset: Literal["quick", "cifar", "paper"] = "paper"
    """Starting values of all fields; here with bn_x5 alone."""
    topology: tuple[str, ...] = ("v5e:2x4",)
    """What to compile for, one or several: v5e:1x1 to v5e:16x16, v4:2x2x2, v5p:4x4x4, v6e:2x4 (TPU
    slices), h100:8 (GPUs), cpu:8 (CPU devices)."""
    per_chip: int | None = PER_CHIP
    """Images on each chip, so that batch_size is so many times the chips; None: batch_size is
    split over them."""
    parallel: How = "jit"
    """How the chips share the step."""
    out: Path | None = None
    """File for the result as JSON. A dry run that was cut short goes on with the same command."""


def main(argv: Sequence[str]) -> None:
    """Reads the command line after `dry-run`; compiles, prints a table."""
    with ending("experiments.imagenet_inception"):
        arguments = _parse(argv)
        jax.config.update("jax_platforms", "cpu")  # nothing runs: leave an accelerator to others
        out = None if arguments.out is None else _file(arguments.out)
        result = dry_run(
            arguments.config,
            arguments.topology,
            per_chip=arguments.per_chip,
            how=arguments.parallel,
            keep=None if out is None else out.with_suffix(".rows.tmp"),
            progress=lambda text: print(text, file=sys.stderr, flush=True),
        )
        try:
            if out is not None:
                out.write_text(json.dumps(result, indent=1) + "\n")
        finally:  # a table needs no disk
            print(table(result))


def _file(out: Path) -> Path:
    """Checked before minutes go into what could not be written."""
    out = local_path("--out", out)
    out = output_folder(out.parent) / out.name
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder: give a file, such as {out / 'dry_run.json'}.")
    if out.exists() and not os.access(out, os.W_OK):
        raise ValueError(f"--out {out} cannot be written: give a file that you may write.")
    require_commit(out.parent, _RESULTS)
    return out


def dry_run(
    config: Config,
    topologies: Sequence[str],
    *,
    per_chip: int | None = PER_CHIP,
    how: How = "jit",
    keep: Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Compiles the step of each arm for each topology.

    Args:
        config: of the run, but for `steps_per_dispatch`, which is one here.
        topologies: names, see `bnjax.compilers.topologies`.
        per_chip: images on each chip; None to split `batch_size`.
        how: the chips share the step.
        keep: a file for what is compiled, until all is: the same call goes on after it.
        progress: is told what is compiled next.

    Returns:
        JSON values. A row that a compiler refused says why under `refused`.

    Raises:
        ValueError: for an unknown topology, or a batch that it cannot share.
        MissingCompilerError: if a compiler is not installed, with what installs it.
    """
    if not topologies or len(set(topologies)) < len(topologies):
        raise ValueError(f"topology must name one or more, each once, got {tuple(topologies)}.")
    if per_chip is not None and not 1 <= per_chip <= MOST_PER_CHIP:
        raise ValueError(f"per_chip must be in 1 .. {MOST_PER_CHIP} or None, got {per_chip}.")
    _classes(config.data)
    _ask_for_cpu_devices(topologies)
    found = [find_topology(name) for name in topologies]
    tasks = [
        (arm, topology, DataParallel(how, devices=topology.devices))
        for arm in config.arms
        for topology in found
    ]
    configs = [_config(config, parallel.device_count, per_chip) for _, _, parallel in tasks]
    for chosen, (_, topology, parallel) in zip(configs, tasks, strict=True):
        _check_batch(chosen, topology, parallel)  # all of them, before minutes go into the first
    conditions = {
        "schema": SCHEMA,
        "config": asdict(config),
        "per_chip": per_chip,
        "parallel": how,
        "environment": environment(),
        "compilers": compiler_versions(),
    }
    kept, rows = KeptRows(keep, conditions), []
    for chosen, (arm, topology, parallel) in zip(configs, tasks, strict=True):
        if kept.find(arm=arm, topology=topology.name) is None:
            progress(f"compiling {arm} for {topology.name}, a batch of {chosen.batch_size:,}")
            kept.add(_row(chosen, arm, topology, parallel))
        rows.append(kept.find(arm=arm, topology=topology.name))
    kept.discard()
    return conditions | {"rows": rows}


def compile_step(
    config: Config, arm: str, topology: Topology, parallel: DataParallel
) -> ProgramCost:
    """The training program of a run, compiled for a topology.

    Args:
        config: of the run.
        arm: of it.
        topology: the chips.
        parallel: over the topology's devices.

    Raises:
        ValueError: for a batch that they cannot share.
        DoesNotFitError: if the compiler refuses it for want of memory.
    """
    program = training_program(config, arm, parallel, classes=_classes(config.data))
    scalars = (jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), jnp.float32))
    state = jax.eval_shape(program.init, *scalars)
    mesh = Mesh(np.array(parallel.devices), ("data",), axis_types=(AxisType.Auto,))
    by_example = P(*(None,) * program.axis, "data")
    return compile_program(
        parallel.compile_train(program.step, axis=program.axis),
        topology,
        abstract(state, NamedSharding(mesh, P())),
        abstract(program.batch_shapes, NamedSharding(mesh, by_example)),
    )


def _row(config: Config, arm: str, topology: Topology, parallel: DataParallel) -> dict[str, Any]:
    row: dict[str, Any] = {
        "arm": arm,
        "topology": topology.name,
        "platform": topology.chip.platform,
        "devices": parallel.device_count,
        "batch_size": config.batch_size,
        "memory_bytes": topology.chip.memory_bytes,
        "refused": None,
    }
    try:
        cost = compile_step(config, arm, topology, parallel)
    except DoesNotFitError as error:
        return row | {"refused": str(error)}
    time = step_time(cost, topology.chip)
    figures = asdict(cost) | {
        "collectives": {c.kind: {"count": c.count, "bytes": c.bytes} for c in cost.collectives},
        "least_time": None if time is None else time._asdict() | {"seconds": time.seconds},
    }
    return row | figures


def _classes(data: str) -> int:
    if data == "mnist5k":
        return 10
    if data not in FACTS:
        raise ValueError(
            f"data={data}: how many classes it has is not known without it. Give a named data set "
            f"with as many: {', '.join(FACTS)}."
        )
    return FACTS[data].classes


def _config(config: Config, devices: int, per_chip: int | None) -> Config:
    size = config.batch_size if per_chip is None else per_chip * devices
    return replace(config, batch_size=size, steps_per_dispatch=1)


def _check_batch(config: Config, topology: Topology, parallel: DataParallel) -> None:
    try:
        parallel.check_batch(config.batch_size // config.micro_batches)
    except ValueError as error:
        raise ValueError(
            f"{topology.name}: {error} Or give each chip a batch of its own: --per-chip {PER_CHIP}."
        ) from None


def _ask_for_cpu_devices(topologies: Sequence[str]) -> None:
    """For the largest first: JAX starts once, with as many as it was asked for."""
    counts = [int(size) for size in re.findall(r"\bcpu:([1-9]\d*)\b", " ".join(topologies))]
    if counts:
        find_topology(f"cpu:{max(counts)}")


def _parse(argv: Sequence[str]) -> Arguments:
    preset: Any = preset_in(argv, PRESETS, default="paper")
    return tyro.cli(
        Arguments,
        prog="python -m experiments.imagenet_inception dry-run",
        args=[re.sub("^--arm(?==|$)", "--arms", argument) for argument in argv],
        default=Arguments(replace(PRESETS[preset], arms=("bn_x5",)), preset),
        config=(tyro.conf.OmitArgPrefixes,),
    )
