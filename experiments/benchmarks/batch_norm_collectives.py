"""Collectives of a layer that is spread over eight devices, counted in the compiled program.

In a process of its own, on eight pretended CPU devices: where time is measured, there must be one.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bnjax.command import command
from experiments.benchmarks.batch_norm_layers import Wanted
from experiments.benchmarks.batch_norm_programs import (
    arranged,
    forward,
    forward_and_backward,
    layer_of,
    made_inputs,
)

DEVICES = 8

_AXIS = "devices"
_SHAPE = (16, 4, 4, 8)
_COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(-start)?\("
)


def collectives_apart(names: Sequence[str]) -> dict[str, Any]:
    """`collectives` of each named contestant, from another process.

    Raises:
        RuntimeError: if that process fails.
    """
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benchmarks.batch_norm_collectives", *names],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"counting collectives failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def collectives(name: str) -> dict[str, dict[str, Any]]:
    """Collectives of one contestant, forward and backward.

    Returns:
        `jit`: under `jit` and `jax.set_mesh`, with the examples spread over all devices;
        `shard_map`: with the axis name given to the layer. Each has the counts `forward` and
        `backward`, or `refused`: why.
    """
    counts: dict[str, dict[str, Any]] = {}
    for mode, compiled in (("jit", _under_jit), ("shard_map", _under_shard_map)):
        try:
            one, both = (_count(compiled(name, backward)) for backward in (False, True))
            counts[mode] = {"forward": one, "backward": both - one}
        except ValueError as error:  # Refused, or what a peer raises while it is traced
            counts[mode] = {"refused": str(error).partition("\n")[0]}
    return counts


def _under_jit(name: str, backward: bool) -> str:
    layer, arrays = _prepared(name, Wanted(_SHAPE, "float32"), backward)
    spread = NamedSharding(_mesh(), P(_AXIS))
    whole = NamedSharding(_mesh(), P())
    arrays = [jax.device_put(array, spread) for array in arrays]
    params, state = jax.device_put((layer.params, layer.state), whole)
    with jax.set_mesh(_mesh()):
        return _compiled(_function(layer, backward), *arrays, params, state)


def _under_shard_map(name: str, backward: bool) -> str:
    layer, arrays = _prepared(name, Wanted(_SHAPE, "float32", axis_name=_AXIS), backward)
    mapped = jax.shard_map(
        _function(layer, backward),
        mesh=_mesh(),
        in_specs=(*(P(_AXIS) for _ in arrays), P(), P()),
        out_specs=(P(_AXIS), P(), P(_AXIS), P()) if backward else (P(_AXIS), P()),
    )
    return _compiled(mapped, *arrays, layer.params, layer.state)


def _prepared(name: str, wanted: Wanted, backward: bool) -> tuple[Any, list[jax.Array]]:
    given = made_inputs(wanted.shape)
    layer = layer_of(name, wanted, given)
    values = (given.x, given.dy) if backward else (given.x,)
    return layer, [arranged(value, layer, wanted.dtype) for value in values]


def _function(layer: Any, backward: bool) -> Callable[..., Any]:
    return forward_and_backward(layer) if backward else forward(layer)


def _mesh() -> Mesh:
    return Mesh(np.array(jax.devices()[:DEVICES]), (_AXIS,), axis_types=(AxisType.Auto,))


def _compiled(function: Callable[..., Any], *arguments: Any) -> str:
    return jax.jit(function).lower(*arguments).compile().as_text() or ""


def _count(program: str) -> int:
    return len(_COLLECTIVE.findall(program))


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", DEVICES)
    with command():
        print(json.dumps({name: collectives(name) for name in sys.argv[1:]}))
