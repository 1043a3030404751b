"""python -m experiments.rethinking_inception: from GoogLeNet to Inception-v3, row by row."""

from experiments.compiled import dry_run
from experiments.harness.images import evaluate
from experiments.harness.main import run_command
from experiments.rethinking_inception import sizes
from experiments.rethinking_inception.experiment import EXPERIMENT
from experiments.rethinking_inception.page import PUBLISHED


def main() -> None:
    """Reads the command line, trains, prints tables, draws the figure; or hands it on."""
    words = {
        "dry-run": dry_run.subcommand(EXPERIMENT, "inception_v3"),
        "sizes": sizes.main,
        "evaluate": evaluate.subcommand(EXPERIMENT, PUBLISHED),
    }
    run_command(EXPERIMENT, words)


if __name__ == "__main__":
    main()
