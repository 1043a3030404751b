"""A dry run in Markdown, a pure function of its JSON."""

from collections.abc import Iterator
from typing import Any

from bnjax.evidence.tables import table as lines
from experiments.imagenet_inception.table import NAMES, PAPER

PAPER_BATCH = 32

_WORK = (
    "compiled for",
    "images a step",
    "peak memory of a chip, GB",
    "TFLOP on a chip",
    "GB moved on a chip",
    "collectives (MB)",
)
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
        parts += [f"**{NAMES[arm]}**", lines(_WORK, list(map(_work, rows)))]
        parts += [lines(_TIME, list(map(_time, timed)))] if timed else []
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in _notes(result))])


def _work(row: Result) -> list[str]:
    cells = [row["topology"], f"{row['batch_size']:,}"]
    if row["refused"]:
        return [*cells, f"does not fit {_gigabytes(row['memory_bytes'])}", "", "", ""]
    collectives = row["collectives"].values()
    megabytes = sum(each["bytes"] for each in collectives) / 1e6
    return [
        *cells,
        _memory(row),
        f"{row['flops'] / 1e12:.3f}",
        f"{row['bytes_accessed'] / 1e9:.2f}",
        f"{sum(each['count'] for each in collectives):,} ({megabytes:,.1f})",
    ]


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


def _memory(row: Result) -> str:
    peak = _gigabytes(row["peak_bytes"])
    if row["memory_bytes"] is None:
        return peak
    fits = "" if row["fits"] else ", does not fit"
    return f"{peak} of {_gigabytes(row['memory_bytes'])}{fits}"


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
            "([step_time.py](../../bnjax/training/step_time.py)). A floor: latency, kernels that "
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
