"""Reads the text of XLA's programs, from `Compiled.as_text()`, into instructions."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_BITS = {
    "pred": 8,
    "token": 0,
    "opaque": 0,
    "c64": 64,
    "c128": 128,
    **{f"{kind}{bits}": bits for kind in "su" for bits in (1, 2, 4, 8, 16, 32, 64)},
    **{f"f{bits}": bits for bits in (16, 32, 64)},
    "bf16": 16,
}
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.* )?\{$")
_NAME = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Instruction(NamedTuple):
    """A line of a program.

    Attributes:
        name: unique in its computation.
        shape: the result's, as written.
        opcode: the operation's name.
        operands: names of its operands; for a parameter, its number.
        attributes: the rest of the line.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    def called(self, *roles: str) -> tuple[str, ...]:
        """Returns the computations that it names in a role: `calls`, `to_apply`, `body`, ..."""
        return tuple(
            name
            for role, names in _CALLED.findall(self.attributes)
            if role in roles
            for name in re.findall(r"[\w.\-]+", names)
        )


Computation = Mapping[str, Instruction]


class Execution(NamedTuple):
    """An instruction that a run of the program executes.

    Attributes:
        instruction: the line.
        computation: the one that holds it.
        times: how often it is executed.
        fused: whether it is part of a fusion.
    """

    instruction: Instruction
    computation: Computation
    times: int
    fused: bool


class Module(NamedTuple):
    """A whole program.

    Attributes:
        computations: by name.
        entry: the name of the one that runs first.
    """

    computations: Mapping[str, Computation]
    entry: str

    def executions(self, *, fusions: bool) -> Iterator[Execution]:
        """Yields what a run executes, from the entry down through calls, loops and branches.

        A loop whose number of turns the compiler does not know counts once. All sides of a branch
        count. What a fusion or a collective calls for single elements does not.

        Args:
            fusions: whether to go into fusions, or to leave each as one instruction.
        """
        yield from self._within(self.entry, 1, fusions, False)

    def _within(self, name: str, times: int, fusions: bool, fused: bool) -> Iterator[Execution]:
        computation = self.computations[name]
        for instruction in computation.values():
            yield Execution(instruction, computation, times, fused)
            roles: tuple[str, ...] = ()
            turns = times
            if instruction.opcode == "call":
                roles = ("to_apply", "calls")
            elif instruction.opcode == "while":
                roles = ("body", "condition")
                trips = _TRIPS.search(instruction.attributes)
                turns = times * int(trips[1]) if trips else times
            elif instruction.opcode == "conditional":
                roles = ("branch_computations",)
            # A start may wrap a whole computation, which runs while others do.
            elif instruction.opcode.endswith("-start") or (
                fusions and instruction.opcode == "fusion"
            ):
                roles = ("calls",)
            for called in instruction.called(*roles):
                if called in self.computations:
                    inside = fused or instruction.opcode == "fusion"
                    yield from self._within(called, turns, fusions, inside)


def parse(text: str) -> Module:
    """Reads a program.

    Args:
        text: from `jax.stages.Compiled.as_text()` or `jax.stages.Lowered.as_text("hlo")`.

    Raises:
        ValueError: if it has no entry computation, or a line cannot be read.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry = ""
    inside: dict[str, Instruction] | None = None
    for line in text.splitlines():
        if inside is None:
            head = _HEAD.match(line)
            if head:
                inside = computations[head[2]] = {}
                entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            inside = None
        else:
            instruction = _instruction(line)
            inside[instruction.name] = instruction
    if not entry:
        raise ValueError(
            f"text: no line starts with ENTRY, so this is no compiled program: {text[:80]!r}."
        )
    return Module(computations, entry)


def shape_bytes(shape: str) -> int:
    """Returns the bytes of an array, or of a tuple's arrays, without padding.

    Args:
        shape: as written, such as `(bf16[8,128]{1,0}, f32[])`.

    Raises:
        ValueError: for an element type that is not known.
    """
    return sum(_array_bytes(kind, dims) for kind, dims in _ARRAY.findall(shape))


def dimensions(shape: str) -> tuple[int, ...]:
    """Returns the sizes of an array, or of a tuple's first array."""
    found = _ARRAY.search(shape)
    if found is None:
        raise ValueError(f"shape: {shape!r} holds no array.")
    return _sizes(found[2])


def elements(shape: str) -> list[str]:
    """Returns the shapes in a tuple, in order, or an array's shape alone."""
    if not shape.startswith("("):
        return [shape]
    parts, depth, begin = [], 0, 1
    for position, letter in enumerate(shape):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or (letter == ")" and depth == 0):
            parts.append(shape[begin:position].strip())
            begin = position + 1
    return [part for part in parts if part]


def _instruction(line: str) -> Instruction:
    """Reads a line such as `%d = f32[4,4]{1,0} dot(%p, %q), lhs_contracting_dims={1}`."""
    line = re.sub(r"/\*.*?\*/", "", line)
    name = _NAME.match(line)
    if name is None:
        raise ValueError(f"text: not a line of a compiled program: {line.strip()[:120]!r}.")
    rest = line[name.end() :]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    rest = rest[len(opcode) :]
    end = _closing(rest)
    inner, attributes = rest[1:end], rest[end + 1 :].lstrip(", ")
    operands: list[str] = []
    if opcode != "constant":  # some versions write an operand's shape before its name
        operands = [part.split()[-1].lstrip("%") for part in elements(f"({inner})")]
    return Instruction(name[1], shape, opcode, tuple(operands), attributes)


def _closing(text: str) -> int:
    """Returns the position of the bracket that closes the first one."""
    depth = 0
    for position, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return position
    raise ValueError(f"text: a bracket is not closed in {text[:120]!r}.")


def _array_bytes(kind: str, dims: str) -> int:
    bits = _BITS.get(kind)
    if bits is None and kind.startswith("f8"):
        bits = 8
    elif bits is None and kind.startswith("f4"):
        bits = 4
    if bits is None:
        raise ValueError(f"shape: unknown element type {kind!r} in {kind}[{dims}].")
    return -(-bits * math.prod(_sizes(dims)) // 8)


def _sizes(dims: str) -> tuple[int, ...]:
    return tuple(int(size.lstrip("<=")) for size in dims.split(",") if size)
