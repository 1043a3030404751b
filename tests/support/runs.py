"""Runs of the experiments, without a command line."""

from dataclasses import replace

from experiments.harness.experiment import RunLog
from experiments.imagenet_inception.experiment import EXPERIMENT as INCEPTION

JAX_HAS_STARTED = "experiments.mnist_lenet.experiment.one_cpu_device_per_core", lambda: None
"""What the command of MNIST asks for before JAX starts, and nothing in its place."""


def inception_task(config, arm, seed=0):
    """The run of an Inception network."""
    return INCEPTION.tasks_of(replace(config, arms=(arm,), seeds=seed + 1))[-1]


class Entries(RunLog):
    """What one run logs."""

    def __init__(self):
        self.entries = []

    def log(self, position, entry):
        self.entries.append(entry)
