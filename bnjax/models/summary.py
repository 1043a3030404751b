"""A network's layers, output sizes, parameters and multiply-adds, without computing anything."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

Path = tuple[str, ...]


class Layer(NamedTuple):
    """A submodule and all that is in it.

    Attributes:
        name: its path.
        output: the shape for one image.
        parameters: numbers in the collection `params`.
        statistics: numbers in the collection `batch_stats`.
        multiply_adds: of its convolutions and dense layers, for one image.
    """

    name: str
    output: tuple[int, ...]
    parameters: int
    statistics: int
    multiply_adds: int


class Summary(NamedTuple):
    """A network's layers and their sums, from `summarize`.

    Attributes:
        layers: in the order in which they run.
        network: everything but the side heads.
        auxiliary: the side heads, which run in training only; zeros if there are none.
    """

    layers: list[Layer]
    network: Layer
    auxiliary: Layer


def summarize(model: nn.Module, image: tuple[int, ...], *, depth: int = 1) -> Summary:
    """Counts by abstract evaluation of `model.init`; no array is made.

    Multiply-adds are those of `nn.Conv` and `nn.Dense`: one for each weight that meets a value,
    padding included, as papers count them. Normalization, pooling and biases are left out.

    Args:
        model: called with `[1, *image]` and `train`.
        image: shape of one image, `(h, w, c)`.
        depth: how far to split: 1 for the network's own submodules, 2 for theirs too.

    Raises:
        ValueError: if depth is less than 1, and what the model raises for such an image.

    Example:
        >>> from bnjax.models import MLP
        >>> summarize(MLP((100,), norm="batch"), (28, 28, 1)).network.parameters
        79610
    """
    if depth < 1:
        raise ValueError(f"depth must be 1 or more, got {depth}.")
    outputs: dict[Path, tuple[int, ...]] = {}
    multiply_adds: Counter[Path] = Counter()

    def record(
        call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        path = context.module.path
        if context.method_name == "__call__" and path:
            outputs[path] = ()  # its place, before its submodules'
        y = call(*args, **kwargs)
        if context.method_name == "__call__" and path:
            outputs[path] = y.shape[1:]
            if isinstance(context.module, nn.Conv | nn.Dense):
                kernel: jax.Array = context.module.get_variable("params", "kernel")
                multiply_adds[path] += math.prod(y.shape[1:-1]) * kernel.size
        return y

    def initialize() -> Any:
        return model.init(jax.random.key(0), jnp.zeros((1, *image)), train=False)

    with nn.intercept_methods(record):
        variables = jax.eval_shape(initialize)

    def layer(name: str, output: tuple[int, ...], inside: Callable[[Path], bool]) -> Layer:
        return Layer(
            name,
            output,
            _count(variables.get("params", {}), inside),
            _count(variables.get("batch_stats", {}), inside),
            sum(n for path, n in multiply_adds.items() if inside(path)),
        )

    def below(top: Path) -> Callable[[Path], bool]:
        return lambda path: path[: len(top)] == top

    parents = {path[:i] for path in outputs for i in range(len(path))}
    return Summary(
        [
            layer("/".join(path), output, below(path))
            for path, output in outputs.items()
            if len(path) == depth or (len(path) < depth and path not in parents)
        ],
        layer("network", outputs.get(("logits",), ()), lambda path: not is_auxiliary(path[0])),
        layer("side heads", (), lambda path: is_auxiliary(path[0])),
    )


def is_auxiliary(name: str) -> bool:
    """Whether a network's submodule of that name is a side head."""
    return name.startswith("auxiliary")


def format_summary(title: str, summary: Summary) -> str:
    """The table as text: a line for each layer, then the sums."""
    sums = [summary.network, *([summary.auxiliary] if summary.auxiliary.parameters else [])]
    rows = [
        (
            layer.name,
            "x".join(map(str, layer.output)),
            f"{layer.parameters:,}",
            f"{layer.statistics:,}",
            f"{layer.multiply_adds:,}",
        )
        for layer in (*summary.layers, *sums)
    ]
    head = ("layer", "output", "parameters", "statistics", "multiply-adds")
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]
    rule = "-" * max(map(len, lines))
    split = len(lines) - len(sums)
    return "\n".join([title, lines[0], rule, *lines[1:split], rule, *lines[split:]])


def _count(tree: Any, inside: Callable[[Path], bool]) -> int:
    return sum(
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if inside(tuple(key.key for key in path))
    )
