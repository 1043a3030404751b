"""Every number of the experiment, with its unit and, where the paper leaves it open, the reason."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, Literal

import tyro

from bnjax.training.loop import Schedule
from experiments.bounds import check_fraction, check_positive, check_seeds

ARMS = ("mlp", "mlp_bn", "lenet", "lenet_bn")
DATA = ("mnist5k", "mnist", "fashion_mnist")


@dataclass(frozen=True)
class Config:
    """MNIST with and without batch normalization (Ioffe & Szegedy 2015, section 4.1).

    "Stated" fields are the paper's; "open" ones it leaves open.
    """

    data: str = "mnist5k"
    """Data set: mnist5k (packaged, 4,000 + 1,000 digits), mnist or fashion_mnist."""
    arms: Annotated[tuple[str, ...], tyro.conf.arg(metavar=f"{{{','.join(ARMS)}}} ...")] = ARMS
    """Networks to train: mlp, mlp_bn (the paper's pair), lenet, lenet_bn."""
    seeds: int = 4
    """Runs of each arm, with seeds 0, 1, ...; a seed sets weights and data order."""
    lenet_max_seeds: int = 2
    """At most so many runs of the LeNet arms, which cost far more."""
    steps: int = 3_000
    """Training steps. Stated: 50,000."""
    lenet_max_steps: int = 600
    """At most so many training steps of the LeNet arms."""
    batch_size: int = 60
    """Examples per step. Stated: 60."""
    learning_rate: float = 0.1
    """Step size of plain gradient descent on the mean loss. Open: one value for both arms, at
    which both train; `sweep` shows each at its best."""
    sweep: tuple[float, ...] = ()
    """Learning rates to train each arm at besides."""
    sweep_seeds: int = 2
    """Runs of each arm at each learning rate of the sweep."""
    lenet_max_sweep_seeds: int = 1
    """At most so many runs of the LeNet arms at each learning rate."""
    lenet_max_sweep_steps: int = 1_000
    """At most so many training steps of the LeNet arms in the sweep."""
    weight_std: float = 0.1
    """Standard deviation of the MLP's initial weights. Stated: small random Gaussian values;
    open: how small. Smaller ones lengthen the plateau of the arm without normalization."""
    threshold: float = 0.5
    """Fraction of full intensity above which a pixel is one. Stated: binary; open: where."""
    decay: float = 0.99
    """Fraction of the running statistics kept per step, for the accuracy during training. Open.
    After training the paper's Algorithm 2 is evaluated too."""
    averaging: Literal["ema", "ema_debiased", "cumulative"] = "ema_debiased"
    """How running statistics average. Open: debiased, so that early accuracy is not an artefact."""
    running_var: Literal["unbiased", "biased"] = "unbiased"
    """Estimator of the running variance. Stated: unbiased (Algorithm 2)."""
    epsilon: float = 1e-5
    """Added to the variance. Stated: a constant; open: which."""
    population_batches: int = 100
    """Training batches that Algorithm 2 averages over. Stated: multiple."""
    lenet_activation: Literal["tanh", "scaled_tanh", "sigmoid", "relu"] = "tanh"
    """Nonlinearity of LeNet."""
    lenet_pool: Literal["average", "max", "subsample"] = "average"
    """Pooling of LeNet."""
    convolution: Literal["patches", "xla"] = "patches"
    """How LeNet convolves: the same sums, in another order."""
    probe_examples: int = 1_000
    """Test examples, the first ones, over which the input percentiles of Figure 1(b, c) are
    taken, normalized by their own moments, as a batch in training is. Open: over which, and how
    normalized."""
    eval_every: int = 100
    """Steps between evaluations on the whole test set, up to `dense_until`."""
    dense_until: int = 2_000
    """Steps up to which evaluations are dense."""
    sparse_eval_every: int = 500
    """Steps between evaluations after that."""
    eval_batch: int = 500
    """Test examples per batch of an evaluation."""
    units_every: int = 100
    """Steps between records of single units' percentiles (all three for seed 0, the median
    for the others)."""
    steps_per_dispatch: int = 100
    """Steps in one call of the compiled program."""
    checkpoint_every: int = 5_000
    """Steps between checkpoints."""
    together: Literal["auto", "map", "vmap"] = "auto"
    """Runs of one device: one after another (map) or together (vmap); auto: map on CPUs."""

    def __post_init__(self) -> None:
        _check(self)

    def is_lenet(self, arm: str) -> bool:
        """Whether an arm is a LeNet."""
        return arm.startswith("lenet")

    def schedule(self, arm: str, *, sweep: bool = False) -> Schedule:
        """When an arm evaluates and saves."""
        most = self.lenet_max_sweep_steps if sweep else self.lenet_max_steps
        return Schedule(
            steps=min(self.steps, most) if self.is_lenet(arm) else self.steps,
            steps_per_dispatch=self.steps_per_dispatch,
            eval_every=self.sparse_eval_every if sweep else self.eval_every,
            dense_until=self.dense_until,
            sparse_eval_every=self.sparse_eval_every,
            checkpoint_every=self.checkpoint_every,
        )

    def run_seeds(self, arm: str, *, sweep: bool = False) -> range:
        """The seeds of an arm."""
        seeds = self.sweep_seeds if sweep else self.seeds
        most = self.lenet_max_sweep_seeds if sweep else self.lenet_max_seeds
        return range(min(seeds, most) if self.is_lenet(arm) else seeds)

    def identity(self) -> dict[str, Any]:
        """What a run's numbers depend on, besides its arm, seed, learning rate and length."""
        apart = {"arms", "seeds", "learning_rate", "steps"}
        return {
            key: value
            for key, value in asdict(self).items()
            if key not in apart and "max" not in key and "sweep" not in key
        }


def _check(config: Config) -> None:
    _refuse_unknown("data", (config.data,), DATA)
    _refuse_unknown("arms", config.arms, ARMS)
    if not config.arms or len(set(config.arms)) < len(config.arms):
        raise ValueError(f"arms must name one or more arms, each once, got {config.arms}.")
    for item in fields(config):
        value = getattr(config, item.name)
        least = {"checkpoint_every": 0, "dense_until": 0, "probe_examples": 2}.get(item.name, 1)
        if isinstance(value, int) and value < least:
            raise ValueError(f"{item.name} must be >= {least}, got {value}.")
    for name, values in (("learning_rate", (config.learning_rate,)), ("sweep", config.sweep)):
        for value in values:
            check_positive(name, value)
    if len({f"{rate:g}" for rate in config.sweep}) < len(config.sweep):
        raise ValueError(
            f"sweep must name rates that differ in their first six digits, got {config.sweep}."
        )
    if config.batch_size < 2:
        raise ValueError(
            f"batch_size must be >= 2, got {config.batch_size}: normalization needs a batch."
        )
    for name in ("decay", "threshold"):
        check_fraction(name, getattr(config, name))
    for name in ("epsilon", "weight_std"):
        check_positive(name, getattr(config, name))
    for name in ("seeds", "sweep_seeds"):
        check_seeds(name, getattr(config, name))
    for arm in ARMS:
        config.schedule(arm).check()


def _refuse_unknown(name: str, given: tuple[str, ...], known: tuple[str, ...]) -> None:
    for value in given:
        if value not in known:
            raise ValueError(f"{name}: unknown {value!r}; choose from {', '.join(known)}.")


PRESETS = {
    "quick": Config(),
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
