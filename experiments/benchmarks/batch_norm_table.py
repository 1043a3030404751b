"""The layer benchmark in Markdown, a pure function of its JSON."""

import math
from collections.abc import Iterator
from typing import Any

from experiments.benchmarks.machine import surroundings
from experiments.benchmarks.turns import Spread, spread

RATIOS = {
    ("flax", "float32"): 0.7,
    ("flax", "bfloat16"): 0.8,
    ("torch", "float32"): 1.1,
}
"""Target: bnjax's time is at most so many times a peer's, normalization alone, on CPUs."""

FLOOR_SHARE = 0.8
"""Target on a GPU: this share of what the memory's bandwidth allows, normalization alone."""

RESIDUAL_BYTES = 2
"""Target: kept for each value in bfloat16 with ReLU, at most."""

EXACT = 2
"""Target: errors of `y` are at most so many times those of Flax's variance of two passes."""

PASSES = 8
"""Arrays as large as `x` that must move: `x` twice and `y`; then `x` and `dy` twice and `dx`."""

NAMES = {
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

Result = dict[str, Any]


def table(result: Result) -> str:
    """Tables of times, memory, accuracy and collectives, then targets and conditions."""
    parts = [
        *_summary(result),
        *_times(result),
        *_memory(result),
        *_accuracy(result),
        *_collectives(result),
        [f"- {note}" for note in (*_targets(result), *_conditions(result))],
    ]
    return "\n\n".join("\n".join(lines) for lines in parts)


def _summary(result: Result) -> Iterator[list[str]]:
    """A line for each shape: bnjax against Flax, PyTorch and the memory; no empty columns."""
    cells = [cell for cell in result["cells"] if "ours" in cell.get("seconds", {})]
    if not cells:
        return
    flax, torch = f"x {NAMES['flax']}", f"x {NAMES['torch']}"
    heads = ["input", "bnjax, ms", flax, "target", torch, "target", "of the floor"]
    align = ["---"] + ["---:"] * 6
    rows = [_against_peers(result, cell) for cell in cells]
    filled = [i for i in range(len(heads)) if any(row[i] for row in rows)]
    yield [_row([row[i] for i in filled]) for row in (heads, align, *rows)]


def _against_peers(result: Result, cell: Result) -> list[str]:
    entries = [f"{_shape(cell)}, {_setting(cell)}", _milliseconds(_spread(cell, "ours"))]
    for peer in ("flax", "torch"):
        target = _most(result, cell, peer)
        entries += [
            f"{_ratio(cell, peer):.2f}" if peer in cell["seconds"] else "",
            f"{target:g}" if target else "",
        ]
    return [*entries, f"{100 * _share(result, cell, 'ours'):.0f} %"]


def _times(result: Result) -> Iterator[list[str]]:
    """All contestants: a table for each activation and dtype; the shapes are its columns."""
    groups: dict[str, list[Result]] = {}
    for cell in result["cells"]:
        if "seconds" in cell:
            groups.setdefault(_setting(cell), []).append(cell)
    for setting, cells in groups.items():
        lines = [
            _row([f"ms, {setting}", *map(_shape, cells)]),
            _row(["---"] + ["---:"] * len(cells)),
        ]
        for name in cells[0]["seconds"]:
            times = [_milliseconds(_spread(cell, name)) for cell in cells]
            lines.append(_row([NAMES[name], *times]))
        yield lines + [
            _row([NAMES[name], f"not measured: {reason}", *[""] * (len(cells) - 1)])
            for name, reason in result["missing"].items()
        ]


def _memory(result: Result) -> Iterator[list[str]]:
    """What is kept for the backward pass; temporary memory at the first shape."""
    if "residual_bytes" not in result:
        return
    first = result["config"]["shapes"][0]
    cells = [cell for cell in result["cells"] if _shape(cell) == first]
    settings = list(map(_setting, result["residual_bytes"]))
    heads = [f"kept, bytes a value, {setting}" for setting in settings]
    heads += [f"temporary, MB at {first}, {setting}" for setting in settings]
    lines = [_row(["memory", *heads]), _row(["---"] + ["---:"] * len(heads))]
    by_setting = {_setting(cell): cell for cell in cells}
    for name in by_setting[settings[0]]["temporary_bytes"]:
        kept = [entry["per_value"].get(name) for entry in result["residual_bytes"]]
        sizes = [by_setting[setting]["temporary_bytes"][name] for setting in settings]
        lines.append(
            _row(
                [
                    NAMES[name],
                    *("" if value is None else f"{value:g}" for value in kept),
                    *("" if size is None else f"{size / 1e6:.2f}" for size in sizes),
                ]
            )
        )
    yield lines


def _accuracy(result: Result) -> Iterator[list[str]]:
    """Errors against float64, at each offset."""
    if "accuracy" not in result:
        return
    offsets = [entry["offset"] for entry in result["accuracy"]]
    heads = [f"{key} at {offset:g}" for offset in offsets for key in ("y", "dx", "dscale")]
    lines = [
        _row(["largest error in float32, first step", *heads]),
        _row(["---"] + ["---:"] * len(heads)),
    ]
    for name in result["accuracy"][0]["errors"]:
        errors = [entry["errors"][name] for entry in result["accuracy"]]
        values = [each[key] for each in errors for key in ("y", "dx", "dscale")]
        lines.append(_row([NAMES[name], *(_error(value) for value in values)]))
    yield lines


def _collectives(result: Result) -> Iterator[list[str]]:
    """Counts under `jit` and in `shard_map`."""
    if "collectives" not in result:
        return
    heads = ["jit: forward", "backward", "shard_map: forward", "backward"]
    lines = [_row(["collectives on 8 devices", *heads]), _row(["---"] + ["---:"] * len(heads))]
    for name, modes in result["collectives"].items():
        entries: list[str] = []
        for mode in ("jit", "shard_map"):
            counts = modes[mode]
            refused = "refused" in counts
            entries += ["no"] * 2 if refused else [str(counts[k]) for k in ("forward", "backward")]
        lines.append(_row([NAMES[name], *entries]))
    yield lines


def _targets(result: Result) -> Iterator[str]:
    yield from _time_targets(result)
    for entry in result.get("residual_bytes", []):
        if _setting(entry) == "bfloat16 + ReLU" and "ours" in entry["per_value"]:
            kept = entry["per_value"]["ours"]
            yield _target(
                f"bnjax keeps at most {RESIDUAL_BYTES} bytes a value in bfloat16 with ReLU",
                f"{kept:g}",
                kept <= RESIDUAL_BYTES,
            )
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
    """Ratios on CPUs, the share of the floor elsewhere; normalization alone."""
    timed = [
        cell
        for cell in result["cells"]
        if "ours" in cell.get("seconds", {}) and cell["activation"] == "none"
    ]
    for cell in timed if result["environment"]["backend"] != "cpu" else []:
        share = _share(result, cell, "ours")
        yield _target(
            f"{100 * FLOOR_SHARE:.0f} % of the floor, {cell['dtype']}, {_shape(cell)}",
            f"{100 * share:.0f} %",
            share >= FLOOR_SHARE,
        )
    for peer, dtype in RATIOS:
        cells = [
            cell
            for cell in timed
            if cell["dtype"] == dtype and peer in cell["seconds"] and _most(result, cell, peer)
        ]
        if cells:
            ratios = {_shape(cell): _ratio(cell, peer) for cell in cells}
            yield _target(
                f"at most {RATIOS[peer, dtype]:g} x {NAMES[peer]} in {dtype}",
                ", ".join(f"{ratio:.2f} at {shape}" for shape, ratio in ratios.items()),
                max(ratios.values()) <= RATIOS[peer, dtype],
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
            f"Median of {config['repeats']} turns (quartiles), turn by turn in one process in "
            "random order; a turn is one untimed call, then calls for "
            f"{config['turn_seconds']:g} s. The floor is the time in which "
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
    yield surroundings(result)


def _target(what: str, value: str, reached: bool) -> str:
    return f"Target: {what}: {value}: {'reached' if reached else 'missed'}."


def _spread(cell: Result, name: str) -> Spread:
    return spread(cell["seconds"][name])


def _median(cell: Result, name: str) -> float:
    return _spread(cell, name).median


def _share(result: Result, cell: Result, name: str) -> float:
    """Of the bandwidth floor: one is as fast as the memory allows."""
    width = {"float32": 4, "bfloat16": 2}[cell["dtype"]]
    moved = PASSES * math.prod(cell["shape"]) * width
    return moved / result["bytes_per_second"] / _median(cell, name)


def _ratio(cell: Result, peer: str) -> float:
    """To PyTorch's better number of threads."""
    variants = {peer, f"{peer}_one_thread"} & set(cell["seconds"])
    return _median(cell, "ours") / min(_median(cell, name) for name in variants)


def _most(result: Result, cell: Result, peer: str) -> float | None:
    """The target for that ratio, where there is one."""
    bound = result["environment"]["backend"] == "cpu" and cell["activation"] == "none"
    return RATIOS.get((peer, cell["dtype"])) if bound else None


def _milliseconds(taken: Spread) -> str:
    digits = 1 if taken.median >= 0.01 else 2 if taken.median >= 0.001 else 3
    low, median, high = (f"{1e3 * value:.{digits}f}" for value in sorted(taken))
    return f"{median} ({low} to {high})"


def _setting(cell: Result) -> str:
    return f"{cell['dtype']}{' + ReLU' if cell['activation'] == 'relu' else ''}"


def _error(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"


def _shape(cell: Result) -> str:
    return "x".join(map(str, cell["shape"]))


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
