"""One run on all devices of all hosts: states copied, batches split by example.

Three ways to compile the same step. They agree within rounding, and a program's layers and step
are told which it is by `axis_name`:

- `"jit"`: one program over the whole batch; the compiler divides it. Layers see all examples.
- `"shard_map"`: the program of one device, which exchanges what it must over the axis `"data"`.
- `"pmap"`: the same by JAX's older interface, whose arrays have an axis of devices.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bnjax.scalars import check_choice, integer
from bnjax.training.keys import from_array, is_key, key_impl, to_array
from bnjax.training.parallel.copies import as_own, check_kept, check_same

Tree = Any
How = Literal["jit", "shard_map", "pmap"]
"""How a step is compiled for several devices."""

_AXIS = "data"


class DataParallel:
    """Places the arrays, and compiles the functions, of one run over a number of devices.

    Args:
        how: how steps are compiled, see `How`.
        devices: all devices of all hosts by default; or those of a topology, to compile for.

    Attributes:
        how: how steps are compiled.
        axis_name: the mapped axis of the devices, for layers and steps; None under `"jit"`.

    Raises:
        ValueError: for an unknown `how`, or no devices.

    Example:
        >>> parallel = DataParallel("shard_map", devices=jax.devices()[:1])
        >>> parallel.axis_name, parallel.device_count
        ('data', 1)
        >>> parallel.split({"x": np.ones((4, 2))})["x"].shape
        (4, 2)
    """

    def __init__(self, how: How = "jit", *, devices: Sequence[jax.Device] | None = None) -> None:
        check_choice("how", how, How)
        if devices is None:
            devices = jax.devices()
        if not devices:
            raise ValueError("devices must be one or more, got none.")
        # By host, so that the hosts' shares follow one another in the order of examples.
        devices = sorted(devices, key=lambda device: (device.process_index, device.id))
        self.how: How = how
        self.axis_name: str | None = None if how == "jit" else _AXIS
        self._mesh = Mesh(np.array(devices), (_AXIS,), axis_types=(AxisType.Auto,))
        self._replicated = NamedSharding(self._mesh, P())

    @property
    def devices(self) -> list[jax.Device]:
        """The devices of all hosts, by host."""
        return list(self._mesh.devices.flat)

    @property
    def device_count(self) -> int:
        """The number of devices of all hosts."""
        return self._mesh.size

    def under_jit(self) -> "DataParallel":
        """Returns the same devices under `"jit"`, for functions that are jitted themselves."""
        return DataParallel("jit", devices=self.devices)

    def check_batch(self, batch_size: int) -> None:
        """Raises ValueError unless each device gets equally many examples, at least one."""
        if integer("batch_size", batch_size) < 1 or batch_size % self.device_count:
            below = batch_size // self.device_count * self.device_count
            raise ValueError(
                f"batch_size={batch_size} cannot be split evenly over {self.device_count} devices: "
                f"use {f'{below} or ' if below > 0 else ''}{max(below, 0) + self.device_count}."
            )

    def replicate(self, tree: Tree) -> Tree:
        """Puts a copy of host arrays, which are the same on all hosts, on every device."""

        def put(leaf: Any) -> jax.Array:
            array = as_own(to_array(leaf), self.devices[0])
            copies = jax.make_array_from_process_local_data(self._replicated, array, array.shape)
            return from_array(copies, key_impl(leaf))

        return jax.tree.map(put, tree)

    def split(self, batch: Tree, *, axis: int = 0) -> Tree:
        """Puts a copy of this host's share of a batch on its devices.

        Args:
            batch: tree of host arrays, each with this host's examples along `axis`, in order.
            axis: axis of the examples: 1 for arrays of several batches, `[steps, n, ...]`.

        Returns:
            Arrays over the devices of all hosts; under `"pmap"` with an axis of devices.

        Raises:
            ValueError: if a leaf's examples cannot be split evenly, or are more than another's.
        """
        sharding = NamedSharding(self._mesh, self._spec(axis))
        local = len(self._mesh.local_devices)
        _check_examples(batch, axis, local)

        def put(leaf: Any) -> jax.Array:
            leaf = as_own(leaf, self.devices[0])
            if self.how == "pmap":  # an axis of devices before that of their examples
                own = leaf.shape[axis] // local
                leaf = leaf.reshape(*leaf.shape[:axis], local, own, *leaf.shape[axis + 1 :])
            whole = leaf.shape[axis] * self.device_count // local  # of all hosts
            shape = (*leaf.shape[:axis], whole, *leaf.shape[axis + 1 :])
            return jax.make_array_from_process_local_data(sharding, leaf, shape)

        return jax.tree.map(put, batch)

    def fetch(self, tree: Tree) -> Tree:
        """Returns host copies of a replicated tree: NumPy arrays, which donation does not touch.

        Typed PRNG keys stay keys. What is on the host already is copied.
        """

        def on_device(leaf: Any) -> bool:
            return isinstance(leaf, jax.Array)

        own = jax.tree.map(lambda leaf: leaf.addressable_data(0) if on_device(leaf) else leaf, tree)
        for leaf in filter(on_device, jax.tree.leaves(own)):  # all at once, not one after another
            leaf.copy_to_host_async()
        return jax.tree.map(lambda leaf: jnp.copy(leaf) if is_key(leaf) else np.array(leaf), own)

    def shardings(self, *, axis: int = 0) -> tuple[NamedSharding, NamedSharding]:
        """Returns where `replicate` and `split` put arrays, without putting any.

        For shapes on devices that are not here, see `bnjax.compilers.cost.abstract`.

        Args:
            axis: axis of the examples, as in `split`.
        """
        return self._replicated, NamedSharding(self._mesh, self._spec(axis))

    def compile_train(self, step: Callable[..., tuple[Tree, Tree]], *, axis: int = 0) -> "Compiled":
        """Compiles `step(state, batch) -> (state, metrics)`; the old state's buffers are given up.

        So are one's own device arrays, which `replicate` would have copied. What it returns raises
        ValueError for a state that was given up before; and at its first call, under `shard_map`
        and `pmap`, if the results differ between devices.

        Args:
            step: both results must be the same on all devices, as those of
                `bnjax.training.steps.make_train_step` with this `axis_name` are. A third argument
                is a tree that `replicate` has placed, and stays: data that the batch chooses from.
            axis: axis of the examples in `batch`, as in `split`.
        """
        return Compiled(self, step, axis, donate=True)

    def compile_eval(self, evaluate: Callable[[Tree, Tree], Tree], *, axis: int = 0) -> "Compiled":
        """Compiles `evaluate(variables, batch) -> sums`, which come back summed over all devices.

        Args:
            evaluate: sums over the examples that it is given.
            axis: axis of the examples in `batch`, as in `split`.
        """

        def of_all(variables: Tree, batch: Tree) -> Tree:
            sums = evaluate(variables, batch)
            return sums if self.axis_name is None else jax.lax.psum(sums, self.axis_name)

        return Compiled(self, of_all, axis, donate=False)

    def compile_map(self, function: Callable[[Tree, Tree], Tree], *, axis: int = 0) -> "Compiled":
        """Compiles `function(replicated, batch) -> batch`, split by example as the first one is.

        Args:
            function: of the examples that it is given; its results keep their order.
            axis: axis of the examples in both, as in `split`.
        """
        return Compiled(self, function, axis, donate=False, split=True)

    def compile_init(self, init: Callable[..., Tree]) -> Callable[..., Tree]:
        """Compiles `init(*args) -> replicated state`; `args` are host arrays, the same on all."""
        compiled = jax.jit(init, out_shardings=self._replicated)
        return lambda *args: compiled(*self.replicate(args))

    def _spec(self, axis: int) -> P:
        return P(*(None,) * axis, _AXIS)


class Compiled:
    """A compiled function of something replicated and a batch, for a `DataParallel`'s devices.

    A third argument, of what `replicate` has placed, reaches the function as it is.
    """

    def __init__(
        self,
        parallel: DataParallel,
        function: Callable[..., Tree],
        axis: int,
        *,
        donate: bool,
        split: bool = False,
    ) -> None:
        self._mesh, self._how, self._axis = parallel._mesh, parallel.how, axis
        self._donates = donate
        # A compiler that sees the whole batch makes one state; devices may each make their own.
        self._unproved = donate and self._how != "jit"
        whole, rows = P(), parallel._spec(axis)
        given = (0,) if donate else ()

        def on_device(replicated: Tree, inputs: tuple[Tree, tuple[Tree, ...]]) -> Tree:
            batch, shared = inputs
            return function(replicated, batch, *shared)

        if self._how == "pmap":
            self._compiled: Any = jax.pmap(
                on_device,
                axis_name=_AXIS,
                # A pair: JAX 0.10 takes axes of three arguments for those of three leaves.
                in_axes=(None, (axis, None)),
                out_axes=axis if split else None,
                devices=list(self._mesh.devices),
                donate_argnums=given,
            )
            return
        specs, result = (whole, (rows, whole)), rows if split else whole
        if self._how == "shard_map":
            # Without types of varying axes: they would sum each parameter's gradient by itself.
            on_device = jax.shard_map(
                on_device, mesh=self._mesh, in_specs=specs, out_specs=result, check_vma=False
            )
        self._compiled = jax.jit(
            on_device,
            in_shardings=jax.tree.map(lambda spec: NamedSharding(self._mesh, spec), specs),
            out_shardings=NamedSharding(self._mesh, result),
            donate_argnums=given,
        )

    def __call__(self, replicated: Tree, batch: Tree, *shared: Tree) -> Tree:
        """Runs it on results of `replicate`, or of an earlier call, and of `split`."""
        if self._donates:
            check_kept(replicated)
        result = self._run(replicated, batch, shared)
        if self._unproved:  # the first call: a program that exchanges too little does so at once
            check_same(result, _AXIS)
            self._unproved = False
        return result

    def _run(self, replicated: Tree, batch: Tree, shared: tuple[Tree, ...]) -> Tree:
        if self._how != "jit":
            return self._compiled(replicated, (batch, shared))
        with jax.set_mesh(self._mesh):  # layers divide their sums by it, see bnjax.normalize_batch
            return self._compiled(replicated, (batch, shared))

    def lower(self, replicated: Tree, batch: Tree, *shared: Tree) -> jax.stages.Lowered:
        """Lowers it, without data or devices.

        Args:
            replicated: tree of `jax.ShapeDtypeStruct` or arrays.
            batch: the same, for the whole batches of all hosts, without an axis of devices.
            shared: as `replicated`.
        """
        if self._how == "pmap":
            batch = jax.tree.map(self._with_devices, batch)
        if self._how != "jit":
            return self._compiled.lower(replicated, (batch, shared))
        with jax.set_mesh(self._mesh):
            return self._compiled.lower(replicated, (batch, shared))

    def _with_devices(self, leaf: Any) -> jax.ShapeDtypeStruct:
        axis, devices = self._axis, self._mesh.size
        own = leaf.shape[axis] // devices
        shape = (*leaf.shape[:axis], devices, own, *leaf.shape[axis + 1 :])
        return jax.ShapeDtypeStruct(shape, leaf.dtype)


def _check_examples(batch: Tree, axis: int, devices: int) -> None:
    """Raises ValueError unless all leaves have equally many examples, and so has each device."""
    count, first = 0, ""
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        name, shape = f"batch{jax.tree_util.keystr(path)}", np.shape(leaf)
        if len(shape) <= axis or not shape[axis] or shape[axis] % devices:
            raise ValueError(
                f"{name} has shape {shape}, whose axis {axis} cannot be split evenly over "
                f"{devices} devices."
            )
        count, first = count or shape[axis], first or name
        if shape[axis] != count:
            raise ValueError(
                f"{first} has {count} examples along axis {axis}, {name} {shape[axis]}: an example "
                "must have one row in each."
            )
