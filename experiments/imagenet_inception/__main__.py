"""python -m experiments.imagenet_inception: Figures 2 and 3 of the paper from one command."""

from experiments.harness.main import main
from experiments.imagenet_inception import dry_run, evaluate
from experiments.imagenet_inception.experiment import EXPERIMENT

if __name__ == "__main__":
    main(EXPERIMENT, {"dry-run": dry_run.main, "evaluate": evaluate.main})
