"""Which layer's output goes where in a Linen model, read from the program that JAX traces."""

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.extend.core import Jaxpr, JaxprEqn, Literal

Path = tuple[str, ...]
Value = int
"""A value of the program: two that are equal are the same array, whatever it is called."""

IsLayer = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], bool]


class Call(NamedTuple):
    """A layer's call, as it was traced.

    Attributes:
        layer: the module, unbound.
        path: where it is in the model.
        variables: shapes and dtypes of its variables, by path from the layer: ("params", "bias").
        x: shape and dtype of its first argument.
        y: shape and dtype of its result.
        operands: how many arrays it takes, variables included.
    """

    layer: nn.Module
    path: Path
    variables: dict[Path, jax.ShapeDtypeStruct]
    x: jax.ShapeDtypeStruct
    y: jax.ShapeDtypeStruct
    operands: int


class Site(NamedTuple):
    """A place in the program where a call is executed.

    Attributes:
        call: which one; `nn.jit` may execute one call at several sites.
        location: path of the layer whose variables are read; None if these are not variables of
            the model as they stand, because something stacks or changes them, or of another layer.
        variables: what is read, in the order of `call.variables`.
        x: the first argument.
        y: the result.
    """

    call: Call
    location: Path | None
    variables: tuple[Value, ...]
    x: Value
    y: Value


class Dataflow(NamedTuple):
    """The program of a model.

    Attributes:
        calls: all calls of layers.
        sites: their executions, but for those inside a scan, a cond and the like, into which this
            does not look.
        uses: how often each value is used, as an operand or as a result of the program.
    """

    calls: list[Call]
    sites: list[Site]
    uses: Counter[Value]


