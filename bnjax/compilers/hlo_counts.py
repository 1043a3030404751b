"""Counts, in a compiled program's text, what one device moves and multiplies."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from bnjax.compilers.hlo import (
    Computation,
    Execution,
    Instruction,
    Module,
    dimensions,
    elements,
    shape_bytes,
)

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)

_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast"),
    *("after-all", "opt-barrier", "partition-id", "replica-id"),
}
_CONTROL = {"call", "while", "conditional"}
_SLICES = {"slice", "dynamic-slice", "gather"}
_CUDNN = {  # which of (first operand, second operand, result) is input, kernel and output
    "__cudnn$convForward": (0, 1, 2),
    "__cudnn$convBiasActivationForward": (0, 1, 2),
    "__cudnn$convBackwardInput": (2, 1, 0),
    "__cudnn$convBackwardFilter": (0, 2, 1),
}


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind.

    Attributes:
        kind: one of `COLLECTIVES`.
        count: how often one runs.
        bytes: operands of all of them on one device, or results, whichever are more.
    """

    kind: str
    count: int
    bytes: int


class Traffic(NamedTuple):
    """The instructions that a device runs one after another.

    Attributes:
        bytes: operands and results of all of them.
        kernels: how many there are.
    """

    bytes: int
    kernels: int


def collectives(module: Module) -> tuple[Collective, ...]:
    """Counts collectives by kind, in calls, loops and fusions too.

    A pair of start and done is one. So are the parts of a collective that TPUs spread over several
    fusions, which share a channel. A loop counts by its turns where the compiler knows them.
    """
    totals: dict[str, Collective] = {}
    spread: set[tuple[str, str]] = set()
    for each in module.executions(fusions=True):
        kind = each.instruction.opcode.removesuffix("-start")
        if kind not in COLLECTIVES or _wraps(module, each.instruction):
            continue
        channel = re.search(r"channel_id=(\d+)", each.instruction.attributes)
        if each.fused and channel:
            if (kind, channel[1]) in spread:
                continue
            spread.add((kind, channel[1]))
        before = totals.get(kind, Collective(kind, 0, 0))
        totals[kind] = Collective(
            kind, before.count + each.times, before.bytes + each.times * _payload(each)
        )
    return tuple(totals[kind] for kind in COLLECTIVES if kind in totals)


def traffic(module: Module) -> Traffic:
    """Counts bytes where XLA does not say them (GPUs): each kernel's operands and result.

    Parameters, constants, tuples and bitcasts move nothing. Where a fusion only slices an operand,
    the slices count. Caches are left out, and so are a convolution's workspaces.
    """
    total, kernels = 0, 0
    for each in module.executions(fusions=False):
        instruction = each.instruction
        opcode = instruction.opcode
        if opcode in _FREE | _CONTROL or opcode.endswith(("-done", "-update")):
            continue
        if _wraps(module, instruction):
            continue
        kernels += each.times
        read = sum(_read(module, each, position) for position in range(len(instruction.operands)))
        total += each.times * (read + shape_bytes(_result(instruction)))
    return Traffic(total, kernels)


def matmul_flops(module: Module) -> int:
    """Returns the FLOPs of convolutions and matrix products; a multiply and an add are two.

    Those that XLA hands to cuDNN and cuBLAS count, products with padding do not.

    Raises:
        ValueError: for a library call whose dimensions cannot be read.
    """
    return sum(each.times * _flops(each) for each in module.executions(fusions=True))


def _wraps(module: Module, instruction: Instruction) -> bool:
    """Returns whether it only starts a computation that is printed, and counted, by itself."""
    return instruction.opcode.endswith("-start") and any(
        name in module.computations for name in instruction.called("calls")
    )


def _result(instruction: Instruction) -> str:
    """Returns the shape of what comes out; a start's also holds its operands and a context."""
    parts = elements(instruction.shape)
    if not instruction.opcode.endswith("-start") or len(parts) < 2:
        return instruction.shape
    if instruction.opcode == "copy-start":  # (result, operand, context)
        return parts[0]
    if instruction.opcode == "all-reduce-start" and not parts[0].startswith("("):
        return instruction.shape  # its older form gives the results alone
    return parts[1]  # (operands, results, contexts)


def _payload(execution: Execution) -> int:
    """Returns the bytes that go in or those that come out, whichever are more."""
    instruction = execution.instruction
    taken = sum(_operand_bytes(execution.computation, name) for name in instruction.operands)
    return max(taken, shape_bytes(_result(instruction)))


