"""Memory that a training step of the Inception networks takes on a chip, batch by batch.

XLA compiles for chips that are not here, and says what a run would hold at its peak. Activations
are bfloat16, parameters float32; the batch, and what normalizes it, is split over the chips.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from bnjax.compilers.cost import DoesNotFitError
from bnjax.compilers.topologies import Topology, compiler_versions
from bnjax.evidence.records import environment
from bnjax.linen import BatchNorm
from bnjax.models.bn_inception import BNInception
from bnjax.models.inception_v3 import AUXILIARY_WEIGHT, InceptionV3
from bnjax.training.objectives import classification_objective
from bnjax.training.optimizers import momentum_sgd, rmsprop
from experiments.benchmarks.compiled import (
    Program,
    compile_data_parallel,
    find_topologies,
    training_step,
)
from experiments.kept_rows import KeptRows

__all__ = ["NETWORKS", "SCHEMA", "Config", "measure", "table"]

SCHEMA = 1

_NORM = partial(BatchNorm, momentum=0.9)


@dataclass(frozen=True)
class Config:
    """Peak memory of a training step on one chip, by network and batch."""

    networks: tuple[str, ...] = ("bn_inception", "inception_v3")
    """bn_inception at 224x224 pixels, inception_v3 at 299x299 with its side head."""
    batch_sizes: tuple[int, ...] = (32, 64, 128, 256)
    """Examples on each chip."""
    topologies: tuple[str, ...] = ("v5e:1x1",)
    """What to compile for: v5e:1x1 (a TPU chip), v5e:2x4 (eight), h100:1, cpu:8 and others."""
    remat: bool = False
    """Whether the backward pass computes each Inception module again."""

    def __post_init__(self) -> None:
        for name in self.networks:
            if name not in NETWORKS:
                raise ValueError(f"networks: unknown {name!r}; choose from {', '.join(NETWORKS)}.")
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, tuple) and (not value or len(set(value)) < len(value)):
                raise ValueError(f"{item.name} must be given, each once; got {value}.")
        for size in self.batch_sizes:
            if size < 1:
                raise ValueError(f"batch_sizes must be >= 1, got {size}.")


def measure(config: Config, keep: Path | None = None) -> dict[str, Any]:
    """Compiles a training step for every network, topology and batch.

    Args:
        config: what to compile.
        keep: a file for what is done, until all is: the same call goes on after it.

    Returns:
        JSON values, raw; `missing` names the topologies whose compiler is not installed, and why.

    Raises:
        ValueError: for a topology that does not exist.
        MissingCompilerError: if nothing at all can be compiled.
    """
    topologies, missing = find_topologies(config.topologies)
    conditions = {
        "environment": environment(),
        "compilers": compiler_versions(),
        "remat": config.remat,
    }
    kept = KeptRows(keep, conditions)
    rows = []
    for name in config.networks:
        for topology in topologies:
            for size in config.batch_sizes:
                identity = {"network": name, "topology": topology.name, "batch_size": size}
                if kept.find(**identity) is None:
                    print(f"{name}, {topology.name}, {size} a chip", file=sys.stderr, flush=True)
                    make = partial(NETWORKS[name], config.remat)
                    kept.add(identity | _cost(make, size, topology))
                rows.append(kept.find(**identity))
    kept.discard()
    return {
        "schema": SCHEMA,
        "benchmark": "networks_memory",
        "config": asdict(config),
        "environment": conditions["environment"],
        "compilers": conditions["compilers"],
        "missing": missing,
        "rows": rows,
    }


def _cost(make: Callable[[int], Program], size: int, topology: Topology) -> dict[str, Any]:
    """What fits, with its figures; what does not, with the compiler's reason."""
    row: dict[str, Any] = {
        "memory_bytes": topology.chip.memory_bytes,
        "refused": None,
        "peak_bytes": None,
    }
    try:
        cost = compile_data_parallel(make, size, topology)
    except DoesNotFitError as error:
        return row | {"refused": str(error)}
    return row | {
        "peak_bytes": cost.peak_bytes,
        "argument_bytes": cost.argument_bytes,
        "fits": cost.fits,
        "seconds": cost.seconds,
        "compile_seconds": cost.compile_seconds,
    }


def _bn_inception(remat: bool, examples: int) -> Program:
    model = BNInception(norm=_NORM, dtype=jnp.bfloat16, remat=remat)
    return training_step(model, momentum_sgd(0.045), (224, 224, 3), examples)


def _inception_v3(remat: bool, examples: int) -> Program:
    model = InceptionV3(norm=_NORM, dtype=jnp.bfloat16, remat=remat)
    objective = classification_objective(label_smoothing=0.1, auxiliary_weights=(AUXILIARY_WEIGHT,))
    return training_step(model, rmsprop(0.045), (299, 299, 3), examples, objective)


NETWORKS: dict[str, Callable[[bool, int], Program]] = {
    "bn_inception": _bn_inception,
    "inception_v3": _inception_v3,
}
"""Each makes a step, with or without remat, for the examples of a whole batch."""

_NAMES = {"bn_inception": "BN-Inception, 224x224", "inception_v3": "Inception-v3, 299x299"}


def table(result: dict[str, Any]) -> str:
    """A line for each network and topology, then what one must know to read it."""
    sizes = result["config"]["batch_sizes"]
    heads = ["peak memory, GB", "compiled for", *(f"{size} a chip" for size in sizes)]
    lines = [_row(heads), _row(["---"] * 2 + ["---:"] * len(sizes))]
    for network in result["config"]["networks"]:
        for topology in result["config"]["topologies"]:
            rows = {
                row["batch_size"]: row
                for row in result["rows"]
                if (row["network"], row["topology"]) == (network, topology)
            }
            if rows:
                lines.append(
                    _row([_NAMES[network], topology, *(_text(rows[size]) for size in sizes)])
                )
    return "\n".join([*lines, "", *(f"- {note}" for note in _notes(result))])


def _text(row: dict[str, Any]) -> str:
    if row["peak_bytes"] is None:
        return "does not fit"
    size = f"{row['peak_bytes'] / 1e9:.2f}"
    return size if row["fits"] is not False else f"{size} (does not fit)"


def _notes(result: dict[str, Any]) -> Iterator[str]:
    yield from (f"Not compiled: {reason}" for reason in result["missing"].values())
    memory = {row["topology"]: row["memory_bytes"] for row in result["rows"] if row["memory_bytes"]}
    for topology, size in memory.items():
        yield f"A chip of {topology} has {size / 1e9:.2f} GB."
    again = " Each Inception module is computed again (remat)." if result["config"]["remat"] else ""
    yield (
        "Of one chip: parameters, optimizer and all that lies between in a training step with "
        "bnjax's normalization, which is over all chips; activations bfloat16, parameters "
        "float32. BN-Inception by SGD with momentum; Inception-v3 with its side head and label "
        f"smoothing, by RMSProp.{again} Compiled ahead of time; nothing ran."
    )
    versions = {
        "python": result["environment"]["python"],
        **result["environment"]["versions"],
        **result["compilers"],
    }
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield f"Compiled on {result['environment']['processor']}; {named}."


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
