"""python -m experiments.cite RESULT: the BibTeX of results, with version, commit and data."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from bnjax.command import command
from experiments.harness.citations import bibtex, origin
from experiments.harness.command_line import ending


@dataclass(frozen=True)
class Arguments:
    """Prints BibTeX of results: the version and commit that made them, and their data's digest.

    Author and address are those of CITATION.cff: a fork whose commits made results states its own.
    """

    results: tyro.conf.Positional[tuple[Path, ...]]
    """A run's folder, a folder of runs, or a file of results; one or more. For example
    experiments/mnist_lenet/results/mlp_bn-s0."""


@command()
def main() -> None:
    """Reads the command line; prints."""
    with ending("experiments.cite"):
        results = tyro.cli(Arguments, prog="python -m experiments.cite").results
        if not results:
            raise ValueError(
                "give one or more results, for example experiments/mnist_lenet/results/mlp_bn-s0."
            )
        print(bibtex(origin(results)))


if __name__ == "__main__":
    main()
