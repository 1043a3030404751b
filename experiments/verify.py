"""python -m experiments.verify RUN: trains a recorded run again and compares, number by number."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import tyro

from bnjax.command import command
from bnjax.evidence.environment import environment
from bnjax.evidence.records import RecordError, differences, making_sense, read_record
from bnjax.evidence.statistics import accuracy
from experiments.harness import found
from experiments.harness.command_line import ending
from experiments.harness.differences import prediction_interval
from experiments.harness.experiment import Experiment
from experiments.harness.identities import identity_of
from experiments.harness.repetition import rerun, task_of
from experiments.harness.results import Recorded, read_result, runs_below

CONFIDENCE = 0.95
"""Of twenty honest repetitions elsewhere, each as one more seed, nineteen are accepted."""
_FEWEST_SEEDS = 3
"""Two, by one degree of freedom, accept nearly anything."""
_MOST_DEVICES = 1_024
"""CPU devices that a record may ask for."""


@dataclass(frozen=True)
class Arguments:
    """Trains a recorded run again and compares what it logs.

    On the same versions, backend and processor every number must be the same, bit by bit.
    Elsewhere rounding differs, which training can make as large as another seed would: there the
    last accuracy, or the effect that was measured, must lie where the seeds of the same
    configuration, the run and those in the folders beside it, predict that of one more run; fewer
    than three do not tell. What a theorem says must hold within its bound again.
    """

    run: tyro.conf.Positional[Path]
    """A run's folder, for example experiments/mnist_lenet/results/mlp_bn-s0."""
    steps: int | None = None
    """Compare the first so many steps; all by default."""
    data: str | None = None
    """Data set, by default that of the record; needed for those of folder:PATH and tfds:PATH."""
    data_dir: Path | None = None
    """Where prepared data sets are; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets."""


class Verdict(NamedTuple):
    """The outcome of a comparison.

    Attributes:
        agrees: whether the run was repeated; None if that cannot be judged.
        bitwise: whether it was judged by bitwise equality.
        lines: what to tell.
    """

    agrees: bool | None
    bitwise: bool
    lines: list[str]


@command()
def main() -> None:
    """Reads the command line; exits with 1 if the run could not be repeated."""
    with ending("experiments.verify"):
        arguments = tyro.cli(Arguments, prog="python -m experiments.verify")
        _take_devices_of(read_record(arguments.run))
        verdict = verify(
            arguments.run,
            steps=arguments.steps,
            data=arguments.data,
            data_dir=arguments.data_dir,
        )
        print("\n".join(verdict.lines))
        sys.exit(0 if verdict.agrees else 1)


def verify(
    run: Path,
    *,
    steps: int | None = None,
    data: str | None = None,
    data_dir: Path | None = None,
) -> Verdict:
    """Repeats a run and compares; one that was resumed elsewhere is of several environments.

    Raises:
        RecordError: if the folder holds no finished run, or a damaged one, or the data differs.
        ValueError: if `steps` ends before the first evaluation after the start.
    """
    record, log = read_result(run)
    here = _relevant(environment())
    with making_sense(run / "record.json", record):
        parts = (record["environment"], *record.get("resumed_under", ()))
        lines = [line for part in parts for line in differences(_relevant(part), here)]
        name, data = record["experiment"], data or record["data"]["name"]
        experiment = _experiment(run, name)
        schedule = task_of(experiment, record).schedule  # whether it can be made
        length = schedule.steps
        first = next(filter(None, schedule.evaluations(length)))
        fault = record["final"].get("diverged")
        last = length if steps is None else min(steps, length)
        ended = fault is not None and fault["step"] <= last
    if last < first:
        raise ValueError(
            f"--steps must be >= {first}, the run's first evaluation after its start, got {steps}."
        )
    elsewhere = list(dict.fromkeys(lines))
    seeds = _all_seeds(run, record) if elsewhere else []  # damaged ones are found first
    print(
        f"training {record['arm']}, seed {record['seed']}, again: "
        f"{last:,} of its {length:,} steps (see --steps).",
        file=sys.stderr,
        flush=True,
    )
    entries, final = rerun(experiment, record, steps=steps, data=data, data_dir=data_dir)
    stored = {entry["step"]: entry for entry in log}
    pairs = [(stored[entry["step"]], entry) for entry in entries if entry["step"] in stored]
    what = f"{record['arm']}, seed {record['seed']}: {len(pairs)} evaluations to step "
    what += f"{pairs[-1][1]['step']:,}"
    if ended != (entries[-1]["step"] < last):
        text = f"{what}: DIFFERENT: one of both reached infinity, the other did not."
        return Verdict(False, not elsewhere, [text, *elsewhere])
    verdict = _bitwise(what, pairs, record["final"], final)
    if verdict.agrees or not elsewhere:
        return verdict
    if "test" in record["final"]:
        logs = [{entry["step"]: entry["test"] for entry in other.log} for other in seeds]
        return _as_one_more_seed(what, pairs, logs, elsewhere)
    assert final is not None  # a measurement has no steps to stop at
    return _as_one_more_answer(what, final, [other.record["final"] for other in seeds], elsewhere)


