"""What batch normalization adds to programs compiled for chips that are not here.

Two programs, each with bnjax's batch normalization, with Flax's, and with a bias alone: a whole
BN-Inception training step (forward, cross-entropy, backward, SGD) and a stack of convolutions.
Activations are bfloat16, parameters float32, the batch is split over the chips, and its moments
are those of all of them. Nothing runs: XLA says what a run would move, keep and send.
"""

import functools
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import bnjax.linen
from bnjax.compilers.cost import ProgramCost, abstract, compile_program
from bnjax.compilers.topologies import (
    MissingCompilerError,
    Topology,
    compiler_versions,
    find_topology,
)
from bnjax.evidence.records import environment
from bnjax.models.bn_inception import BNInception
from bnjax.models.layers import ConvNorm, Norm
from bnjax.training.objectives import Objective
from bnjax.training.optimizers import sgd
from bnjax.training.state import TrainState
from bnjax.training.steps import cross_entropy, make_train_step
from experiments.benchmarks.compiled_table import table
from experiments.kept_rows import KeptRows

__all__ = [
    "ARMS",
    "PROGRAMS",
    "SCHEMA",
    "Config",
    "Program",
    "compile_data_parallel",
    "find_topologies",
    "measure",
    "table",
    "training_step",
]

SCHEMA = 1

ARMS: dict[str, Norm | None] = {
    "bias": None,
    "flax": functools.partial(nn.BatchNorm, momentum=0.9),
    "bnjax": functools.partial(bnjax.linen.BatchNorm, momentum=0.9),
}
"""Normalization of every convolution; without one, a bias."""


@dataclass(frozen=True)
class Config:
    """Bytes, memory, time and collectives of compiled programs, on TPUs and GPUs."""

    programs: tuple[str, ...] = ("bn_inception", "convolutions")
    """bn_inception: a training step; convolutions: value and gradient of a stack of them."""
    topologies: tuple[str, ...] = ("v5e:1x1", "v5e:2x4", "h100:1", "h100:8")
    """What to compile for: v5e:2x4 (eight TPU chips), h100:8, cpu:8 and others."""
    batch_size: int = 128
    """Examples on each chip."""
    image_size: int = 224
    """Height and width of bn_inception's images, in pixels."""
    width: float = 1.0
    """Factor on all of bn_inception's channels."""
    layers: int = 6
    """Convolutions in the stack: 3x3, 128 channels, of 56x56x64."""

    def __post_init__(self) -> None:
        for name in self.programs:
            if name not in PROGRAMS:
                raise ValueError(f"programs: unknown {name!r}; choose from {', '.join(PROGRAMS)}.")
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, tuple) and (not value or len(set(value)) < len(value)):
                raise ValueError(f"{item.name} must be different names, one at least: {value}.")
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{item.name} must be >= 1, got {value}.")
        if not self.width > 0:
            raise ValueError(f"width must be > 0, got {self.width}.")


class Program(NamedTuple):
    """A function, and its arguments' shapes: what all chips hold, and what is split over them.

    Attributes:
        function: of `shared` and `split`.
        shared: its first argument.
        split: its second one; the batch.
        donate: whether the results may take the place of `shared`.
    """

    function: Callable[..., Any]
    shared: Any
    split: Any
    donate: bool


def measure(config: Config, keep: Path | None = None) -> dict[str, Any]:
    """Compiles every program with every normalization for every topology.

    Args:
        config: what to compile.
        keep: a file for what is done, until all is: the same call goes on after it.

    Returns:
        JSON values, raw; `missing` names the topologies whose compiler is not installed, and why.

    Raises:
        ValueError: for a topology that does not exist, or a program that does not fit.
        MissingCompilerError: if nothing at all can be compiled.
    """
    topologies, missing = find_topologies(config.topologies)
    made_with = {"environment": environment(), "compilers": compiler_versions()}
    sizes = {name: value for name, value in asdict(config).items() if not isinstance(value, tuple)}
    kept = KeptRows(keep, made_with | {"sizes": sizes})
    rows = []
    for topology in topologies:
        for program in config.programs:
            for arm, norm in ARMS.items():
                identity = {"program": program, "arm": arm, "topology": topology.name}
                if kept.find(**identity) is None:
                    print(f"{program}, {arm}, {topology.name}", file=sys.stderr, flush=True)
                    cost = _compile(PROGRAMS[program], config, norm, topology)
                    kept.add({**identity, "platform": topology.chip.platform, **_json(cost)})
                rows.append(kept.find(**identity))
    kept.discard()
    return {
        "schema": SCHEMA,
        "benchmark": "compiled",
        "config": asdict(config),
        **made_with,
        "missing": missing,
        "rows": rows,
    }


