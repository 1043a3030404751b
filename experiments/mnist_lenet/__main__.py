"""python -m experiments.mnist_lenet: Figure 1 of Ioffe & Szegedy 2015 from one command."""

from experiments.harness.main import main
from experiments.mnist_lenet.experiment import EXPERIMENT

if __name__ == "__main__":
    main(EXPERIMENT)
