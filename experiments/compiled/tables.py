"""Tables of compiled steps in Markdown, pure functions of results as JSON."""

import math
from collections.abc import Iterator, Sequence

from bnjax.evidence.tables import bullets, table, verdict
from experiments.compiled.kept_rows import Row
from experiments.compiled.rows import Result
from experiments.harness.arm import Arm, by_name

PAPER_BATCH = 32

GPU_ADDED_BYTES = 0.6
"""Target on GPUs: the bytes that bnjax's normalization adds, over those that Flax's adds."""
EQUAL = 1.001
"""Target on TPUs, and for memory anywhere: not above Flax's, but for what scheduling moves."""

_UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_TIMES = (
    *("least time on", "products, ms", "memory, ms", "links, ms", "step, ms"),
    *("XLA's estimate, ms", "images/s", "hours to the paper's steps", "to its images"),
)
_STEPS = "steps to 72.2 %"
_PROGRAMS = {
    "bn_inception": "BN-Inception, a training step",
    "convolutions": "A stack of convolutions, value and gradient",
}
_ARMS = {"bias": "bias alone", "flax": "Flax", "bnjax": "bnjax"}
_COSTS = (
    *("compiled for", "normalization", "GB to and from memory", "XLA's estimate, ms"),
    *("peak memory, MB", "collectives (kB)", "instructions"),
)
_COMPARED = {
    "bytes_accessed": "bytes",
    "seconds": "time",
    "peak_bytes": "peak memory",
    "collective_count": "collectives",
    "collective_bytes": "bytes of collectives",
}
_NETWORKS = {"bn_inception": "BN-Inception, 224x224", "inception_v3": "Inception-v3, 299x299"}

Arms = dict[str, Row]
"""The rows of one program and topology, by normalization: bias, flax, bnjax."""


