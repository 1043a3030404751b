"""python -m experiments.why_it_works: explanations, each measured; a table and a figure."""

from experiments.harness.main import run_command
from experiments.why_it_works.experiment import EXPERIMENT


def main() -> None:
    """Reads the command line, measures, prints the table, draws the figure."""
    run_command(EXPERIMENT)


if __name__ == "__main__":
    main()
