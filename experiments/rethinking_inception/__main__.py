"""python -m experiments.rethinking_inception: from GoogLeNet to Inception-v3, row by row."""

from experiments.harness.images import evaluate
from experiments.harness.main import run_command
from experiments.rethinking_inception.experiment import EXPERIMENT
from experiments.rethinking_inception.page import PUBLISHED


def main() -> None:
    """Reads the command line, trains, prints tables, draws the figure; or evaluates."""
    run_command(EXPERIMENT, {"evaluate": evaluate.subcommand(EXPERIMENT, PUBLISHED)})


if __name__ == "__main__":
    main()
