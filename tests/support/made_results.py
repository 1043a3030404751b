"""Small result folders of the MNIST experiment with made-up numbers, to draw and to count."""

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