def _operand_bytes(computation: Computation, name: str) -> int:
    return shape_bytes(_result(computation[name]))


def _read(module: Module, execution: Execution, position: int) -> int:
    """Returns the bytes that an instruction reads of its operand."""
    instruction = execution.instruction
    whole = _operand_bytes(execution.computation, instruction.operands[position])
    for name in instruction.called("calls"):
        inside = module.computations[name]  # whose parameters have the operands' positions
        parameter = next(
            (
                other.name
                for other in inside.values()
                if other.opcode == "parameter" and other.operands == (str(position),)
            ),
            None,
        )
        if parameter is not None:
            users = list(_users(inside, parameter))
            if users and all(user.opcode in _SLICES for user in users):
                return min(whole, sum(shape_bytes(user.shape) for user in users))
    return whole


def _users(computation: Computation, name: str) -> Iterable[Instruction]:
    """Yields the instructions that use a value, itself or as a bitcast."""
    for other in computation.values():
        if name in other.operands and other.opcode != "parameter":
            if other.opcode == "bitcast":
                yield from _users(computation, other.name)
            else:
                yield other


def _flops(execution: Execution) -> int:
    instruction = execution.instruction
    if instruction.opcode == "dot":
        return _dot_flops(execution, r"lhs_contracting_dims=\{([\d,]*)\}")
    if instruction.opcode == "convolution":
        return _convolution_flops(instruction, _three_shapes(execution))
    if instruction.opcode == "custom-call":
        target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
        name = target[1] if target else ""
        if name in _CUDNN:
            shapes = _three_shapes(execution)
            roles = _CUDNN[name]
            return _convolution_flops(instruction, [shapes[role] for role in roles])
        if name.startswith(("__cublas$gemm", "__cublas$lt$matmul")):
            return _dot_flops(execution, r'"lhs_contracting_dimensions":\[([\d,"]*)\]')
    return 0


def _dot_flops(execution: Execution, pattern: str) -> int:
    instruction = execution.instruction
    found = re.search(pattern, instruction.attributes)
    if found is None:
        raise ValueError(f"text: no contracting dimensions in {instruction.attributes[:120]!r}.")
    left = dimensions(execution.computation[instruction.operands[0]].shape)
    contracted = math.prod(left[int(i)] for i in re.findall(r"\d+", found[1]))
    return 2 * math.prod(dimensions(instruction.shape)) * contracted


def _three_shapes(execution: Execution) -> list[tuple[int, ...]]:
    """Returns the sizes of both operands and of the result."""
    operands = [execution.computation[name].shape for name in execution.instruction.operands[:2]]
    return [dimensions(shape) for shape in (*operands, execution.instruction.shape)]


def _convolution_flops(instruction: Instruction, shapes: list[tuple[int, ...]]) -> int:
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if labels is None:
        raise ValueError(f"text: no dim_labels in {instruction.attributes[:120]!r}.")
    image, kernel, output = (
        dict(zip(names, sizes, strict=True))
        for names, sizes in zip(labels.groups(), shapes, strict=True)
    )
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    fields = dict(item.split("=") for item in window[1].split()) if window else {}
    spatial = sorted(set(image) - {"b", "f"})

    def by_axis(name: str, default: str) -> list[str]:
        return fields[name].split("x") if name in fields else [default] * len(spatial)

    strides, pads = by_axis("stride", "1"), by_axis("pad", "0_0")
    image_dilations, kernel_dilations = by_axis("lhs_dilate", "1"), by_axis("rhs_dilate", "1")
    products = output["b"] * output["f"] * kernel["i"]  # kernel["i"]: of one group
    for i, axis in enumerate(spatial):
        products *= _taps(
            image[axis],
            output[axis],
            kernel[axis],
            stride=int(strides[i]),
            before=int(pads[i].split("_")[0]),
            image_dilation=int(image_dilations[i]),
            kernel_dilation=int(kernel_dilations[i]),
        )
    return 2 * products


@cache
def _taps(
    image: int,
    output: int,
    kernel: int,
    *,
    stride: int,
    before: int,
    image_dilation: int,
    kernel_dilation: int,
) -> int:
    """Counts pairs of an output and a kernel position, along one axis, that meet the image."""
    last = (image - 1) * image_dilation
    places = (
        out * stride + tap * kernel_dilation - before
        for out in range(output)
        for tap in range(kernel)
    )
    return sum(0 <= place <= last and place % image_dilation == 0 for place in places)
