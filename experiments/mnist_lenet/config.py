"""Every number of the experiment, with its unit and, where the paper leaves it open, the reason."""

from dataclasses import dataclass, fields, replace
from typing import Annotated, Literal

from bnjax.models.lenet import Convolution, Pool
from bnjax.normalization.settings import RunningVar, StatsAveraging
from bnjax.training.loop import Schedule
from experiments.harness.affects import network, nothing, numbers, training, views
from experiments.harness.arm import arms_shown
from experiments.harness.bounds import (
    check_fraction,
    check_literals,
    check_positive,
    check_rates,
    check_seeds,
)
from experiments.mnist_lenet.arms import ARMS, DigitsArm

DATA = ("mnist5k", "mnist", "fashion_mnist")
"""Data sets of digits, or of what is as large."""


@dataclass(frozen=True)
class Config:
    """MNIST with and without batch normalization (Ioffe & Szegedy 2015, section 4.1).

    "Stated" fields are the paper's; "open" ones it leaves open.
    """

    data: str = numbers("mnist5k")
    """Data set: mnist5k (packaged, 4,000 + 1,000 digits), mnist or fashion_mnist."""
    arms: Annotated[tuple[str, ...], arms_shown(ARMS)] = nothing(tuple(arm.name for arm in ARMS))
    """Networks to train: mlp, mlp_bn (the paper's pair), lenet, lenet_bn."""
    seeds: int = nothing(4)
    """Runs of each arm, with seeds 0, 1, ...; a seed sets weights and data order."""
    lenet_max_seeds: int = nothing(2)
    """At most so many runs of the LeNet arms, which cost far more."""
    steps: int = nothing(3_000)
    """Training steps. Stated: 50,000."""
    lenet_max_steps: int = nothing(600)
    """At most so many training steps of the LeNet arms."""
    batch_size: int = training(60)
    """Examples per step. Stated: 60."""
    learning_rate: float = nothing(0.1)
    """Step size of plain gradient descent on the mean loss. Open: one value for both arms, at
    which both train; `sweep` shows each at its best."""
    sweep: tuple[float, ...] = nothing(())
    """Learning rates to train each arm at besides."""
    sweep_seeds: int = nothing(2)
    """Runs of each arm at each learning rate of the sweep."""
    lenet_max_sweep_seeds: int = nothing(1)
    """At most so many runs of the LeNet arms at each learning rate."""
    lenet_max_sweep_steps: int = nothing(1_000)
    """At most so many training steps of the LeNet arms in the sweep."""
    weight_std: float = network(0.1)
    """Standard deviation of the MLP's initial weights. Stated: small random Gaussian values;
    open: how small. Smaller ones lengthen the plateau of the arm without normalization."""
    threshold: float = views(0.5)
    """Fraction of full intensity above which a pixel is one. Stated: binary; open: where."""
    decay: float = network(0.99)
    """Fraction of the running statistics kept per step, for the accuracy during training. Open.
    After training the paper's Algorithm 2 is evaluated too."""
    averaging: StatsAveraging = network("ema_debiased")
    """How running statistics average. Open: debiased, so that early accuracy is not an artefact."""
    running_var: RunningVar = network("unbiased")
    """Estimator of the running variance. Stated: unbiased (Algorithm 2)."""
    epsilon: float = network(1e-5)
    """Added to the variance. Stated: a constant; open: which."""
    population_batches: int = numbers(100)
    """Training batches that Algorithm 2 averages over. Stated: multiple."""
    lenet_activation: Literal["tanh", "scaled_tanh", "sigmoid", "relu"] = network("tanh")
    """Nonlinearity of LeNet."""
    lenet_pool: Pool = network("average")
    """Pooling of LeNet."""
    convolution: Convolution = network("patches")
    """How LeNet convolves: the same sums, in another order."""
    probe_examples: int = numbers(1_000)
    """Test examples, the first ones, over which the input percentiles of Figure 1(b, c) are
    taken, normalized by their own moments, as a batch in training is. Open: over which, and how
    normalized."""
    eval_every: int = numbers(100)
    """Steps between evaluations on the whole test set, up to `dense_until`."""
    dense_until: int = numbers(2_000)
    """Steps up to which evaluations are dense."""
    sparse_eval_every: int = numbers(500)
    """Steps between evaluations after that."""
    eval_batch: int = numbers(500)
    """Test examples per batch of an evaluation."""
    units_every: int = numbers(100)
    """Steps between records of single units' percentiles (all three for seed 0, the median
    for the others)."""
    steps_per_dispatch: int = training(100)
    """Steps in one call of the compiled program."""
    checkpoint_every: int = numbers(5_000)
    """Steps between checkpoints."""
    together: Literal["auto", "map", "vmap"] = training("auto")
    """Runs of one device: one after another (map) or together (vmap); auto: map on CPUs."""

    def __post_init__(self) -> None:
        _check(self)

    def schedule(self, arm: DigitsArm, *, sweep: bool = False) -> Schedule:
        """Returns when an arm evaluates and saves."""
        most = self.lenet_max_sweep_steps if sweep else self.lenet_max_steps
        return Schedule(
            steps=min(self.steps, most) if arm.lenet else self.steps,
            steps_per_dispatch=self.steps_per_dispatch,
            eval_every=self.sparse_eval_every if sweep else self.eval_every,
            dense_until=self.dense_until,
            sparse_eval_every=self.sparse_eval_every,
            checkpoint_every=self.checkpoint_every,
        )

    def run_seeds(self, arm: DigitsArm, *, sweep: bool = False) -> range:
        """Returns the seeds of an arm."""
        seeds = self.sweep_seeds if sweep else self.seeds
        most = self.lenet_max_sweep_seeds if sweep else self.lenet_max_seeds
        return range(min(seeds, most) if arm.lenet else seeds)


def _check(config: Config) -> None:
    if config.data not in DATA:
        raise ValueError(f"data: unknown {config.data!r}; choose from {', '.join(DATA)}.")
    for item in fields(config):
        value = getattr(config, item.name)
        least = {"checkpoint_every": 0, "dense_until": 0, "probe_examples": 2}.get(item.name, 1)
        if isinstance(value, int) and value < least:
            raise ValueError(f"{item.name} must be >= {least}, got {value}.")
    check_rates("sweep", config.sweep)
    if config.batch_size < 2:
        raise ValueError(
            f"batch_size must be >= 2, got {config.batch_size}: normalization needs a batch."
        )
    for name in ("decay", "threshold"):
        check_fraction(name, getattr(config, name))
    for name in ("epsilon", "weight_std", "learning_rate"):
        check_positive(name, getattr(config, name))
    for name in ("seeds", "sweep_seeds"):
        check_seeds(name, getattr(config, name))
    check_literals(config)
    for arm in ARMS:
        config.schedule(arm).check()


PRESETS = {
    "quick": replace(Config(), arms=("mlp", "mlp_bn"), steps=2_000),
    "paper": replace(
        Config(),
        data="mnist",
        seeds=10,
        lenet_max_seeds=6,
        steps=50_000,
        lenet_max_steps=50_000,
        sweep=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
        sweep_seeds=2,
        lenet_max_sweep_seeds=1,
        lenet_max_sweep_steps=2_000,
        population_batches=1_000,
        units_every=1_000,
    ),
}
