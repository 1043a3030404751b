"""python -m experiments.norms: BN-Inception without and with several normalizations."""

from experiments.harness.images import evaluate
from experiments.harness.main import run_command
from experiments.norms.experiment import EXPERIMENT


def main() -> None:
    """Reads the command line, trains, prints tables, draws the figure; or evaluates."""
    run_command(EXPERIMENT, {"evaluate": evaluate.subcommand(EXPERIMENT)})


if __name__ == "__main__":
    main()