def _experiment(run: Path, name: str) -> Experiment:
    try:
        return found.experiment(name)
    except ValueError as error:
        raise RecordError(f"{run / 'record.json'}: {error}") from None


def _take_devices_of(record: dict[str, Any]) -> None:
    """As many CPU devices as the run had; to be called before JAX starts."""
    surroundings = record["environment"]
    if surroundings.get("backend") != "cpu":
        return
    count = surroundings.get("device_count")
    if type(count) is not int or not 1 <= count <= _MOST_DEVICES:
        raise RecordError(
            f"the record asks for {count!r:.80} CPU devices; 1 to {_MOST_DEVICES:,} can be had."
        )
    jax.config.update("jax_num_cpu_devices", count)


def _bitwise(
    what: str, pairs: list[tuple[Any, Any]], stored: dict[str, Any], final: dict[str, Any] | None
) -> Verdict:
    changed = [
        f"step {old['step']}: {line}"
        for old, new in pairs
        for line in differences(old, {key: new[key] for key in old if key in new})
    ]
    if final is not None:
        what += ", final metrics and parameters"
        both = stored.keys() & final.keys()  # a record may be older than some of them
        old, new = ({key: side[key] for key in sorted(both)} for side in (stored, final))
        changed += [f"final: {line}" for line in differences(old, new)]
    if not changed:
        return Verdict(True, True, [f"{what}: bitwise equal."])
    more = [f"... and {len(changed) - 10} more"] if len(changed) > 10 else []
    return Verdict(False, True, [f"{what}: DIFFERENT.", *changed[:10], *more])


def _all_seeds(run: Path, record: dict[str, Any]) -> list[Recorded]:
    """The finished runs beside one that differ by their seeds alone, itself among them."""

    def without_seed(record: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in identity_of(record).items() if name != "seed"}

    folders = {
        other["seed"]: folder  # a link to a run is no other
        for folder, other in runs_below(run.resolve().parent)
        if other["finished"] and without_seed(other) == without_seed(record)
    }
    return [read_result(folder) for folder in folders.values()]


def _as_one_more_seed(
    what: str, pairs: list[tuple[Any, Any]], logs: list[dict[int, Any]], elsewhere: list[str]
) -> Verdict:
    """Judges the last accuracy by the spread of the seeds."""
    because = ["Not bitwise equal, in another environment:", *elsewhere]
    largest = max(abs(accuracy(old["test"]) - accuracy(new["test"])) for old, new in pairs)
    said = f"largest difference of a test accuracy {100 * largest:.2f} points"
    last = pairs[-1][1]
    recorded = [accuracy(log[last["step"]]) for log in logs if last["step"] in log]
    if len(recorded) < _FEWEST_SEEDS:  # others may have diverged before
        remedy = f"train other seeds beside it: {_FEWEST_SEEDS} in all say how far they differ"
        return Verdict(None, False, [f"{what}: NOT JUDGED; {said}: {remedy}.", *because])
    low, high = prediction_interval(recorded, last["test"]["examples"], confidence=CONFIDENCE)
    agrees = low <= accuracy(last["test"]) <= high
    return Verdict(
        agrees,
        False,
        [
            f"{what}: {'agrees with' if agrees else 'DIFFERS from'} what {len(recorded)} seeds "
            f"predict of one more run: {100 * accuracy(last['test']):.2f} % after step "
            f"{last['step']:,}, of {100 * low:.2f} to {100 * high:.2f} %, {100 * (high - low):.0f} "
            f"points, with {100 * CONFIDENCE:g} % confidence; {said}.",
            *because,
        ],
    )


def _as_one_more_answer(
    what: str, final: dict[str, Any], finals: list[dict[str, Any]], elsewhere: list[str]
) -> Verdict:
    """Judges what was measured by the theorems' bounds, or by the spread of the seeds."""
    because = ["Not bitwise equal, in another environment:", *elsewhere]
    if final["checks"]:
        checks = final["checks"]
        broken = [each["what"] for each in checks if not each["deviation"] <= each["bound"]]  # NaN
        said = f"breaks the bounds of {', '.join(broken)}" if broken else "holds within its bounds"
        return Verdict(not broken, False, [f"{what}: {said}.", *because])
    effects = [other["effect"] for other in finals]
    if len(effects) < _FEWEST_SEEDS:
        remedy = f"measure other seeds too, {_FEWEST_SEEDS} in all"
        return Verdict(None, False, [f"{what}: NOT JUDGED; {remedy}.", *because])
    low, high = prediction_interval(effects, None, confidence=CONFIDENCE)
    agrees = bool(low <= final["effect"] <= high)
    return Verdict(
        agrees,
        False,
        [
            f"{what}: {'agrees with' if agrees else 'DIFFERS from'} what {len(effects)} seeds "
            f"predict of one more: {final['effect']:.4g}, of {low:.4g} to {high:.4g} with "
            f"{100 * CONFIDENCE:g} % confidence.",
            *because,
        ],
    )


def _relevant(surroundings: dict[str, Any]) -> dict[str, Any]:
    """What bits may depend on; the commit is not among it, since verifying tests the code."""
    return {key: value for key, value in surroundings.items() if key not in ("git", "python")}


if __name__ == "__main__":
    main()
