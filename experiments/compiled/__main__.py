"""python -m experiments.compiled WHAT: steps compiled for chips that are not here.

WHAT is one of

  dry-run        the training step of the ImageNet experiment's arms: memory, traffic, least time
  memory         peak memory of the Inception networks' training steps, batch by batch
  normalization  the cost that batch normalization adds to a step, bnjax's and Flax's

and takes --help. XLA's own compilers for TPUs and GPUs run on any machine; the steps do not run.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from bnjax.command import command
from experiments.compiled import dry_run, memory, normalization
from experiments.compiled.results import write
from experiments.compiled.rows import measure
from experiments.compiled.tables import memory_table, normalization_table
from experiments.harness.command_line import ending, unknown_word

_MODULE = "experiments.compiled"
_RESULTS = Path(__file__).parent / "results"
_WORDS = ("dry-run", "memory", "normalization")


def run_memory(
    config: Annotated[memory.Config, tyro.conf.arg(name="")] = memory.Config(),  # noqa: B008 - frozen
    out: Path = Path("runs/compiled/memory.json"),
) -> None:
    """Peak memory of a training step on one chip, by network and batch.

    Args:
        config: what to compile.
        out: File for the result as JSON. What was cut short goes on with the same command.
    """
    write(partial(measure, "memory", config), memory_table, out, _RESULTS)


def run_normalization(
    config: Annotated[normalization.Config, tyro.conf.arg(name="")] = normalization.Config(),  # noqa: B008
    out: Path = Path("runs/compiled/normalization.json"),
) -> None:
    """Bytes, memory, time and collectives that batch normalization adds, on TPUs and GPUs.

    Args:
        config: what to compile.
        out: File for the result as JSON. What was cut short goes on with the same command.
    """
    write(partial(measure, "normalization", config), normalization_table, out, _RESULTS)


@command()
def main() -> None:
    """Hands the command line on to what its first word names."""
    word, argv = next(iter(sys.argv[1:]), "--help"), sys.argv[2:]
    if word == "dry-run":
        dry_run.main(argv, _MODULE)
        return
    with ending(_MODULE):
        if word in ("-h", "--help"):
            print(__doc__)
            return
        if word not in _WORDS:
            raise ValueError(unknown_word(word, _WORDS))
        run = run_memory if word == "memory" else run_normalization
        tyro.cli(
            run,
            prog=f"python -m {_MODULE} {word}",
            args=argv,
            config=(tyro.conf.OmitArgPrefixes,),
        )


if __name__ == "__main__":
    main()
