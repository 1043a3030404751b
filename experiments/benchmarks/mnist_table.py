"""The training benchmark in Markdown, a pure function of its JSON."""

import statistics
from typing import Any

import numpy as np

TARGETS = {"flax": 1.8, "torch": 3.0}
"""bnjax's steps a second, all seeds counted, are to be at least so many times a peer's."""

_NAMES = {"bnjax": "bnjax", "flax": "Flax, a jitted step a batch", "torch": "PyTorch, eager"}


def table(result: dict[str, Any]) -> str:
    """A line for each program of `mnist.measure`, then what one must know to read it."""
    best = {name: _best(result, name) for name in _NAMES}
    lines = [
        _row(
            [
                "training program",
                "steps x seeds per second (range)",
                "ratio to Flax",
                "ratio to PyTorch",
                "of the machine's matrix products",
                "test accuracy, seed 0",
            ]
        ),
        _row(["---"] + ["---:"] * 5),
    ]
    for entry in result["programs"]:
        rates = _rates(result, entry)
        median = statistics.median(rates)
        share = median * result["flops_per_step"] / result["machine_flops_per_second"]
        lines.append(
            _row(
                [
                    _label(entry),
                    f"{median:,.0f} ({min(rates):,.0f} to {max(rates):,.0f})",
                    _ratio(median, best["flax"]),
                    _ratio(median, best["torch"]),
                    f"{100 * share:.1f} %",
                    f"{100 * _accuracies(result, entry)[0]:.2f} %",
                ]
            )
        )
    for name, reason in result["missing"].items():
        lines.append(_row([_NAMES[name], f"not measured: {reason}", "", "", "", ""]))
    notes = [*_conditions(result), *_seeds(result), *_targets(best)]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)])


def _conditions(result: dict[str, Any]) -> list[str]:
    config, setting, environment = result["config"], result["setting"], result["environment"]
    untimed, timed = config["steps_per_dispatch"], config["steps"]
    versions = {"python": environment["python"], **environment["versions"]}
    if result["torch"]:
        versions["torch"] = result["torch"]["version"]
    return [
        f"{config['data']}, batches of {setting['batch_size']}, plain SGD at "
        f"{setting['learning_rate']:g}; all start from the same weights and see the same batches. "
        f"Median and range of {_count(config['repeats'], 'run')}, the programs in turn: "
        f"{untimed:,} steps untimed, {timed:,} timed, then the accuracy. bnjax's time holds an "
        "evaluation on the test set and the order of the examples, the others' neither. The ratio "
        "to PyTorch is to its better number of threads.",
        f"A step has {result['flops_per_step'] / 1e6:.2f} MFLOP in matrix products: forward, the "
        "gradient of each kernel, the gradient of each layer's input but the first's. The machine "
        f"does {result['machine_flops_per_second'] / 1e9:.0f} GFLOP/s on float32 matrices of "
        f"{config['matmul_size']:,} x {config['matmul_size']:,}.",
        f"{environment['processor']}, {_count(environment['device_count'], 'core')}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ".",
    ]


def _seeds(result: dict[str, Any]) -> list[str]:
    notes = []
    for entry in result["programs"]:
        if entry["seeds"] > 1:
            accuracies = [100 * accuracy for accuracy in _accuracies(result, entry)]
            notes.append(
                f"{_label(entry)}: test accuracy {statistics.mean(accuracies):.2f} ± "
                f"{statistics.stdev(accuracies):.2f} %, mean ± sd over the seeds."
            )
    return notes


def _targets(best: dict[str, float]) -> list[str]:
    return [
        f"Target: {target:g} times {_NAMES[name]}: "
        f"{'reached' if best['bnjax'] >= target * best[name] else 'missed'}."
        for name, target in TARGETS.items()
        if best[name]
    ]


def _best(result: dict[str, Any], name: str) -> float:
    """The highest median rate among a program's variants; 0 if it was not measured."""
    medians = [
        statistics.median(_rates(result, entry))
        for entry in result["programs"]
        if entry["program"] == name
    ]
    return max(medians, default=0.0)


def _rates(result: dict[str, Any], entry: dict[str, Any]) -> list[float]:
    """Steps x seeds per second of each repeat."""
    done = result["config"]["steps"] * entry["seeds"]
    return [done / repeat["seconds"] for repeat in entry["repeats"]]


def _accuracies(result: dict[str, Any], entry: dict[str, Any]) -> list[float]:
    """Of each seed, the mean over repeats."""
    correct = np.array([repeat["correct"] for repeat in entry["repeats"]])
    return [float(mean) for mean in correct.mean(axis=0) / result["test_examples"]]


def _label(entry: dict[str, Any]) -> str:
    text = _NAMES[entry["program"]]
    if entry["program"] == "bnjax":
        text += f", {_count(entry['seeds'], 'seed')}"
    if "threads" in entry:
        text += f", {_count(entry['threads'], 'thread')}"
    return text


def _ratio(rate: float, peer: float) -> str:
    return f"{rate / peer:.2f}" if peer else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
