"""The input pipeline's speed in Markdown, a pure function of its JSON."""

from collections.abc import Iterator
from typing import Any

from experiments.benchmarks.machine import surroundings
from experiments.benchmarks.turns import spread

LEAST = 1.0
"""Target: images a second over those of tf.data with its defaults."""

NAMES = {
    "ours": "bnjax",
    "ours_distorted": "bnjax, colours distorted at full strength",
    "tf": "tf.data, decode_and_crop_jpeg and resize, defaults",
    "tf_same": "tf.data, the same with accurate DCT and antialias",
}

Result = dict[str, Any]


def table(result: Result) -> str:
    """A line for each contestant, the target, then what one must know to read it."""
    size = result["config"]["image_size"]
    lines = [
        f"| training crops of {size} x {size} | images/s on one core (quartiles) | x tf.data |",
        "| --- | ---: | ---: |",
    ]
    for name, seconds in result["seconds"].items():
        median, low, high = spread([1 / value for value in seconds])
        ratio = _ratio(result, name)
        lines.append(
            f"| {NAMES[name]} | {median:,.0f} ({low:,.0f} to {high:,.0f}) | "
            f"{'' if ratio is None else f'{ratio:.2f}'} |"
        )
    for name, reason in result["missing"].items():
        lines.append(f"| {NAMES[name]} | not measured: {reason} | |")
    return "\n".join([*lines, "", *(f"- {note}" for note in _notes(result))])


def _ratio(result: Result, name: str) -> float | None:
    """Images a second over those of tf.data with its defaults: the median over the repeats."""
    taken = result["seconds"]
    if "tf" not in taken:
        return None
    return spread([theirs / mine for theirs, mine in zip(taken["tf"], taken[name], strict=True)])[0]


def _notes(result: Result) -> Iterator[str]:
    config, files = result["config"], result["files"]
    ratio = _ratio(result, "ours") if "ours" in result["seconds"] else None
    if ratio is not None:
        verdict = "reached" if ratio >= LEAST else "missed"
        yield f"Target: at least {LEAST:.1f} times tf.data's defaults: {ratio:.2f}: {verdict}."
    kind = "JPEG files of the user's" if config["folder"] else "synthetic JPEG photos"
    yield (
        f"{files['count']} {kind}, on average {files['bytes'] / 1e3:.0f} kB and "
        f"{files['pixels'] / 1e3:.0f} thousand pixels, of which the windows cover "
        f"{100 * files['window_pixels'] / files['pixels']:.0f} %. The same windows for all, "
        "uint8 out."
    )
    yield (
        "TensorFlow's defaults are the fast DCT, and a resizing that takes the four nearest pixels "
        "and so skips some where the window is larger than the view; bnjax takes the accurate DCT "
        "and averages over all pixels. Mean difference of the views from bnjax's, levels of 255: "
        + (
            "; ".join(f"{NAMES[name]}: {value:.2f}" for name, value in result["difference"].items())
            or "not measured"
        )
        + "."
    )
    yield (
        f"Median of {config['repeats']} turns (quartiles), turn by turn in random order in one "
        f"process {'on one core' if result['pinned'] else 'which the system may move'}; a turn is "
        f"one untimed pass over the files, then passes for {config['turn_seconds']:g} s."
    )
    yield surroundings(result)
