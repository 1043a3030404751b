"""What is refused before any compute, since it would fail or never end after hours of it."""

PASSES = 100
"""At most so many passes over the training set go into the statistics of Algorithm 2."""


def check_population(batches: int, batch_size: int, examples: int) -> None:
    """Raises ValueError if Algorithm 2 is to average over more than `PASSES` passes."""
    most = PASSES * examples // batch_size
    if batches > most:
        raise ValueError(
            f"population_batches must be at most {most:,}, {PASSES} passes over the {examples:,} "
            f"training examples, got {batches:,}."
        )
