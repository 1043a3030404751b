"""What saves memory, in the step that the experiment compiles: bfloat16 and rematerialization.

What they compute: `tests/models/test_inception_transforms.py`.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import equations

from bnjax.training.parallel import DataParallel
from experiments.harness.arm import by_name
from experiments.harness.images.programs import training_program
from experiments.imagenet_inception.arms import ARMS
from experiments.imagenet_inception.config import PRESETS

QUICK = PRESETS["quick"]


def traced(config):
    """The step's equations, those within others too, and the state that it leaves behind."""
    program = training_program(config, by_name(ARMS, "bn_x5"), DataParallel("jit"), classes=10)
    state = jax.eval_shape(program.init, np.int32(0), np.float32(0.0015))
    jaxpr, (after, _) = jax.make_jaxpr(program.step, return_shape=True)(state, program.batch_shapes)
    return list(equations(jaxpr)), after


def convolutions(found):
    return [e.outvars[0].aval for e in found if e.primitive.name == "conv_general_dilated"]


@pytest.mark.slow
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_activations_have_the_type_of_the_computation(compute):
    found, after = traced(replace(QUICK, compute=compute))
    assert len(convolutions(found)) > 100
    assert {aval.dtype for aval in convolutions(found)} == {jnp.dtype(compute)}
    kept = jax.tree.leaves((after.train.params, after.train.batch_stats, after.train.opt_state))
    assert {leaf.dtype for leaf in kept} == {jnp.dtype("float32"), jnp.dtype("int32")}


@pytest.mark.slow
def test_each_inception_module_is_computed_again():
    """Ten of them, of Figure 5, in the backward pass; the stem is not."""
    plain, again = (traced(replace(QUICK, remat=remat))[0] for remat in (False, True))
    assert not [e for e in plain if "remat" in e.primitive.name]
    assert len([e for e in again if "remat" in e.primitive.name]) == 10
    assert len(convolutions(again)) > len(convolutions(plain))
