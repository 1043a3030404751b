"""Training steps compiled for chips that are not here: memory, traffic, collectives, time."""
