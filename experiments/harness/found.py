"""The experiments of this repository: the folders that have an `experiment.py`."""

import importlib

from experiments.harness.experiment import ROOT, Experiment

RENAME = "its name must be that of its folder, by which its results are found."


def names() -> list[str]:
    """Returns the experiments' names, sorted."""
    folders = (path.parent.name for path in (ROOT / "experiments").glob("*/experiment.py"))
    return sorted(name for name in folders if name != "harness")


def experiment(name: str) -> Experiment:
    """Returns an experiment.

    Raises:
        ValueError: if there is none of this name.
    """
    if name not in names():
        raise ValueError(f"there is no experiment {name!r:.80}; choose from {', '.join(names())}.")
    found = importlib.import_module(f"experiments.{name}.experiment").EXPERIMENT
    if found.name != name:
        raise ValueError(f"the experiment in experiments/{name} is named {found.name!r}: {RENAME}")
    return found


def experiments() -> list[Experiment]:
    """Returns all of them."""
    return [experiment(name) for name in names()]
