"""python -m experiments.imagenet_inception: Figures 2 and 3 of the paper from one command."""

from experiments.compiled import dry_run
from experiments.harness.main import run_command
from experiments.imagenet_inception import evaluate
from experiments.imagenet_inception.experiment import EXPERIMENT


def main() -> None:
    """Reads the command line, trains, prints tables, draws figures; or hands it on."""
    run_command(EXPERIMENT, {"dry-run": dry_run.main, "evaluate": evaluate.main})


if __name__ == "__main__":
    main()
