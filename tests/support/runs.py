"""Runs of the experiments, without a command line."""

from dataclasses import replace

from experiments.harness.experiment import RunLog
from experiments.imagenet_inception.experiment import EXPERIMENT as INCEPTION


def inception_task(config, arm, seed=0):
    """The run of an Inception network."""
    return INCEPTION.tasks(replace(config, arms=(arm,), seeds=seed + 1))[-1]


class Entries(RunLog):
    """What one run logs."""

    def __init__(self):
        self.entries = []

    def log(self, position, entry):
        self.entries.append(entry)
