"""Small result folders with made-up numbers, to draw and to count: of MNIST, and of images."""

from pathlib import Path

import numpy as np

from bnjax.evidence.records import Run

STEPS = (0, 500, 1000, 1500, 2000)
EXAMPLES = 200
# Each unit's median input at those steps: how far it travels from step 1,000 on is 3, 0, 1, 9, 2;
# before that, units 1 and 2 travel farthest.
MEDIANS = np.array(
    [
        [0.0, 1.0, 0.0, 2.0, 3.0],
        [0.0, 50.0, 1.0, 1.0, 1.0],
        [0.0, -60.0, 0.5, 1.0, 0.5],
        [0.0, 0.0, 0.0, 4.0, -1.0],
        [0.0, 0.0, 0.0, 1.0, 2.0],
    ]
).T
LENGTHS = (3, 0, 1, 9, 2)


def write_run(
    out: Path,
    arm: str,
    seed: int,
    correct,
    *,
    medians=MEDIANS,
    population: int | None = None,
    sweep_rate: float | None = None,
    finished: bool = True,
    steps=STEPS,
    diverged: dict | None = None,
) -> None:
    """Writes a run with so many of 200 digits right at each of `steps`."""
    name = f"{arm}-s{seed}" if sweep_rate is None else f"sweep/{arm}-lr{sweep_rate:g}-s{seed}"
    rate = sweep_rate or 0.1
    schedule = dict.fromkeys(("steps_per_dispatch", "eval_every", "sparse_eval_every"), 500)
    schedule |= {"steps": steps[-1], "dense_until": 0, "checkpoint_every": 0}
    header = {"arm": arm, "seed": seed, "learning_rate": rate, "environment": {}}
    header["identity"] = {"schedule": schedule}
    run = Run(out / name, header)
    for step, right, row in zip(steps, correct, medians, strict=finished and diverged is None):
        entry = {"step": step, "test": {"loss": 1.0, "correct": right, "examples": EXAMPLES}}
        if sweep_rate is None and row is not None:
            entry["units"] = {"p50": row.tolist()}
            if seed == 0:
                entry["units"] |= {"p15": (row - 1).tolist(), "p85": (row + 2).tolist()}
            if arm.endswith("_bn"):
                entry["units"]["p50_running"] = (2 * row).tolist()
        run.log(entry)
    if finished:
        outcome = (
            None
            if population is None
            else {"loss": 1.0, "correct": population, "examples": EXAMPLES}
        )
        run.finish({"test": entry["test"], "test_population": outcome, "diverged": diverged})


def write_pair(out: Path) -> None:
    """Three seeds of `mlp` and `mlp_bn`, and a sweep over two learning rates."""
    write_run(out, "mlp", 0, [20, 100, 180, 190, 192])
    write_run(out, "mlp", 1, [20, 110, 170, 189, 194], medians=MEDIANS + 1)
    write_run(out, "mlp", 2, [20, 90, 160, 170, 196], medians=2 * MEDIANS)
    write_run(out, "mlp_bn", 0, [20, 180, 190, 194, 195], population=196)
    write_run(out, "mlp_bn", 1, [20, 181, 192, 196, 198], population=198)
    write_run(out, "mlp_bn", 2, [20, 150, 195, 195, 196], population=194)
    for arm, shift in (("mlp", 0), ("mlp_bn", 4)):
        for rate, final in ((0.1, 190), (1.0, 180)):
            for seed in (0, 1):
                correct = [20, 30, 40, 50, final + shift + 2 * seed]
                write_run(out, arm, seed, correct, sweep_rate=rate)


def write_image_run(
    out: Path,
    arm: str,
    seed: int,
    correct,
    *,
    settings: dict,
    config: dict | None = None,
    environment: dict | None = None,
    every: int = 10,
    steps: int = 40,
    rate: float | None = None,
    population: int | None = None,
    diverged: dict | None = None,
    finished: bool = True,
    **final,
) -> None:
    """Writes a run with so many of 100 images right at every `every`-th of `steps`, from 0 on.

    With a rate, it is one of a sweep. `final` is what its record says at the end, besides.
    """
    name = f"{arm}-s{seed}" if rate is None else f"sweep/{arm}-lr{rate:g}-s{seed}"
    schedule = dict.fromkeys(("eval_every", "dense_until", "sparse_eval_every"), every)
    schedule |= {"steps": steps, "steps_per_dispatch": 1, "checkpoint_every": 0}
    identity = {"arm": arm, "seed": seed, "schedule": schedule, "settings": settings}
    identity |= {"config": config or {}, "data_sha256": "7"}
    header = {"arm": arm, "seed": seed, "identity": identity, "environment": environment or {}}
    run = Run(out / name, header if rate is None else header | {"learning_rate": rate})
    tests = [{"loss": 1.0, "correct": right, "examples": 100} for right in correct]
    for evaluation, test in enumerate(tests):
        run.log({"step": every * evaluation, "test": test})
    if finished:
        outcome = population and tests[-1] | {"correct": population}
        final = {"timing": None} | final
        run.finish({"test": tests[-1], "test_population": outcome, "diverged": diverged} | final)
