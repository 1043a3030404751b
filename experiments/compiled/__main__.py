"""python -m experiments.compiled WHAT: steps compiled for chips that are not here.

WHAT is one of

  dry-run        the training step of the ImageNet experiment's arms: memory, traffic, least time
  memory         peak memory of the Inception networks' training steps, batch by batch
  normalization  the cost that batch normalization adds to a step, bnjax's and Flax's

and takes --help. XLA's own compilers for TPUs and GPUs run on any machine; the steps do not run.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from bnjax.command import command
from experiments.compiled import dry_run, memory, normalization
from experiments.compiled.results import write
from experiments.compiled.rows import Result, measure
from experiments.compiled.tables import memory_table, normalization_table
from experiments.harness.command_line import ending, unknown_word
from experiments.imagenet_inception.experiment import EXPERIMENT

_MODULE = "experiments.compiled"
_RESULTS = Path(__file__).parent / "results"
_MEASURED: dict[str, tuple[type[Any], Callable[[Result], str]]] = {
    "memory": (memory.Config, memory_table),
    "normalization": (normalization.Config, normalization_table),
}
_OUT = "File for the result as JSON. What was cut short goes on with the same command."
_WORDS = ("dry-run", *_MEASURED)


def make_command(word: str) -> Callable[..., None]:
    """Returns what is measured under this word as a function whose arguments tyro reads."""
    settings, table = _MEASURED[word]

    def run(
        config: Annotated[settings, tyro.conf.arg(name="")],  # type: ignore[valid-type]
        out: Annotated[Path, tyro.conf.arg(help=_OUT)] = Path(f"runs/compiled/{word}.json"),
    ) -> None:
        write(partial(measure, word, config), table, out, _RESULTS)

    run.__doc__ = settings.__doc__
    return run


@command()
def main() -> None:
    """Hands the command line on to what its first word names."""
    word, argv = next(iter(sys.argv[1:]), "--help"), sys.argv[2:]
    if word == "dry-run":
        dry_run.subcommand(EXPERIMENT, "bn_x5", _MODULE)(argv)
        return
    with ending(_MODULE):
        if word in ("-h", "--help"):
            print(__doc__)
            return
        if word not in _WORDS:
            raise ValueError(unknown_word(word, _WORDS))
        tyro.cli(
            make_command(word),
            prog=f"python -m {_MODULE} {word}",
            args=argv,
            config=(tyro.conf.OmitArgPrefixes,),
        )


if __name__ == "__main__":
    main()
