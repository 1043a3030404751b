"""`python -m bnjax.doctor`: describes the machine, and what will go wrong on it, with remedies."""

import argparse

from bnjax.command import command
from bnjax.doctor.report import check


@command()
def main(arguments: list[str] | None = None) -> None:
    """Prints the report."""
    argparse.ArgumentParser(
        prog="python -m bnjax.doctor",
        description=f"{__doc__} It starts JAX, but never where several hosts have to start theirs "
        "together, and changes nothing.",
    ).parse_args(arguments)
    check()


if __name__ == "__main__":
    main()
