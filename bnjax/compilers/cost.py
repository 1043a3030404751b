"""The cost of a compiled program, read from the compiler; nothing runs."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax

from bnjax.compilers.hlo import parse
from bnjax.compilers.hlo_counts import Collective, collectives, matmul_flops, traffic
from bnjax.compilers.topologies import Topology

Tree = Any


class DoesNotFitError(ValueError):
    """The program needs more memory than a chip has; the compiler says how much."""


@dataclass(frozen=True)
class ProgramCost:
    """One run of a compiled program, on one of its devices.

    Attributes:
        topology: what it is compiled for.
        device_kind: the chip's name in JAX.
        devices: how many run it.
        argument_bytes: memory of the arguments.
        output_bytes: memory of the results.
        alias_bytes: the part of the results that lies in donated arguments.
        temporary_bytes: memory of everything between.
        peak_bytes: the most memory in use at a time.
        fits: whether that is within the chip's memory; None where the memory is not known.
        flops: XLA's count; for a GPU, those of convolutions and matrix products.
        bytes_accessed: to and from memory: XLA's count; for a GPU, `hlo_counts.traffic`.
        kernels: instructions that run one after another, loops by their turns.
        seconds: XLA's estimate; None where it has none (GPU, CPU, tiny programs).
        collectives: by kind, with bytes.
        compile_seconds: how long the compiler took.
    """

    topology: str
    device_kind: str
    devices: int
    argument_bytes: int
    output_bytes: int
    alias_bytes: int
    temporary_bytes: int
    peak_bytes: int
    fits: bool | None
    flops: float
    bytes_accessed: float
    kernels: int
    seconds: float | None
    collectives: tuple[Collective, ...]
    compile_seconds: float


class Lowerable(Protocol):
    """A function that can be compiled ahead of time."""

    @property
    def lower(self) -> Callable[..., jax.stages.Lowered]:
        """Lowers the function for abstract arguments."""
        ...


def compile_program(program: Lowerable, topology: Topology, *args: Tree) -> ProgramCost:
    """Compiles a program for devices that need not be here, and reads what it will cost.

    Args:
        program: a function that `jax.jit` has wrapped, or a `Compiled` of `DataParallel`.
        topology: from `find_topology`.
        *args: its arguments, abstract and on a mesh of `topology.devices`: see `abstract`.

    Raises:
        ValueError: if an argument is not on these devices.
        DoesNotFitError: if the compiler refuses it for want of memory. XLA's GPU compiler does
            not: there `fits` is False.
    """
    _check_placed(topology, args)
    begin = time.perf_counter()
    try:
        compiled = program.lower(*args).compile(_fast(topology))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).splitlines()[0].partition("RESOURCE_EXHAUSTED: ")[2]
        raise DoesNotFitError(
            f"the program does not fit {topology.name}: {reason} "
            "Make the batch smaller, or compute activations again (remat)."
        ) from error
    return _read(compiled, topology, time.perf_counter() - begin)


def _fast(topology: Topology) -> dict[str, str | bool] | None:
    """Returns the compiler's options: for CPUs less time to compile, which changes no figure."""
    return {"xla_backend_optimization_level": "0"} if topology.chip.platform == "cpu" else None


def abstract(tree: Tree, sharding: jax.sharding.Sharding) -> Tree:
    """Returns a tree's shapes and dtypes, placed: arguments for `compile_program`.

    Args:
        tree: of arrays or `jax.ShapeDtypeStruct`.
        sharding: of every leaf, over a mesh of a topology's devices.
    """
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def _check_placed(topology: Topology, args: Tree) -> None:
    """Refuses arguments that are not placed: XLA would compile for this machine without a word."""
    ours = set(topology.devices)
    placed = False
    for path, leaf in jax.tree_util.tree_flatten_with_path(args)[0]:
        sharding = getattr(leaf, "sharding", None)
        if sharding is not None and not sharding.device_set <= ours:
            raise ValueError(
                f"args{jax.tree_util.keystr(path)} is not on {topology.name}: pass it through "
                "`abstract` with a sharding over a mesh of the topology's devices."
            )
        placed = placed or sharding is not None
    if not placed:
        raise ValueError(
            f"args: none is placed on {topology.name}: pass them through `abstract` with a "
            "sharding over a mesh of the topology's devices."
        )


def _read(compiled: jax.stages.Compiled, topology: Topology, seconds: float) -> ProgramCost:
    chip = topology.chip
    memory, text = compiled.memory_analysis(), compiled.as_text()
    cost = {} if chip.platform == "cuda" else compiled.cost_analysis()
    if memory is None or text is None or cost is None:
        raise RuntimeError(
            f"this version of JAX says nothing about programs for {topology.name}: use another."
        )
    module = parse(text)
    moved = traffic(module)
    if chip.platform == "cuda":  # XLA has no cost analysis for a GPU that is not there
        flops, accessed, estimate = float(matmul_flops(module)), float(moved.bytes), None
    else:
        flops, accessed = cost["flops"], cost["bytes accessed"]
        estimate = cost.get("optimal_seconds") if chip.platform == "tpu" else None
    peak = memory.peak_memory_in_bytes
    if chip.platform == "cpu":  # whose own figure leaves temporaries out
        peak = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
        )
    return ProgramCost(
        topology=topology.name,
        device_kind=topology.devices[0].device_kind,
        devices=len(topology.devices),
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        peak_bytes=peak,
        fits=None if chip.memory_bytes is None else peak <= chip.memory_bytes,
        flops=flops,
        bytes_accessed=accessed,
        kernels=moved.kernels,
        seconds=estimate if estimate is not None and estimate > 0 else None,
        collectives=collectives(module),
        compile_seconds=seconds,
    )
