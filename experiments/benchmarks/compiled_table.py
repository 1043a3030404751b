"""The benchmark of compiled programs in Markdown, a pure function of its JSON."""

from collections.abc import Iterator
from typing import Any

GPU_ADDED_BYTES = 0.6
"""Target on GPUs: the bytes that bnjax's normalization adds, to those that Flax's adds."""

EQUAL = 1.001
"""Target on TPUs, and of memory anywhere: not above Flax's, but for what scheduling moves."""

_PROGRAMS = {
    "bn_inception": "BN-Inception, a training step",
    "convolutions": "A stack of convolutions, value and gradient",
}
_ARMS = {"bias": "bias alone", "flax": "Flax", "bnjax": "bnjax"}
_FIGURES = {
    "bytes_accessed": "bytes",
    "seconds": "time",
    "peak_bytes": "peak memory",
    "collective_count": "collectives",
    "collective_bytes": "bytes of collectives",
}

Result = dict[str, Any]
Cell = dict[str, dict[str, Any]]


def table(result: Result) -> str:
    """A table for each program of `compiled.measure`, then targets, then conditions."""
    parts = [
        [f"**{_PROGRAMS[program]}**", "", *_lines(result, program)]
        for program in result["config"]["programs"]
    ]
    notes = [*_missing(result), *_targets(result), *_conditions(result)]
    return "\n\n".join("\n".join(lines) for lines in [*parts, [f"- {note}" for note in notes]])


def _lines(result: Result, program: str) -> Iterator[str]:
    heads = [
        "compiled for",
        "normalization",
        "GB to and from memory",
        "XLA's estimate, ms",
        "peak memory, MB",
        "collectives (kB)",
        "instructions",
    ]
    yield _row(heads)
    yield _row(["---"] * 2 + ["---:"] * 5)
    for topology, cell in _cells(result, program):
        for arm, label in _ARMS.items():
            row = cell[arm]
            yield _row(
                [
                    topology,
                    label,
                    f"{row['bytes_accessed'] / 1e9:.3f}",
                    "" if row["seconds"] is None else f"{1e3 * row['seconds']:.2f}",
                    f"{row['peak_bytes'] / 1e6:,.1f}",
                    f"{row['collective_count']:,} ({row['collective_bytes'] / 1e3:,.0f})",
                    f"{row['kernels']:,}",
                ]
            )
        yield _row(
            [
                topology,
                "bnjax / Flax",
                *(_whole(cell, name) for name in ("bytes_accessed", "seconds", "peak_bytes")),
                _whole(cell, "collective_count"),
                _whole(cell, "kernels"),
            ]
        )
        yield _row(
            [
                topology,
                "what it adds, bnjax / Flax",
                *(_text(_added(cell, name)) for name in ("bytes_accessed", "seconds")),
                "",
                _text(_added(cell, "collective_count")),
                _text(_added(cell, "kernels")),
            ]
        )


def _cells(result: Result, program: str) -> Iterator[tuple[str, Cell]]:
    """For each topology the rows of all arms, by arm."""
    for topology in result["config"]["topologies"]:
        cell = {
            row["arm"]: {
                **row,
                "collective_count": sum(c["count"] for c in row["collectives"].values()),
                "collective_bytes": sum(c["bytes"] for c in row["collectives"].values()),
            }
            for row in result["rows"]
            if (row["program"], row["topology"]) == (program, topology)
        }
        if cell:
            yield topology, cell


def _missing(result: Result) -> list[str]:
    return [f"Not compiled: {reason}" for reason in result["missing"].values()]


def _targets(result: Result) -> list[str]:
    notes = []
    for program in result["config"]["programs"]:
        for topology, cell in _cells(result, program):
            where = f"{_PROGRAMS[program]}, {topology}"
            if cell["bnjax"]["platform"] == "cuda":
                added = _added(cell, "bytes_accessed")
                if added is not None:
                    notes.append(
                        f"Target, {where}: adds at most {GPU_ADDED_BYTES:g} of the bytes that "
                        f"Flax adds: {_verdict(added <= GPU_ADDED_BYTES)} ({added:.2f})."
                    )
            names = ["peak_bytes"]
            if cell["bnjax"]["platform"] == "tpu":
                names = list(_FIGURES)
            above = [
                _FIGURES[name]
                for name in names
                if cell["flax"][name] is not None
                and cell["bnjax"][name] is not None
                and cell["bnjax"][name] > EQUAL * cell["flax"][name]
            ]
            text = ", ".join(_FIGURES[name] for name in names)
            notes.append(
                f"Target, {where}: not above Flax in {text}: {_verdict(not above)}"
                + (f" ({', '.join(above)})." if above else ".")
            )
    return notes


def _conditions(result: Result) -> list[str]:
    config, environment = result["config"], result["environment"]
    versions = {"python": environment["python"], **environment["versions"], **result["compilers"]}
    size = config["image_size"]
    return [
        f"All figures are of one chip, with {config['batch_size']} examples on each; the batch, "
        "and what normalizes it, is split over all of them. Activations are bfloat16, parameters "
        "float32. Compiled ahead of time, for chips that were not there: nothing ran.",
        f"BN-Inception at width {config['width']:g} on {size}x{size} pixels: forward, "
        "cross-entropy, backward, SGD, running statistics. The stack: "
        f"{config['layers']} of 3x3 convolution with 128 channels, normalization, ReLU, on "
        "56x56x64.",
        "Bytes and time on a TPU are XLA's own analysis of its program. For a GPU that is not "
        "there XLA has none: operands and result of every instruction are counted (of an operand "
        "that is only sliced, the slices), so that what stays in a cache counts in full, and "
        "kernels are chosen without trying them. Instructions are those that run one after "
        "another.",
        f"Figures within {EQUAL - 1:.1%} count as equal in the targets.",
        "Compiled on "
        + environment["processor"]
        + "; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ".",
    ]


def _whole(cell: Cell, name: str) -> str:
    ours, flax = cell["bnjax"][name], cell["flax"][name]
    return "" if not ours or not flax else f"{ours / flax:.3f}"


def _added(cell: Cell, name: str) -> float | None:
    """What bnjax adds to a bias alone, to what Flax adds; None where that is nothing."""
    ours, flax, bias = (cell[arm][name] for arm in ("bnjax", "flax", "bias"))
    if None in (ours, flax, bias) or flax <= bias:
        return None
    return float((ours - bias) / (flax - bias))


def _text(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _verdict(reached: bool) -> str:
    return "reached" if reached else "missed"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