def find_topologies(names: tuple[str, ...]) -> tuple[list[Topology], dict[str, str]]:
    """Those that can be compiled for, and why the others cannot."""
    found, missing = [], {}
    for name in names:
        try:
            found.append(find_topology(name))
        except MissingCompilerError as error:
            missing[name] = str(error)
            last = error
    if not found:
        raise last
    return found, missing


def _compile(
    make: Callable[[Config, Norm | None, int], Program],
    config: Config,
    norm: Norm | None,
    topology: Topology,
) -> ProgramCost:
    return compile_data_parallel(functools.partial(make, config, norm), config.batch_size, topology)


def compile_data_parallel(
    make: Callable[[int], Program], batch_size: int, topology: Topology
) -> ProgramCost:
    """Compiles a program whose batch is split over the chips.

    Args:
        make: makes it for so many examples on all chips together.
        batch_size: examples on each chip.
        topology: the chips.

    Raises:
        DoesNotFitError: if the compiler refuses it for want of memory.
    """
    mesh = Mesh(np.array(topology.devices), ("data",), axis_types=(AxisType.Auto,))
    everywhere, by_example = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    program = make(batch_size * mesh.size)
    compiled = jax.jit(
        program.function,
        donate_argnums=(0,) if program.donate else (),
        out_shardings=everywhere,
    )
    return compile_program(
        compiled,
        topology,
        abstract(program.shared, everywhere),
        abstract(program.split, by_example),
    )


def _bn_inception(config: Config, norm: Norm | None, examples: int) -> Program:
    model = BNInception(norm=norm, width=config.width, dtype=jnp.bfloat16)
    return training_step(model, sgd(0.1), (config.image_size, config.image_size, 3), examples)


def training_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    image: tuple[int, int, int],
    examples: int,
    objective: Objective = cross_entropy,
) -> Program:
    """A whole training step on images in bfloat16.

    Args:
        model: to be trained; `dropout` has always the same key, as no number is ever drawn.
        tx: its optimizer.
        image: height, width and channels.
        examples: of a batch, on all chips together.
        objective: to be minimized.
    """
    batch = (
        jax.ShapeDtypeStruct((examples, *image), jnp.bfloat16),
        jax.ShapeDtypeStruct((examples,), jnp.int32),
    )

    def start() -> TrainState:
        one = jnp.zeros((1, *image), jnp.bfloat16)
        variables = model.init(jax.random.key(0), one, train=False)
        params, stats = variables["params"], variables.get("batch_stats", {})
        return TrainState(jnp.int32(0), params, stats, tx.init(params))

    def apply(variables: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        logits, updates = model.apply(
            variables,
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        return logits, updates.get("batch_stats", {})

    step = make_train_step(apply, tx, objective)
    return Program(step, jax.eval_shape(start), batch, donate=True)


class _Stack(nn.Module):
    norm: Norm | None
    layers: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for _ in range(self.layers):
            x = ConvNorm(128, (3, 3), norm=self.norm, dtype=jnp.bfloat16)(x, train=train)
        return x


def _convolutions(config: Config, norm: Norm | None, examples: int) -> Program:
    model = _Stack(norm, config.layers)
    images = jax.ShapeDtypeStruct((examples, 56, 56, 64), jnp.bfloat16)

    def loss(params: Any, stats: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        y, updates = model.apply(
            {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
        )
        return jnp.square(y.astype(jnp.float32)).mean(), updates

    def value_and_gradient(variables: Any, images: jax.Array) -> Any:
        stats = variables.get("batch_stats", {})
        return jax.value_and_grad(loss, has_aux=True)(variables["params"], stats, images)

    def start() -> Any:
        return model.init(jax.random.key(0), jnp.zeros((1, 56, 56, 64), jnp.bfloat16), train=False)

    return Program(value_and_gradient, jax.eval_shape(start), images, donate=False)


PROGRAMS: dict[str, Callable[[Config, Norm | None, int], Program]] = {
    "bn_inception": _bn_inception,
    "convolutions": _convolutions,
}
"""Each makes a program of the settings, a normalization and the examples of a whole batch."""


def _json(cost: ProgramCost) -> dict[str, Any]:
    return {
        **asdict(cost),
        "collectives": {c.kind: {"count": c.count, "bytes": c.bytes} for c in cost.collectives},
    }
