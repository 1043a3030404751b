"""Explanations of batch normalization given since 2015: which of them hold, in small."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, Any

from bnjax.data import DataSet, in_memory
from bnjax.training.loop import Schedule
from experiments.harness.affects import nothing
from experiments.harness.arm import arms_shown
from experiments.harness.bounds import check_seeds
from experiments.harness.compute import Compute
from experiments.harness.experiment import Experiment, Member, Outcome, RunLog, Task
from experiments.harness.page import Page
from experiments.why_it_works.answers import Answers
from experiments.why_it_works.covariate_shift import CovariateShift
from experiments.why_it_works.dropout_before import DropoutBefore
from experiments.why_it_works.edge_of_stability import EdgeOfStability
from experiments.why_it_works.equilibrium import Equilibrium
from experiments.why_it_works.exponential_rate import ExponentialRate
from experiments.why_it_works.ghost_batches import GhostBatches
from experiments.why_it_works.gradient_growth import GradientGrowth
from experiments.why_it_works.group_normalization import (
    GroupNormalization,
    GroupNormalizationConvolutions,
)
from experiments.why_it_works.group_size import GroupSize
from experiments.why_it_works.landscape import GradientChange, LossRange, Smoothness
from experiments.why_it_works.layer_gradient import LayerGradient
from experiments.why_it_works.layer_jacobians import LayerJacobians
from experiments.why_it_works.least_squares import LeastSquares
from experiments.why_it_works.noise_after import NoiseAfter
from experiments.why_it_works.precise_statistics import PreciseStatistics
from experiments.why_it_works.question import Question, float64
from experiments.why_it_works.random_labels import RandomLabels
from experiments.why_it_works.rank_collapse import RankCollapse
from experiments.why_it_works.regularizers import DropoutGain, L2Gain
from experiments.why_it_works.renorm_identity import RenormIdentity
from experiments.why_it_works.renorm_training import RenormSmallBatches, RenormSortedBatches
from experiments.why_it_works.residual_stream import ResidualStream
from experiments.why_it_works.scale_bias_alone import ScaleBiasAlone, ScaleBiasLast
from experiments.why_it_works.stable_rate import StableRate

QUESTIONS: tuple[Question, ...] = (
    LayerGradient(name="layer_gradient", label="gradient of a layer"),
    GradientGrowth(name="gradient_growth", label="growth of gradients"),
    ResidualStream(name="residual_stream", label="residual streams"),
    ExponentialRate(name="exponential_rate", label="exponential rate"),
    Equilibrium(name="equilibrium", label="equilibrium of the weights"),
    DropoutBefore(name="dropout_before", label="dropout before"),
    LeastSquares(name="least_squares", label="least squares"),
    RenormIdentity(name="renorm_identity", label="batch renormalization"),
    RankCollapse(name="rank_collapse", label="rank by depth"),
    EdgeOfStability(name="edge_of_stability", label="edge of stability"),
    StableRate(name="stable_rate", label="largest stable rate"),
    RenormSmallBatches(name="renorm_small_batches", label="renormalization, batches of 4"),
    RenormSortedBatches(name="renorm_sorted_batches", label="renormalization, sorted batches"),
    *(
        kind(name=f"{name}_{speed}", label=f"{label}, rate {rate:g}", rate=rate)
        for kind, name, label in (
            (CovariateShift, "covariate_shift", "covariate shift"),
            (LossRange, "loss_range", "loss on the line"),
            (GradientChange, "gradient_change", "gradient on the line"),
            (Smoothness, "smoothness", "smoothness on the line"),
        )
        for speed, rate in (("slow", 0.003), ("fast", 0.03))
    ),
    NoiseAfter(name="noise_after", label="noise after"),
    GroupSize(name="group_size", label="size of the groups"),
    PreciseStatistics(name="precise_statistics", label="precise statistics"),
    LayerJacobians(name="layer_jacobians", label="Jacobians of layers"),
    GroupNormalization(name="group_normalization", label="group normalization, perceptron"),
    GroupNormalizationConvolutions(
        name="group_normalization_convolutions", label="group normalization, convolutions"
    ),
    GhostBatches(name="ghost_batches", label="ghost batches"),
    ScaleBiasAlone(name="scale_bias_alone", label="scale and bias alone"),
    ScaleBiasLast(name="scale_bias_last", label="scale, bias and last layer"),
    RandomLabels(name="random_labels", label="random labels"),
    DropoutGain(name="dropout_gain", label="gain of dropout"),
    DropoutGain(name="dropout_gain_drawn", label="gain of dropout, labels drawn", drawn=0.25),
    L2Gain(name="l2_gain", label="gain of L2"),
    L2Gain(name="l2_gain_drawn", label="gain of L2, labels drawn", drawn=0.25),
)
_QUICK_OBSERVED = ("rank_collapse", "edge_of_stability")
"""What is observed within seconds."""
_AT_ONCE = Schedule(
    steps=1,
    steps_per_dispatch=1,
    eval_every=1,
    dense_until=1,
    sparse_eval_every=1,
    checkpoint_every=0,
)
"""A measurement is a run of one step."""
_DIGITS = ("mnist5k", "mnist", "fashion_mnist")


@dataclass(frozen=True)
class Config:
    """Explanations of why batch normalization works, each measured in small.

    What is exact is computed in float64, and held to the rounding, or to the width or the number
    of draws, that the measurement has.
    """

    data: str = nothing("mnist5k")
    """Digits to train on, where a question trains: mnist5k (packaged), mnist, fashion_mnist."""
    arms: Annotated[tuple[str, ...], arms_shown(QUESTIONS)] = nothing(
        tuple(question.name for question in QUESTIONS)
    )
    """Questions to ask."""
    seeds: int = nothing(1)
    """Measurements of each, with seeds 0, 1, ...; a seed sets weights, data and their order."""

    def __post_init__(self) -> None:
        if self.data not in _DIGITS:
            raise ValueError(f"data must be one of {', '.join(_DIGITS)}, got {self.data!r}.")
        if self.seeds < 1:
            raise ValueError(f"seeds must be >= 1, got {self.seeds}.")
        check_seeds("seeds", self.seeds)


def tasks(config: Config, questions: Sequence[Question]) -> list[Task]:
    """Returns one measurement of each question and seed: all questions of a seed, then the next."""
    return [
        Task(config, question, (Member(seed),), _AT_ONCE)
        for seed in range(config.seeds)
        for question in questions
    ]


def train(
    task: Task, data: DataSet, compute: Compute, log: RunLog, *, checkpoints: Any, description: str
) -> list[Outcome]:
    """Measures; a question is answered whole or not at all."""
    log.begin(0, [0])
    log.log(0, {"step": 0})
    with float64() if task.arm.in_float64 else nullcontext():
        answer = task.arm.answer(task.seed, data)
    log.log(0, {"step": 1})
    effect = {} if answer.effect is None else {"effect": answer.effect}
    log.show(0, 1, effect | answer.numbers)
    checks = [check._asdict() for check in answer.checks]
    return [Outcome(answer._asdict() | {"checks": checks}, {})]


EXPERIMENT = Experiment(
    name="why_it_works",
    config=Config,
    presets={
        "quick": Config(
            arms=tuple(q.name for q in QUESTIONS if q.exact or q.name in _QUICK_OBSERVED)
        ),
        "full": Config(seeds=3),
    },
    presets_help="quick: one seed of identities, theorems and two observations; three minutes on 2 "
    "cores. "
    "full: all, three seeds.",
    arms=QUESTIONS,
    tasks=tasks,
    decode=lambda config, data: in_memory(data),
    train=train,
    page=Page(Answers(QUESTIONS)),
)
