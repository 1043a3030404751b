"""The layer benchmark in Markdown, a pure function of its JSON."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from experiments.benchmarks import tables
from experiments.benchmarks.benchmark import Result
from experiments.benchmarks.turns import Spread, spread

RATIOS = {
    ("flax", "float32"): 0.7,
    ("flax", "bfloat16"): 0.8,
    ("torch", "float32"): 1.1,
}
"""Targets on CPUs: bnjax's time over a peer's, at most; normalization alone."""

FLOOR_SHARE = 0.8
"""Target on a GPU: share of the speed that the memory's bandwidth allows; normalization alone."""

RESIDUAL_BYTES = 2
"""Target: bytes kept for each value in bfloat16 with ReLU, at most."""

EXACT = 2
"""Target: errors of `y` over those of Flax's variance in two passes, at most."""

PASSES = 8
"""Arrays as large as `x` that must move: `x` twice and `y`; then `x` and `dy` twice and `dx`."""

LABELS = {
    "ours": "bnjax",
    "ours_autodiff": 'bnjax, impl="autodiff"',
    "flax": "Flax Linen",
    "flax_two_pass": "Flax Linen, use_fast_variance=False",
    "flax_nnx": "Flax NNX",
    "haiku": "Haiku",
    "equinox": "Equinox",
    "keras": "Keras on JAX",
    "torch": "PyTorch, eager",
    "torch_one_thread": "PyTorch, eager, 1 thread",
    "bias": "bias alone",
}

Cell = dict[str, Any]
Table = tuple[Sequence[str], list[list[str]]]
"""Heads and rows."""


def table(result: Result) -> str:
    """Returns tables of times, memory, accuracy and collectives, then targets and conditions."""
    parts = (
        *_summary(result),
        *_times(result),
        *_memory(result),
        *_accuracy(result),
        *_collectives(result),
    )
    notes = tables.bullets((*_targets(result), *_conditions(result)))
    return "\n\n".join((*(tables.table(heads, rows) for heads, rows in parts), notes))


def _summary(result: Result) -> Iterator[Table]:
    """Compares bnjax with Flax, PyTorch and the memory, by cell; without empty columns."""
    rows = []
    for cell in result["cells"]:
        if "ours" not in cell.get("seconds", {}):
            continue
        row = [f"{_shape(cell)}, {_setting(cell)}", _milliseconds(_spread(cell, "ours"))]
        for peer in ("flax", "torch"):
            ratio = _ratio(cell, peer) if peer in cell["seconds"] else None
            row += [
                tables.optional("{:.2f}", ratio),
                tables.optional("{:g}", _target_ratio(result, cell, peer)),
            ]
        rows.append([*row, f"{100 * _floor_share(result, cell):.0f} %"])
    if rows:
        flax, torch = f"x {LABELS['flax']}", f"x {LABELS['torch']}"
        heads = ["input", "bnjax, ms", flax, "target", torch, "target", "of the floor"]
        filled = [i for i in range(len(heads)) if any(row[i] for row in rows)]
        yield [heads[i] for i in filled], [[row[i] for i in filled] for row in rows]


def _times(result: Result) -> Iterator[Table]:
    """Lists all contestants, by activation and dtype; the shapes are the columns."""
    groups: dict[str, list[Cell]] = {}
    for cell in result["cells"]:
        if "seconds" in cell:
            groups.setdefault(_setting(cell), []).append(cell)
    for setting, cells in groups.items():
        measured = [
            [LABELS[name], *(_milliseconds(_spread(cell, name)) for cell in cells)]
            for name in cells[0]["seconds"]
        ]
        missing = [
            [LABELS[name], f"not measured: {reason}"] for name, reason in result["missing"].items()
        ]
        yield [f"ms, {setting}", *map(_shape, cells)], measured + missing


def _memory(result: Result) -> Iterator[Table]:
    """Lists bytes kept for the backward pass, and temporary memory at the first shape."""
    if "residual_bytes" not in result:
        return
    first = result["config"]["shapes"][0]
    entries = {_setting(entry): entry["per_value"] for entry in result["residual_bytes"]}
    cells = {_setting(cell): cell for cell in result["cells"] if _shape(cell) == first}
    temporary = [cells[setting]["temporary_bytes"] for setting in entries]
    rows = [
        [
            LABELS[name],
            *(tables.optional("{:g}", kept.get(name)) for kept in entries.values()),
            *("" if size[name] is None else f"{size[name] / 1e6:.2f}" for size in temporary),
        ]
        for name in temporary[0]
    ]
    heads = [f"kept, bytes a value, {setting}" for setting in entries]
    heads += [f"temporary, MB at {first}, {setting}" for setting in entries]
    yield ["memory", *heads], rows


def _accuracy(result: Result) -> Iterator[Table]:
    """Lists errors against float64, at each offset."""
    if "accuracy" not in result:
        return
    entries, keys = result["accuracy"], ("y", "dx", "dscale")
    heads = [f"{key} at {entry['offset']:g}" for entry in entries for key in keys]
    rows = [
        [LABELS[name], *(_error(entry["errors"][name][key]) for entry in entries for key in keys)]
        for name in entries[0]["errors"]
    ]
    yield ["largest error in float32, first step", *heads], rows


def _collectives(result: Result) -> Iterator[Table]:
    """Lists counts under `jit` and in `shard_map`."""
    if "collectives" not in result:
        return
    rows = [
        [
            LABELS[name],
            *(
                str(modes[mode].get(direction, "no"))  # "no" where the contestant refuses
                for mode in ("jit", "shard_map")
                for direction in ("forward", "backward")
            ),
        ]
        for name, modes in result["collectives"].items()
    ]
    heads = ["jit: forward", "backward", "shard_map: forward", "backward"]
    yield ["collectives on 8 devices", *heads], rows


