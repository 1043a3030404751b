"""A dry run in Markdown, a pure function of its JSON."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from bnjax.evidence.tables import table as lines
from experiments.imagenet_inception.table import NAMES, PAPER

PAPER_BATCH = 32

_PREFIXES = ("T", "G", "M", "k", "")
_TIME = (
    "least time on",
    "products, ms",
    "memory, ms",
    "links, ms",
    "step, ms",
    "XLA's estimate, ms",
    "images/s",
    "hours to the paper's steps",
    "to its images",
)

Result = dict[str, Any]


def table(result: Result) -> str:
    """What a step takes on each chip, and for how long at least; then how to read it."""
    parts = []
    for arm in dict.fromkeys(row["arm"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["arm"] == arm]
        timed = [row for row in rows if row.get("least_time")]
        parts += [f"**{NAMES[arm]}**", _work_table(rows)]
        parts += [lines(_TIME, list(map(_time, timed)))] if timed else []
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in _notes(result))])


def _work_table(rows: list[Result]) -> str:
    compiled = [row for row in rows if not row["refused"]]
    memory = _unit([row["peak_bytes"] for row in compiled], "G")
    flops = _unit([row["flops"] for row in compiled], "T")
    moved = _unit([row["bytes_accessed"] for row in compiled], "G")
    exchanged = _unit([_exchanged(row) for row in compiled], "M")
    heads = (
        "compiled for",
        "images a step",
        f"peak memory of a chip, {memory.prefix}B",
        f"{flops.prefix}FLOP on a chip",
        f"{moved.prefix}B moved on a chip",
        f"collectives ({exchanged.prefix}B)",
    )

    def cells(row: Result) -> list[str]:
        head = [row["topology"], f"{row['batch_size']:,}"]
        if row["refused"]:
            return [*head, f"does not fit {_gigabytes(row['memory_bytes'])} GB", "", "", ""]
        count = sum(each["count"] for each in row["collectives"].values())
        fits = "fits" if row["fits"] else "does not fit"
        return [
            *head,
            f"{row['peak_bytes'] / memory.size:.2f}, {fits} {_gigabytes(row['memory_bytes'])} GB",
            f"{row['flops'] / flops.size:.3f}",
            f"{row['bytes_accessed'] / moved.size:.2f}",
            f"{count:,} ({_exchanged(row) / exchanged.size:,.1f})",
        ]

    return lines(heads, list(map(cells, rows)))


class _Unit(NamedTuple):
    prefix: str
    size: float


def _unit(values: list[float], largest: str) -> _Unit:
    """The largest, up to `largest`, of which no value but 0 is less than a tenth."""
    least = min(filter(None, values), default=math.inf)
    for prefix in _PREFIXES[_PREFIXES.index(largest) :]:
        size = 1000.0 ** (len(_PREFIXES) - 1 - _PREFIXES.index(prefix))
        if least >= size / 10:
            break
    return _Unit(prefix, size)


def _exchanged(row: Result) -> int:
    return sum(each["bytes"] for each in row["collectives"].values())


def _time(row: Result) -> list[str]:
    time = row["least_time"]
    rate = row["batch_size"] / time["seconds"]
    steps, _ = PAPER.get(row["arm"], (None, None))
    hours = [] if steps is None else [steps * time["seconds"], steps * PAPER_BATCH / rate]
    return [
        row["topology"],
        *(_milliseconds(time[name]) for name in ("products", "memory", "exchange", "seconds")),
        "" if row["seconds"] is None else _milliseconds(row["seconds"]),
        f"{rate:,.0f}",
        *(f"{seconds / 3600:,.2f}" for seconds in hours),
        *([] if hours else ["", ""]),
    ]


def _notes(result: Result) -> Iterator[str]:
    config, rows = result["config"], result["rows"]
    yield (
        f"One training step at {config['image_size']} pixels, width {config['width']:g}, "
        f"{config['compute']} activations, normalization over groups of "
        f"{config['normalize_together']}, `{result['parallel']}` over all chips"
        + (", with recomputed modules" if config["remat"] else "")
        + (f", {config['micro_batches']} micro-batches" if config["micro_batches"] > 1 else "")
        + "."
    )
    if any(row.get("least_time") for row in rows):
        yield (
            "Least time: the slower of products and memory at the makers' stated rates, then all "
            "collectives over the chips' links "
            "([step_time.py](../../bnjax/compilers/step_time.py)). A floor: latency, kernels that "
            "reach neither rate, and waiting for data come on top."
        )
        yield (
            "The paper's steps: of 32 images, to 72.2 % (Figure 3); as many steps of this batch, "
            "and as many images. What a larger batch does to the accuracy is not in it."
        )
    if any(row.get("least_time") and row["seconds"] is None for row in rows):
        yield "XLA's estimate is blank where it gave none, or none above zero."
    for row in rows:
        if row["refused"]:
            yield f"{NAMES[row['arm']]}, {row['topology']}: {row['refused']}"
    if any(row["platform"] == "cuda" for row in rows):
        yield (
            "On GPUs XLA has no cost analysis without a device: FLOPs are those of products, bytes "
            "the operands and results of every kernel."
        )
    environment = result["environment"]
    versions = {**environment["versions"], **result["compilers"]}
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield f"Python {environment['python']}, {named}."


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f}"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}"
