"""Compiling without running: figures against a program that can be counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bnjax.compilers.cost import (
    DoesNotFitError,
    abstract,
    compile_program,
)
from bnjax.compilers.hlo_counts import Collective
from bnjax.compilers.topologies import CHIPS, Topology, find_topology

CHIP = {chip.name: chip for chip in CHIPS}


@pytest.fixture
def topology():
    return find_topology("cpu:8")


def shardings(topology):
    mesh = Mesh(np.array(topology.devices), ("data",))
    return NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))


def update(weights, images):
    """A step: a mean over all devices, and new weights."""
    return weights - jax.grad(lambda w: jnp.square(images @ w).mean())(weights)


WEIGHTS = jax.ShapeDtypeStruct((32, 16), jnp.float32)
IMAGES = jax.ShapeDtypeStruct((64, 32), jnp.float32)


def test_figures_are_of_one_device(topology):
    """Red where memory, FLOPs or collectives are those of all devices, or donation is lost."""
    everywhere, split = shardings(topology)
    program = jax.jit(update, donate_argnums=0, out_shardings=everywhere)
    cost = compile_program(
        program, topology, abstract(WEIGHTS, everywhere), abstract(IMAGES, split)
    )
    weights, images = 4 * 32 * 16, 4 * 64 * 32 // 8
    assert (cost.topology, cost.devices, cost.device_kind) == ("cpu:8", 8, "cpu")
    assert cost.argument_bytes == weights + images
    assert cost.output_bytes == cost.alias_bytes == weights
    assert cost.peak_bytes == weights + images + cost.temporary_bytes
    assert cost.collectives == (Collective("all-reduce", 1, weights),)
    products = 2 * 2 * (64 // 8) * 32 * 16
    assert products <= cost.flops < 1.3 * products
    assert cost.bytes_accessed >= 2 * (weights + images)
    assert cost.kernels > 1
    assert cost.seconds is None
    assert cost.fits is True
    assert cost.compile_seconds > 0


def test_a_program_for_another_place_is_refused(topology):
    """XLA would compile it for this machine, and the figures would be wrong in silence."""
    everywhere, _ = shardings(topology)
    with pytest.raises(ValueError, match=r"args: none is placed on cpu:8: .*`abstract`"):
        compile_program(jax.jit(update), topology, WEIGHTS, IMAGES)
    two = Topology("cpu:2", topology.chip, topology.devices[:2])
    with pytest.raises(ValueError, match=r"args\[1\]\['x'\] is not on cpu:2"):
        compile_program(
            jax.jit(lambda w, tree: w @ tree["x"]),
            two,
            WEIGHTS,
            {"x": abstract(IMAGES, everywhere)},
        )


def test_abstract_keeps_shapes_and_dtypes(topology):
    everywhere, _ = shardings(topology)
    tree = abstract({"a": np.zeros((2, 3), np.int32), "b": (IMAGES,)}, everywhere)
    assert tree["a"] == jax.ShapeDtypeStruct((2, 3), jnp.int32, sharding=everywhere)
    assert tree["b"][0].sharding == everywhere


class Refusing:
    """A jitted function whose compiler refuses."""

    def __init__(self, message):
        self.message = message

    def lower(self, *args):
        return self

    def compile(self, options):
        raise jax.errors.JaxRuntimeError(self.message)


def test_a_compiler_that_runs_out_of_memory_is_quoted(topology):
    everywhere, _ = shardings(topology)
    message = "RESOURCE_EXHAUSTED: needs 128.03G, has 15.75G.\nSee more."
    with pytest.raises(DoesNotFitError, match=r"fit cpu:8: needs 128.03G, has 15.75G. Make the"):
        compile_program(Refusing(message), topology, abstract(WEIGHTS, everywhere))
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        compile_program(Refusing("INTERNAL: bug"), topology, abstract(WEIGHTS, everywhere))


TEXT = """HloModule m
ENTRY %main (p: f32[4,8]) -> f32[4,4] {
  %p = f32[4,8] parameter(0)
  %q = f32[8,4] parameter(1)
  ROOT %d = f32[4,4] dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""


class Memory:
    argument_size_in_bytes = 100
    output_size_in_bytes = 20
    alias_size_in_bytes = 10
    temp_size_in_bytes = 50
    peak_memory_in_bytes = 140


class Compiled:
    """Stands in for a platform's compiler and its answers."""

    def __init__(self, cost, peak=140):
        self.cost, self.peak = cost, peak

    def lower(self, *args):
        return self

    def compile(self, options):
        return self

    def as_text(self):
        return TEXT

    def memory_analysis(self):
        return type("Memory", (Memory,), {"peak_memory_in_bytes": self.peak})

    def cost_analysis(self):
        return self.cost


def said(chip, cost, peak=140):
    devices = tuple(jax.devices()[:1])
    topology = Topology(f"{chip}:1", CHIP[chip], devices)
    everywhere, _ = shardings(topology)
    return compile_program(Compiled(cost, peak), topology, abstract(WEIGHTS, everywhere))


def test_a_tpus_figures_are_xlas_own():
    cost = said("v5e", {"flops": 7.0, "bytes accessed": 9.0, "optimal_seconds": 0.5})
    assert (cost.flops, cost.bytes_accessed, cost.seconds) == (7.0, 9.0, 0.5)
    assert (cost.peak_bytes, cost.fits) == (140, True)
    assert said("v5e", {"flops": 7.0, "bytes accessed": 9.0}, peak=2**34 + 1).fits is False


@pytest.mark.parametrize("nonsense", [-998.7, 0.0])
def test_nonsense_is_no_estimate(nonsense):
    figures = {"flops": 7.0, "bytes accessed": 9.0, "optimal_seconds": nonsense}
    assert said("v5e", figures).seconds is None


def test_a_gpus_figures_are_counted():
    """XLA has none for a GPU that is not there."""
    cost = said("h100", None)
    assert cost.flops == 2 * 4 * 4 * 8
    assert cost.bytes_accessed == 4 * (32 + 32 + 16)
    assert cost.seconds is None


def test_a_compiler_that_says_nothing_is_named():
    with pytest.raises(RuntimeError, match="says nothing about programs for v5e:1"):
        said("v5e", None)


def test_nothing_is_run(topology):
    """A terabyte of arguments: red where a program is executed."""
    _, split = shardings(topology)
    huge = jax.ShapeDtypeStruct((2**33, 32), jnp.float32)
    cost = compile_program(jax.jit(lambda x: x.sum()), topology, abstract(huge, split))
    assert cost.argument_bytes == 2**33 * 32 * 4 // 8
