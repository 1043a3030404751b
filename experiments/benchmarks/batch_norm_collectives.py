"""Collectives of a layer that is spread over eight devices, counted in the compiled program.

They are counted in another process, on eight simulated CPU devices: where time is measured, there
must be one.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bnjax.command import command
from bnjax.compilers import hlo, hlo_counts
from experiments.benchmarks.batch_norm_layers import LayerSpec
from experiments.benchmarks.batch_norm_programs import forward_and_backward, make_layer, to_layout
from experiments.benchmarks.batch_norm_values import make_inputs

DEVICES = 8

_AXIS = "devices"
_SHAPE = (16, 4, 4, 8)


def collectives_in_subprocess(names: Sequence[str]) -> dict[str, Any]:
    """Returns `collectives` of each named contestant, from another process.

    Raises:
        RuntimeError: that process fails.
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
    """Counts the collectives of one contestant, forward and backward.

    Returns:
        `jit`: under `jit` and `jax.set_mesh`, with the examples split over all devices;
        `shard_map`: with the axis name given to the layer. Each has the counts `forward` and
        `backward`, or `refused` with the reason.
    """
    counts: dict[str, dict[str, Any]] = {}
    for mode, compiled in (("jit", _under_jit), ("shard_map", _under_shard_map)):
        try:
            one, both = (_count(compiled(name, backward)) for backward in (False, True))
            counts[mode] = {"forward": one, "backward": both - one}
        except ValueError as error:  # UnsupportedError, or a peer's own error while it is traced
            counts[mode] = {"refused": str(error).partition("\n")[0]}
    return counts


def _under_jit(name: str, backward: bool) -> str:
    function, arrays, trees = _prepared(name, LayerSpec(_SHAPE, "float32"), backward)
    arrays = jax.device_put(arrays, NamedSharding(_mesh(), P(_AXIS)))
    trees = jax.device_put(trees, NamedSharding(_mesh(), P()))
    with jax.set_mesh(_mesh()):
        return _compiled(function, *arrays, *trees)


def _under_shard_map(name: str, backward: bool) -> str:
    spec = LayerSpec(_SHAPE, "float32", axis_name=_AXIS)
    function, arrays, trees = _prepared(name, spec, backward)
    mapped = jax.shard_map(
        function,
        mesh=_mesh(),
        in_specs=(*(P(_AXIS) for _ in arrays), P(), P()),
        out_specs=(P(_AXIS), P(), P(_AXIS), P()) if backward else (P(_AXIS), P()),
    )
    return _compiled(mapped, *arrays, *trees)


def _prepared(
    name: str, spec: LayerSpec, backward: bool
) -> tuple[Callable[..., Any], list[jax.Array], tuple[Any, Any]]:
    """Returns the function, its arrays, which have examples, and its parameters and state."""
    inputs = make_inputs(spec.shape)
    layer = make_layer(name, spec, inputs)
    function = forward_and_backward(layer) if backward else layer.apply
    values = (inputs.x, inputs.dy) if backward else (inputs.x,)
    arrays = [to_layout(value, layer, spec.dtype) for value in values]
    return function, arrays, (layer.params, layer.state)


def _mesh() -> Mesh:
    return Mesh(np.array(jax.devices()[:DEVICES]), (_AXIS,), axis_types=(AxisType.Auto,))


def _compiled(function: Callable[..., Any], *arguments: Any) -> str:
    return jax.jit(function).lower(*arguments).compile().as_text() or ""


def _count(program: str) -> int:
    return sum(kind.count for kind in hlo_counts.collectives(hlo.parse(program)))


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", DEVICES)
    with command():
        print(json.dumps({name: collectives(name) for name in sys.argv[1:]}))
