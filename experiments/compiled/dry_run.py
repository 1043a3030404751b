"""The training step of an experiment's arms: memory, traffic and least time.

`python -m experiments.imagenet_inception dry-run` and `experiments.rethinking_inception` have it.
"""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import tyro

from bnjax.compilers.topologies import Topology, find_topologies
from bnjax.data.sets import FACTS
from bnjax.training.parallel import DataParallel, How
from experiments.compiled.results import write
from experiments.compiled.rows import SCHEMA, Case, Progress, Result, compile_cases
from experiments.compiled.steps import AbstractStep
from experiments.compiled.tables import dry_run_table
from experiments.harness.bounds import check_several
from experiments.harness.command_line import ending, preset_in
from experiments.harness.experiment import Experiment
from experiments.harness.images.config import ImageConfig
from experiments.harness.images.programs import Resident, Views, training_program

PER_CHIP = 32
"""Images on a chip: the paper's mini-batch, of one replica."""
MOST_PER_CHIP = 1 << 16
"""More images of 224 pixels than any chip holds."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Compiles the training step for TPUs, GPUs or CPU devices that need not be here.

    Prints, for each arm and topology, memory, FLOPs, bytes, collectives and the least time of a
    step. One step a dispatch is compiled, whatever steps_per_dispatch says. --arm is --arms. With
    --pipeline resident each chip holds all training images, of the network's size.
    """

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


def subcommand(
    experiment: Experiment, arm: str, module: str | None = None
) -> Callable[[Sequence[str]], None]:
    """Returns what `run_command` takes for `dry-run`.

    Args:
        experiment: whose arms are compiled; they are networks of images.
        arm: the one that is compiled if the command line names none.
        module: what `python -m` was given; the experiment's by default.
    """
    return partial(main, experiment, arm, module or experiment.module)


def main(experiment: Experiment, arm: str, module: str, argv: Sequence[str]) -> None:
    """Reads the command line after `dry-run`; compiles, prints a table."""
    with ending(module):
        arguments = _parse(argv, module, experiment, arm)
        write(
            partial(
                dry_run,
                experiment,
                arguments.config,
                arguments.topology,
                per_chip=arguments.per_chip,
                how=arguments.parallel,
            ),
            partial(dry_run_table, arms=experiment.arms),
            arguments.out,
            experiment.results,
        )


def dry_run(
    experiment: Experiment,
    config: Any,
    topologies: Sequence[str],
    *,
    per_chip: int | None = PER_CHIP,
    how: How = "jit",
    keep: Path | None = None,
    progress: Progress = lambda text: None,
) -> Result:
    """Compiles the step of each arm for each topology.

    Args:
        experiment: whose configuration it is.
        config: of the run, but for `steps_per_dispatch`, which is one here.
        topologies: names, see `bnjax.compilers.topologies`.
        per_chip: images on each chip; None to split `batch_size`.
        how: the way that the chips share the step.
        keep: a file for the rows until all are there: the same call goes on after it.
        progress: is told what is compiled next.

    Returns:
        JSON values. A row that a compiler refused says why under `refused`.

    Raises:
        ValueError: for an unknown topology, or a batch that it cannot share.
        MissingCompilerError: if a compiler is not installed, with what installs it.
    """
    check_several("topology", topologies)
    if per_chip is not None and not 1 <= per_chip <= MOST_PER_CHIP:
        raise ValueError(f"per_chip must be in 1 .. {MOST_PER_CHIP} or None, got {per_chip}.")
    classes = _classes(config.data)
    found, missing = find_topologies(topologies)
    for error in missing.values():
        raise error
    cases = []
    for arm in config.arms:
        for topology in found:
            parallel = DataParallel(how, devices=topology.devices)
            size = config.batch_size if per_chip is None else per_chip * parallel.device_count
            one_step = replace(config, batch_size=size, steps_per_dispatch=1)
            _check_batch(one_step, topology, parallel)  # all, before minutes go into the first
            chosen: Any = experiment.arm(arm, one_step)
            pixels = chosen.image_size(one_step)
            identity = {"arm": arm, "batch_size": size, "image_size": pixels}
            make = partial(arm_step, one_step, chosen, parallel, classes)
            cases.append(Case(identity, topology, parallel, make))
    settings = {"schema": SCHEMA, "config": asdict(config), "per_chip": per_chip, "parallel": how}
    return compile_cases(cases, settings, keep=keep, progress=progress)


def arm_step(config: Any, arm: Any, parallel: DataParallel, classes: int) -> AbstractStep:
    """Returns what trains an arm, `config.steps_per_dispatch` steps at a time.

    Raises:
        ValueError: for a batch that the devices cannot share.
    """
    views: Views | None = None
    shared: tuple[Resident, ...] = ()
    if config.pipeline == "resident":
        size, count = arm.image_size(config), FACTS[config.data].train
        image = (size, size, 3)
        views = Views(image, arm.augmentation(config), config.centre)
        shared = (Resident.abstract(count, image),)
    program = training_program(config, arm, parallel, classes=classes, views=views)
    scalars = (jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), jnp.float32))
    state = jax.eval_shape(program.init, *scalars)
    return AbstractStep(program.step, state, program.batch_shapes, program.axis, shared=shared)


def _classes(data: str) -> int:
    if data not in FACTS:
        raise ValueError(
            f"data={data}: how many classes it has is not known without it. Give a named data set "
            f"with as many: {', '.join(FACTS)}."
        )
    return FACTS[data].classes


def _check_batch(config: ImageConfig, topology: Topology, parallel: DataParallel) -> None:
    try:
        parallel.check_batch(config.batch_size // config.micro_batches)
    except ValueError as error:
        raise ValueError(
            f"{topology.name}: {error} Or give each chip a batch of its own: --per-chip {PER_CHIP}."
        ) from None


def _parse(argv: Sequence[str], module: str, experiment: Experiment, arm: str) -> Any:
    presets = experiment.presets
    preset = preset_in(argv, presets, default="paper")
    chosen = _arguments_class(experiment, arm)
    return tyro.cli(
        chosen,
        prog=f"python -m {module} dry-run",
        description=inspect.getdoc(Arguments),
        args=[re.sub("^--arm(?==|$)", "--arms", argument) for argument in argv],
        default=chosen(config=replace(presets[preset], arms=(arm,)), preset=preset),
        config=(tyro.conf.OmitArgPrefixes,),
    )


def _arguments_class(experiment: Experiment, arm: str) -> type[Any]:
    """The arguments, a dataclass for tyro, with the fields of an experiment's configuration."""
    words = f"Starting values of all fields; here with {arm} alone."
    preset: Any = Annotated[Literal[tuple(experiment.presets)], tyro.conf.arg(help=words)]
    fields = [("config", experiment.config), ("preset", preset)]
    return make_dataclass("Arguments", fields, bases=(Arguments,), frozen=True, kw_only=True)