def _targets(result: Result) -> Iterator[str]:
    yield from _time_targets(result)
    for entry in result.get("residual_bytes", []):
        if _setting(entry) == "bfloat16 + ReLU" and "ours" in entry["per_value"]:
            kept = entry["per_value"]["ours"]
            goal = f"bnjax keeps at most {RESIDUAL_BYTES} bytes a value in bfloat16 with ReLU"
            yield _target(goal, f"{kept:g}", kept <= RESIDUAL_BYTES)
    for entry in result.get("accuracy", []):
        errors = entry["errors"]
        if {"ours", "flax_two_pass"} <= set(errors):
            mine, other = (errors[name]["y"] for name in ("ours", "flax_two_pass"))
            yield _target(
                f"at an offset of {entry['offset']:g} bnjax's error of y is at most {EXACT} times "
                "that of Flax's two passes",
                f"{_error(mine)} against {_error(other)}",
                mine is not None and (other is None or mine <= EXACT * other),
            )
    for mode, counts in result.get("collectives", {}).get("ours", {}).items():
        yield _target(
            f"one collective forward and one backward under {mode}",
            ", ".join(f"{value} {key}" for key, value in counts.items()),
            counts == {"forward": 1, "backward": 1},
        )


def _time_targets(result: Result) -> Iterator[str]:
    """Judges ratios on CPUs, the share of the floor elsewhere; normalization alone."""
    timed = [
        cell
        for cell in result["cells"]
        if "ours" in cell.get("seconds", {}) and cell["activation"] == "none"
    ]
    for cell in timed if result["environment"]["backend"] != "cpu" else []:
        share = _floor_share(result, cell)
        goal = f"{100 * FLOOR_SHARE:.0f} % of the floor, {cell['dtype']}, {_shape(cell)}"
        yield _target(goal, f"{100 * share:.0f} %", share >= FLOOR_SHARE)
    for (peer, dtype), most in RATIOS.items():
        ratios = {
            _shape(cell): _ratio(cell, peer)
            for cell in timed
            if cell["dtype"] == dtype
            and peer in cell["seconds"]
            and _target_ratio(result, cell, peer)
        }
        if ratios:
            yield _target(
                f"at most {most:g} x {LABELS[peer]} in {dtype}",
                ", ".join(f"{ratio:.2f} at {shape}" for shape, ratio in ratios.items()),
                max(ratios.values()) <= most,
            )


def _conditions(result: Result) -> Iterator[str]:
    config = result["config"]
    yield (
        "Forward and backward pass in one call: output, new statistics, gradients with respect to "
        "input, scale and bias. Equinox gets its images channels first, PyTorch in channels_last "
        'memory; ratios are to its better number of threads. "bias alone" has no normalization: '
        "the floor of what a layer costs."
    )
    if "bytes_per_second" in result:
        faults = max(
            spread(turns).median
            for cell in result["cells"]
            for turns in cell["page_faults"].values()
        )
        yield (
            f"{tables.turns_note(config, 'call')} The floor is the time in which "
            f"{result['bytes_per_second'] / 1e9:.1f} GB/s, measured in the same run by a + 3 b, "
            f"move {PASSES} arrays: x read twice and y written forward, x and dy read twice and dx "
            "written backward; what stays in caches can beat it. Page faults a call, largest "
            f"median: {faults:.0f}."
        )
    if "residual_bytes" in result:
        yield (
            "Kept: what jax.vjp holds between the passes, without the output, which the next "
            "layer keeps anyway. Temporary: XLA's account of the compiled call; for PyTorch on a "
            "GPU its allocator's peak."
        )
    if "accuracy" in result:
        yield (
            f"Input {config['accuracy_shape']} with standard deviation 1 and that mean; errors "
            "against float64: of y absolute, of gradients relative to their largest value."
        )
    yield tables.surroundings(result)


def _target(goal: str, value: str, reached: bool) -> str:
    return f"Target: {goal}: {value}: {tables.verdict(reached)}."


def _spread(cell: Cell, name: str) -> Spread:
    return spread(cell["seconds"][name])


def _floor_share(result: Result, cell: Cell) -> float:
    """Returns bnjax's share of the bandwidth floor: 1 is as fast as the memory allows."""
    width = {"float32": 4, "bfloat16": 2}[cell["dtype"]]
    moved = PASSES * math.prod(cell["shape"]) * width
    return moved / result["bytes_per_second"] / _spread(cell, "ours").median


def _ratio(cell: Cell, peer: str) -> float:
    """Returns bnjax's time over a peer's, PyTorch's with its better number of threads."""
    variants = {peer, f"{peer}_one_thread"} & set(cell["seconds"])
    return _spread(cell, "ours").median / min(_spread(cell, name).median for name in variants)


def _target_ratio(result: Result, cell: Cell, peer: str) -> float | None:
    """Returns the target for that ratio, where there is one."""
    bound = result["environment"]["backend"] == "cpu" and cell["activation"] == "none"
    return RATIOS.get((peer, cell["dtype"])) if bound else None


def _milliseconds(taken: Spread) -> str:
    digits = 1 if taken.median >= 0.01 else 2 if taken.median >= 0.001 else 3
    return tables.quartiles(taken, unit=1e3, digits=digits)


def _setting(cell: Cell) -> str:
    return f"{cell['dtype']}{' + ReLU' if cell['activation'] == 'relu' else ''}"


def _error(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"


def _shape(cell: Cell) -> str:
    return "x".join(map(str, cell["shape"]))
