"""The final weights of a run, beside its record, which states their digests."""

from pathlib import Path
from typing import Any

from bnjax.evidence.records import RecordError, tree_sha256
from bnjax.models import load_safetensors, save_safetensors

FILE = "weights.safetensors"
"""In a run's folder: `params`, `batch_stats`, and `population_stats` where there are any."""

Tree = Any


def digests(weights: dict[str, Tree]) -> dict[str, str | None]:
    """What a record states of weights: `state_sha256`, and that of Algorithm 2's statistics."""
    population = weights.get("population_stats")
    evaluated = {name: weights.get(name, {}) for name in ("params", "batch_stats")}
    return {
        "state_sha256": tree_sha256(evaluated),
        "population_sha256": None if population is None else tree_sha256(population),
    }


def save_weights(folder: Path, weights: dict[str, Tree]) -> None:
    """Writes the file whole, or not at all."""
    whole = folder / FILE
    part = whole.with_name(f"part.{FILE}")
    save_safetensors(weights, part)
    part.replace(whole)


def check_weights(folder: Path, record: dict[str, Any]) -> None:
    """Raises RecordError if a finished run's weights are there and not those of its record."""
    if record["finished"] and (folder / FILE).exists():
        load_weights(folder, record)


def load_weights(folder: Path, record: dict[str, Any]) -> dict[str, Tree]:
    """The weights of the finished run whose record it is.

    Raises:
        RecordError: if it is not finished, or its weights are missing, damaged, or not those of
            the record.
    """
    if not record["finished"]:
        raise RecordError(f"{folder} is not finished: complete it first, with --resume.")
    path = folder / FILE
    try:
        weights = load_safetensors(path).variables
    except FileNotFoundError:
        raise RecordError(
            f"{path} is missing: git does not keep it; put it back, or remove the folder and run "
            "again."
        ) from None
    except ValueError as error:
        raise RecordError(f"{error} Remove the folder and run again.") from None
    stated = {name: record["final"].get(name) for name in digests({})}
    changed = [name for name, digest in digests(weights).items() if digest != stated[name]]
    if changed:
        raise RecordError(
            f"{path} is not what the run wrote: {', '.join(changed)} in record.json differ. Put "
            "the file back, or remove the folder and run again."
        )
    return weights
