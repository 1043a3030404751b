"""Steps that are compiled and never run: functions with the shapes of their arguments."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from bnjax.compilers.cost import ProgramCost, abstract, compile_program
from bnjax.compilers.topologies import Topology
from bnjax.models import apply_train
from bnjax.training.objectives import Objective
from bnjax.training.parallel import DataParallel
from bnjax.training.state import TrainState
from bnjax.training.steps import cross_entropy, make_train_step


class AbstractStep(NamedTuple):
    """A function of something replicated and a batch, and the shapes of both.

    Attributes:
        function: `(replicated, batch) -> results`, which are the same on all chips.
        replicated: tree of `jax.ShapeDtypeStruct`; every chip holds all of it.
        batch: the same, of the whole batch, which is split over the chips.
        axis: of the examples in `batch`.
        donate: whether results may take the place of `replicated`.
        shared: further arguments as `replicated`, whose place no result takes.
    """

    function: Callable[[Any, Any], Any]
    replicated: Any
    batch: Any
    axis: int = 0
    donate: bool = True
    shared: tuple[Any, ...] = ()


def compile_step(step: AbstractStep, topology: Topology, parallel: DataParallel) -> ProgramCost:
    """Compiles a step as a run over these chips would.

    Args:
        step: for the chips' whole batch.
        topology: the chips.
        parallel: over the topology's devices.

    Raises:
        DoesNotFitError: if the compiler refuses it for want of memory.
    """
    compile_function = parallel.compile_train if step.donate else parallel.compile_eval
    everywhere, by_example = parallel.shardings(axis=step.axis)
    return compile_program(
        compile_function(step.function, axis=step.axis),
        topology,
        abstract(step.replicated, everywhere),
        abstract(step.batch, by_example),
        *abstract(step.shared, everywhere),
    )


def training_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    image: tuple[int, int, int],
    examples: int,
    objective: Objective = cross_entropy,
) -> AbstractStep:
    """Returns a whole training step on images in bfloat16.

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
        return apply_train(model, variables, images, jax.random.key(0))

    return AbstractStep(make_train_step(apply, tx, objective), jax.eval_shape(start), batch)
