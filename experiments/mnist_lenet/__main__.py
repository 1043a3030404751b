"""python -m experiments.mnist_lenet: Figure 1 of Ioffe & Szegedy 2015 from one command."""

from experiments.harness.main import run_command
from experiments.mnist_lenet.experiment import EXPERIMENT


def main() -> None:
    """Reads the command line, trains, prints tables, draws figures."""
    run_command(EXPERIMENT)


if __name__ == "__main__":
    main()
