"""python -m experiments.norms: BN-Inception without and with several normalizations."""

from experiments.harness.main import run_command
from experiments.norms.experiment import EXPERIMENT


def main() -> None:
    """Reads the command line, trains, prints tables, draws the figure."""
    run_command(EXPERIMENT)


if __name__ == "__main__":
    main()