def dry_run_table(result: Result, arms: Sequence[Arm]) -> str:
    """Returns what a step takes on each chip, and for how long at least; then how to read it."""
    parts = []
    for arm in dict.fromkeys(row["arm"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["arm"] == arm]
        timed = [row for row in rows if row.get("least_time")]
        parts += [f"**{by_name(arms, arm).label}**", _work(rows)]
        parts += [table(_TIMES, [_least_time(row, arms) for row in timed])] if timed else []
    return "\n\n".join([*parts, bullets(_dry_run_notes(result, arms))])


def _work(rows: list[Row]) -> str:
    compiled = [row for row in rows if not row["refused"]]
    memory, memory_unit = _unit([row["peak_bytes"] for row in compiled], "G")
    flops, flops_unit = _unit([row["flops"] for row in compiled], "T")
    moved, moved_unit = _unit([row["bytes_accessed"] for row in compiled], "G")
    sent, sent_unit = _unit([_exchanged(row)[1] for row in compiled], "M")
    heads = (
        *("compiled for", "images a step", f"peak memory of a chip, {memory}B"),
        *(f"{flops}FLOP on a chip", f"{moved}B moved on a chip", f"collectives ({sent}B)"),
    )

    def cells(row: Row) -> list[str]:
        head, room = [row["topology"], f"{row['batch_size']:,}"], f"{_giga(row['memory_bytes'])} GB"
        if row["refused"]:
            return [*head, f"does not fit {room}"]
        count, size = _exchanged(row)
        fits = "fits" if row["fits"] else "does not fit"
        return [
            *head,
            f"{row['peak_bytes'] / memory_unit:.2f}, {fits} {room}",
            f"{row['flops'] / flops_unit:.3f}",
            f"{row['bytes_accessed'] / moved_unit:.2f}",
            f"{count:,} ({size / sent_unit:,.1f})",
        ]

    return table(heads, list(map(cells, rows)))


def _unit(values: list[float], largest: str) -> tuple[str, float]:
    """Returns the largest unit, up to `largest`, in which every value but 0 is at least a tenth."""
    least = min(filter(None, values), default=math.inf)
    known = [prefix for prefix in _UNITS if _UNITS[prefix] <= _UNITS[largest]]
    prefix = next((prefix for prefix in reversed(known) if least >= _UNITS[prefix] / 10), "")
    return prefix, _UNITS[prefix]


def _exchanged(row: Row) -> tuple[int, int]:
    """Returns how many collectives there are, and their bytes."""
    kinds = row["collectives"].values()
    return sum(kind["count"] for kind in kinds), sum(kind["bytes"] for kind in kinds)


def _least_time(row: Row, arms: Sequence[Arm]) -> list[str]:
    time = row["least_time"]
    rate = row["batch_size"] / time["seconds"]
    stated = by_name(arms, row["arm"]).paper.get(_STEPS)
    steps = float(stated) if stated else None
    seconds = [] if steps is None else [steps * time["seconds"], steps * PAPER_BATCH / rate]
    return [
        row["topology"],
        *(_milliseconds(time[name]) for name in ("products", "memory", "exchange", "seconds")),
        _milliseconds(row["seconds"]),
        f"{rate:,.0f}",
        *(f"{each / 3600:,.2f}" for each in seconds),
    ]


def _dry_run_notes(result: Result, arms: Sequence[Arm]) -> Iterator[str]:
    config, rows = result["config"], result["rows"]
    timed = [row for row in rows if row.get("least_time")]
    sizes = sorted({row.get("image_size", config["image_size"]) for row in rows})
    yield (
        f"One training step at {' and '.join(map(str, sizes))} pixels, width {config['width']:g}, "
        f"{config['compute']} activations, normalization over groups of "
        f"{config['normalize_together']}, `{result['parallel']}` over all chips"
        + (", with recomputed modules" if config["remat"] else "")
        + (f", {config['micro_batches']} micro-batches" if config["micro_batches"] > 1 else "")
        + "."
    )
    if timed:
        yield (
            "Least time: the slower of products and memory at the makers' stated rates, then all "
            "collectives over the chips' links "
            "([step_time.py](../../bnjax/compilers/step_time.py)). A floor: latency, kernels that "
            "reach neither rate, and waiting for data come on top."
        )
    if timed and any(_STEPS in arm.paper for arm in arms):
        yield (
            "The paper's steps: of 32 images, to 72.2 % (Figure 3); as many steps of this batch, "
            "and as many images. What a larger batch does to the accuracy is not in it."
        )
    if any(row["seconds"] is None for row in timed):
        yield "XLA's estimate is blank where it gave none, or none above zero."
    for row in rows:
        if row["refused"]:
            yield f"{by_name(arms, row['arm']).label}, {row['topology']}: {row['refused']}"
    if any(row["platform"] == "cuda" for row in rows):
        yield (
            "On GPUs XLA has no cost analysis without a device: FLOPs are those of products, bytes "
            "the operands and results of every kernel."
        )
    yield f"Python {_versions(result)}."


def normalization_table(result: Result) -> str:
    """Returns a table for each program, then targets, then conditions."""
    parts = []
    for program in result["config"]["programs"]:
        rows = [
            cells
            for topology, arms in _by_topology(result, program)
            for cells in _comparison(topology, arms)
        ]
        parts += [f"**{_PROGRAMS[program]}**", table(_COSTS, rows, left=2)]
    return "\n\n".join([*parts, bullets(_normalization_notes(result))])


def _by_topology(result: Result, program: str) -> Iterator[tuple[str, Arms]]:
    """Yields the topologies for which every arm was compiled."""
    for topology in result["config"]["topologies"]:
        arms = {}
        for row in result["rows"]:
            if (row["program"], row["topology"]) == (program, topology) and not row.get("refused"):
                count, size = _exchanged(row)
                arms[row["arm"]] = {**row, "collective_count": count, "collective_bytes": size}
        if len(arms) == len(_ARMS):
            yield topology, arms


def _comparison(topology: str, arms: Arms) -> Iterator[list[str]]:
    for arm, label in _ARMS.items():
        row = arms[arm]
        yield [
            topology,
            label,
            f"{row['bytes_accessed'] / 1e9:.3f}",
            _milliseconds(row["seconds"]),
            f"{row['peak_bytes'] / 1e6:,.1f}",
            f"{row['collective_count']:,} ({row['collective_bytes'] / 1e3:,.0f})",
            f"{row['kernels']:,}",
        ]
    names = ("bytes_accessed", "seconds", "peak_bytes", "collective_count", "kernels")
    yield [topology, "bnjax / Flax", *(_ratio(arms, name) for name in names)]
    added = {name: _added(arms, name) for name in names if name != "peak_bytes"}
    texts = ("" if added.get(name) is None else f"{added[name]:.2f}" for name in names)
    yield [topology, "what it adds, bnjax / Flax", *texts]


def _ratio(arms: Arms, name: str) -> str:
    ours, flax = arms["bnjax"][name], arms["flax"][name]
    return "" if not ours or not flax else f"{ours / flax:.3f}"


def _added(arms: Arms, name: str) -> float | None:
    """Returns what bnjax adds to a bias over what Flax adds; None where Flax adds nothing."""
    ours, flax, bias = (arms[arm][name] for arm in ("bnjax", "flax", "bias"))
    if None in (ours, flax, bias) or flax <= bias:
        return None
    return float((ours - bias) / (flax - bias))


def _normalization_notes(result: Result) -> Iterator[str]:
    config, size = result["config"], result["config"]["image_size"]
    yield from _missing(result)
    for row in result["rows"]:
        if row.get("refused"):
            where = f"{_PROGRAMS[row['program']]}, {row['topology']}"
            yield f"Not compared, {where}, {_ARMS[row['arm']]}: {row['refused']}"
    for program in config["programs"]:
        for topology, arms in _by_topology(result, program):
            yield from _targets(f"Target, {_PROGRAMS[program]}, {topology}", arms)
    yield (
        f"All figures are of one chip, with {config['batch_size']} examples on each; the batch, "
        "and what normalizes it, is split over all of them. Activations are bfloat16, parameters "
        "float32. Compiled ahead of time, for chips that were not there: nothing ran."
    )
    yield (
        f"BN-Inception at width {config['width']:g} on {size}x{size} pixels: forward, "
        "cross-entropy, backward, SGD, running statistics. The stack: "
        f"{config['layers']} of 3x3 convolution with 128 channels, normalization, ReLU, on "
        "56x56x64."
    )
    yield (
        "Bytes and time on a TPU are XLA's own analysis of its program. For a GPU that is not "
        "there XLA has none: operands and result of every instruction are counted (of an operand "
        "that is only sliced, the slices), so that what stays in a cache counts in full, and "
        "kernels are chosen without trying them. Instructions are those that run one after "
        "another."
    )
    yield f"Figures within {EQUAL - 1:.1%} count as equal in the targets."
    yield f"Compiled on {result['environment']['processor']}; python {_versions(result)}."


def _targets(target: str, arms: Arms) -> Iterator[str]:
    platform = arms["bnjax"]["platform"]
    added = _added(arms, "bytes_accessed")
    if platform == "cuda" and added is not None:
        yield (
            f"{target}: adds at most {GPU_ADDED_BYTES:g} of the bytes that Flax adds: "
            f"{verdict(added <= GPU_ADDED_BYTES)} ({added:.2f})."
        )
    compared = list(_COMPARED) if platform == "tpu" else ["peak_bytes"]
    above = [
        _COMPARED[name]
        for name in compared
        if arms["flax"][name] is not None
        and arms["bnjax"][name] is not None
        and arms["bnjax"][name] > EQUAL * arms["flax"][name]
    ]
    yield (
        f"{target}: not above Flax in {', '.join(_COMPARED[name] for name in compared)}: "
        f"{verdict(not above)}" + (f" ({', '.join(above)})." if above else ".")
    )


def memory_table(result: Result) -> str:
    """Returns a line for each network and topology, then how to read it."""
    config, sizes = result["config"], result["config"]["batch_sizes"]
    rows = {(row["network"], row["topology"], row["batch_size"]): row for row in result["rows"]}
    heads = ["peak memory, GB", "compiled for", *(f"{size} a chip" for size in sizes)]
    lines = [
        [_NETWORKS[network], topology, *(_peak(rows[network, topology, size]) for size in sizes)]
        for network in config["networks"]
        for topology in config["topologies"]
        if topology not in result["missing"]
    ]
    return "\n\n".join([table(heads, lines, left=2), bullets(_memory_notes(result))])


def _peak(row: Row) -> str:
    if row["refused"]:
        return "does not fit"
    return _giga(row["peak_bytes"]) + (" (does not fit)" if row["fits"] is False else "")


def _memory_notes(result: Result) -> Iterator[str]:
    yield from _missing(result)
    memory = {row["topology"]: row["memory_bytes"] for row in result["rows"] if row["memory_bytes"]}
    for topology, size in memory.items():
        yield f"A chip of {topology} has {_giga(size)} GB."
    again = " Each Inception module is computed again (remat)." if result["config"]["remat"] else ""
    yield (
        "Of one chip: parameters, optimizer and all that lies between in a training step with "
        "bnjax's normalization, which is over all chips; activations bfloat16, parameters "
        "float32. BN-Inception by SGD with momentum; Inception-v3 with its side head and label "
        f"smoothing, by RMSProp.{again} Compiled ahead of time; nothing ran."
    )
    yield f"Compiled on {result['environment']['processor']}; python {_versions(result)}."


def _missing(result: Result) -> Iterator[str]:
    return (f"Not compiled: {reason}" for reason in result["missing"].values())


def _versions(result: Result) -> str:
    """Names Python's version, then those of packages and compilers."""
    environment = result["environment"]
    versions = {**environment["versions"], **result["compilers"]}
    named = (f"{name} {version}" for name, version in versions.items())
    return ", ".join([environment["python"], *named])


def _giga(size: float) -> str:
    return f"{size / 1e9:.2f}"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.2f}"
