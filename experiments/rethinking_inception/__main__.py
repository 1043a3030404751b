"""python -m experiments.rethinking_inception: from GoogLeNet to Inception-v3, row by row."""

from experiments.harness.main import run_command
from experiments.rethinking_inception.experiment import EXPERIMENT


def main() -> None:
    """Reads the command line, trains, prints tables, draws the figure."""
    run_command(EXPERIMENT)


if __name__ == "__main__":
    main()