def trace(
    model: nn.Module,
    variables: Mapping[Path, Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    is_layer: IsLayer,
) -> Dataflow:
    """Traces `model.apply` with each call of a layer as one operation.

    Args:
        model: the module.
        variables: its variables, flattened: {("params", "conv", "kernel"): array}.
        args: arguments of `model.apply`; what is no array is static.
        kwargs: the same, by name.
        is_layer: says of a module and the arguments of its `__call__` whether it is a layer. The
            first argument and the result of one must be arrays.
    """
    known = {path: leaf for path, leaf in variables.items() if is_array(leaf)}
    arrays, put_back = split_arrays((tuple(args), dict(kwargs)))
    calls: list[Call] = []

    def program(values: Sequence[jax.Array], arrays: Sequence[jax.Array]) -> Any:
        tree = unflatten_dict({**variables, **dict(zip(known, values, strict=True))})
        args, kwargs = put_back(arrays)
        with nn.intercept_methods(_recorder(calls, is_layer)):
            return model.apply(tree, *args, **kwargs)

    with _tracing(object()):  # or nn.jit would reuse an earlier trace, which recorded nothing
        jaxpr = jax.make_jaxpr(program)(list(known.values()), arrays)
    reader = _Reader(calls)
    inputs = [reader.new() for _ in [*known, *arrays]]
    reader.uses.update(reader.read(_opened(jaxpr), inputs))
    paths = dict(zip(inputs, known, strict=False))
    shapes = {path: leaf.shape for path, leaf in known.items()}
    sites = [_located(site, paths, shapes) for site in reader.sites]
    at_home = {site.call.path for site in sites if site.location == site.call.path}
    sites = [s if s.call.path in at_home else s._replace(location=None) for s in sites]
    return Dataflow(calls, sites, reader.uses)


def is_array(leaf: Any) -> bool:
    """Whether a leaf has a shape and dtype; `jax.ShapeDtypeStruct`s do."""
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def is_call(context: Any) -> bool:
    """Whether an interceptor sees a module's `__call__`, and not while it makes its variables."""
    return context.method_name == "__call__" and not context.module.is_initializing()


def split_arrays(tree: Any) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
    """The arrays of a tree, and the function that puts others in their place."""
    leaves, structure = jax.tree.flatten(tree)
    where = [i for i, leaf in enumerate(leaves) if is_array(leaf)]

    def put_back(arrays: Sequence[Any]) -> Any:
        filled = list(leaves)
        for i, array in zip(where, arrays, strict=True):
            filled[i] = array
        return jax.tree.unflatten(structure, filled)

    return [leaves[i] for i in where], put_back


_tracing = jax.make_user_context()
_NAME = "bnjax.dataflow call "
_TRANSPARENT = ("jit", "pjit", "remat2", "checkpoint", "closed_call")
"""Operations that execute their body just once, operand for operand."""


def _recorder(calls: list[Call], is_layer: IsLayer) -> Callable[..., Any]:
    """Makes a `jit` of its own of each layer's call, named by its number in `calls`."""
    inside = False

    def intercept(next_call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        nonlocal inside
        module = context.module
        if inside or not is_call(context) or not is_layer(module, args, kwargs):
            return next_call(*args, **kwargs)
        layer = module.clone(parent=None, name=None)
        variables = flatten_dict(module.variables)
        given = inspect.signature(type(module).__call__).bind(module, *args, **kwargs)
        arrays, put_back = split_arrays((given.args[1:], given.kwargs))

        def call(values: Sequence[jax.Array], arrays: Sequence[jax.Array]) -> jax.Array:
            args, kwargs = put_back(arrays)
            tree = unflatten_dict(dict(zip(variables, values, strict=True)))
            return layer.apply(tree, *args, **kwargs)

        call.__name__ = f"{_NAME}{len(calls)}"
        inside = True
        try:
            y = jax.jit(call)(list(variables.values()), arrays)
        except Exception as error:
            error.add_note(f"The layer is {type(module).__name__} at {'/'.join(module.path)}.")
            raise
        finally:
            inside = False
        shapes = {path: _described(leaf) for path, leaf in variables.items()}
        x, operands = _described(arrays[0]), len(variables) + len(arrays)
        calls.append(Call(layer, module.path, shapes, x, _described(y), operands))
        return y

    return intercept


class _Reader:
    """Follows values through a jaxpr and the bodies in it."""

    def __init__(self, calls: list[Call]):
        self.calls = calls
        self.sites: list[Site] = []
        self.uses: Counter[Value] = Counter()
        self._numbers = count()

    def new(self) -> Value:
        return next(self._numbers)

    def read(self, jaxpr: Jaxpr, inputs: Sequence[Value]) -> list[Value]:
        """The values that `jaxpr` returns for `inputs`."""
        values = dict(zip(jaxpr.invars, inputs, strict=True))

        def value(atom: Any) -> Value:
            return self.new() if isinstance(atom, Literal) else values.setdefault(atom, self.new())

        for eqn in jaxpr.eqns:
            operands = [value(atom) for atom in eqn.invars]
            call = self._call(eqn)
            if call is None and eqn.primitive.name in _TRANSPARENT:
                results = self.read(_opened(eqn.params["jaxpr"]), operands)
            else:
                self.uses.update(operands)
                results = [self.new() for _ in eqn.outvars]
            if call is not None:
                *variables, x = operands[: len(call.variables) + 1]
                self.sites.append(Site(call, None, tuple(variables), x, results[0]))
            values.update(zip(eqn.outvars, results, strict=True))
        return [value(atom) for atom in jaxpr.outvars]

    def _call(self, eqn: JaxprEqn) -> Call | None:
        """The call that an operation executes; not the derivative of one, which takes more."""
        name = str(eqn.params.get("name", ""))
        if not name.startswith(_NAME):
            return None
        call = self.calls[int(name.removeprefix(_NAME))]
        return call if (len(eqn.invars), len(eqn.outvars)) == (call.operands, 1) else None


def _opened(jaxpr: Any) -> Jaxpr:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _described(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _located(site: Site, paths: dict[Value, Path], shapes: dict[Path, tuple[int, ...]]) -> Site:
    """The site with its location, if all its variables lie where one layer's variables do."""
    locations = set()
    for (relative, described), value in zip(
        site.call.variables.items(), site.variables, strict=True
    ):
        collection, *rest = relative
        path = paths.get(value, ())
        location = path[1 : len(path) - len(rest)]
        there = path == (collection, *location, *rest) and shapes.get(path) == described.shape
        locations.add(location if there else None)
    return site._replace(location=locations.pop() if len(locations) == 1 else None)
