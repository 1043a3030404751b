"""python -m experiments.imagenet_inception: Figures 2 and 3 of the paper from one command."""

from experiments.compiled import dry_run
from experiments.harness.images import evaluate
from experiments.harness.main import run_command
from experiments.imagenet_inception.experiment import EXPERIMENT
from experiments.imagenet_inception.page import PUBLISHED


def main() -> None:
    """Reads the command line, trains, prints tables, draws figures; or hands it on."""
    words = {
        "dry-run": dry_run.subcommand(EXPERIMENT, "bn_x5"),
        "evaluate": evaluate.subcommand(EXPERIMENT, PUBLISHED),
    }
    run_command(EXPERIMENT, words)


if __name__ == "__main__":
    main()
