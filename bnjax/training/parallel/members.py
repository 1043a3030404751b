"""Independent runs of one program side by side: seeds, learning rates.

Members' states are stacked on a leading axis, which is split over the devices; each device runs
its members one after another (`"map"`) or together (`"vmap"`). On CPUs one device per core and
`"map"` is fastest: small matrix products do not gain from several threads
(`experiments/benchmarks`: one seed against ten). A member's numbers do not depend on the members
beside it, except that a compiled loop over one member may round differently from one over several.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bnjax.cores import usable_cores
from bnjax.scalars import check_choice, integer
from bnjax.training.keys import from_array, key_impl, to_array
from bnjax.training.parallel.copies import as_own

Tree = Any
Together = Literal["map", "vmap"]

_AXIS = "members"


def one_cpu_device_per_core() -> None:
    """Makes every CPU core a JAX device. Call before the first computation.

    Raises:
        RuntimeError: if JAX has started already.
    """
    jax.config.update("jax_num_cpu_devices", usable_cores())


def default_together() -> Together:
    """Returns `"map"` on CPUs, `"vmap"` on accelerators, which small products leave idle."""
    return "map" if jax.default_backend() == "cpu" else "vmap"


class Members:
    """Places and compiles for a number of members over the devices at hand.

    With fewer members than devices the rest idle; where members do not divide evenly, the last
    one is computed again to fill up, and dropped.
    """

    def __init__(self, count: int, *, together: Together) -> None:
        count = integer("count", count, least=1)
        check_choice("together", together, Together)
        devices = jax.local_devices()[:count]
        self.count = count
        self.together = together
        self._padded = -(-count // len(devices)) * len(devices)
        self._mesh = Mesh(np.array(devices), (_AXIS,), axis_types=(AxisType.Auto,))

    @property
    def devices(self) -> int:
        """Devices in use."""
        return self._mesh.size

    def place(self, stacked: Tree) -> Tree:
        """Puts arrays `[count, ...]`, keys among them, on the devices, split by member."""

        def pad(leaf: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
            array = np.asarray(to_array(leaf))
            filled = array[np.minimum(np.arange(self._padded), self.count - 1)]
            return from_array(filled, key_impl(leaf))

        return jax.device_put(jax.tree.map(pad, stacked), NamedSharding(self._mesh, P(_AXIS)))

    def share(self, data: Tree) -> Tree:
        """Puts a copy of arrays that all members read on each device."""

        def own(leaf: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
            return leaf if isinstance(leaf, jax.Array) else as_own(leaf, self._mesh.devices.flat[0])

        return jax.device_put(jax.tree.map(own, data), NamedSharding(self._mesh, P()))

    def fetch(self, stacked: Tree) -> Tree:
        """NumPy arrays `[count, ...]`, the filling dropped; keys stay keys."""

        def own(leaf: jax.Array) -> jax.Array | np.ndarray:
            return from_array(np.asarray(to_array(leaf))[: self.count], key_impl(leaf))

        return jax.tree.map(own, stacked)

    def compile(
        self, function: Callable[..., Tree], *, per_member: int, donate: bool = False
    ) -> Callable[..., Tree]:
        """Compiles a function of one member for all of them.

        Args:
            function: its first `per_member` arguments are one member's; the others are shared.
            per_member: how many of the compiled function's arguments are stacked.
            donate: whether the first argument's buffers are given up to the result.
        """

        def all_members(*args: Tree) -> Tree:
            own, shared = args[:per_member], args[per_member:]

            def one(own: Tree) -> Tree:
                return function(*own, *shared)

            return jax.vmap(one)(own) if self.together == "vmap" else jax.lax.map(one, own)

        def on_mesh(*args: Tree) -> Tree:
            specs = tuple(P(_AXIS) if i < per_member else P() for i in range(len(args)))
            return jax.shard_map(
                all_members, mesh=self._mesh, in_specs=specs, out_specs=P(_AXIS), check_vma=False
            )(*args)

        return jax.jit(on_mesh, donate_argnums=(0,) if donate else ())


def member(stacked: Tree, position: int) -> Tree:
    """One member's share of a stacked tree."""
    return jax.tree.map(lambda leaf: leaf[position], stacked)
