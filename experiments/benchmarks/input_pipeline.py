"""Training crops from full-size JPEG files: images a second on one core, beside tf.data.

All contestants take the same windows of the same files to the same size, turn by turn in one
process that may use one core.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL

from bnjax.data.views.crops import Window, sample_window
from bnjax.data.views.decoding import open_image
from bnjax.data.views.distortions import Distortion, distort
from experiments.benchmarks import tables
from experiments.benchmarks.benchmark import Result, provenance
from experiments.benchmarks.input_pipeline_photos import read_folder, synthetic_photo
from experiments.benchmarks.turns import raw, spread, take_turns
from experiments.harness.bounds import check_fields

CONTESTANTS = ("ours", "ours_distorted", "tf", "tf_same")
"""bnjax without and with distortions; TensorFlow by its defaults, and making bnjax's pixels."""

LEAST = 1.0
"""Target: images a second over those of tf.data with its defaults."""

LABELS = {
    "ours": "bnjax",
    "ours_distorted": "bnjax, colours distorted at full strength",
    "tf": "tf.data, decode_and_crop_jpeg and resize, defaults",
    "tf_same": "tf.data, the same with accurate DCT and antialias",
}


@dataclass(frozen=True)
class Config:
    """Training crops from full-size JPEG files on one core: bnjax, tf.data."""

    folder: Path | None = None
    """Folder with JPEG files, also in folders below it; by default synthetic photos are made."""
    files: int = 64
    """Number of files, at most; each gets one window, as GoogLeNet samples them."""
    width: int = 500
    """Width of synthetic photos, pixels; the usual size of ImageNet's is 500 x 375."""
    height: int = 375
    """Height of synthetic photos, pixels."""
    quality: int = 90
    """JPEG quality of synthetic photos."""
    image_size: int = 224
    """Height and width of the views, pixels."""
    contestants: tuple[str, ...] = CONTESTANTS
    """Contestants that take part."""
    repeats: int = 20
    """Turns of each contestant."""
    turn_seconds: float = 0.2
    """Length of a turn: all files are decoded until it is over, at least once."""
    seed: int = 0
    """Seed of photos and windows."""

    def __post_init__(self) -> None:
        check_fields(self, choices={"contestants": CONTESTANTS}, least={"seed": 0})
        if self.quality > 95:
            raise ValueError(f"quality must be in [1, 95], got {self.quality}.")


Decode = Callable[[int], list[np.ndarray]]
"""Makes all views the given number of times, and returns those of the last."""


def decoder(
    files: Sequence[bytes],
    windows: Sequence[Window],
    size: int,
    *,
    distortion: Distortion | None = None,
) -> Decode:
    """Returns bnjax's decoding.

    Args:
        files: JPEG.
        windows: one of each file.
        size: height and width of the views.
        distortion: of colours; None leaves them as they are.
    """
    rng = np.random.default_rng(0)

    def view(data: bytes, window: Window) -> np.ndarray:
        pixels = open_image(data).resized(window, (size, size))
        return pixels if distortion is None else distort(pixels, distortion, rng)

    def decode(calls: int) -> list[np.ndarray]:
        for _ in range(calls):
            views = list(map(view, files, windows))
        return views

    return decode


def start(config: Config) -> None:
    """Prepares nothing."""
    del config


def measure(config: Config) -> Result:
    """Times all contestants that are installed.

    Raises:
        ValueError: the folder has no JPEG file.
        DataError: a file is damaged.
    """
    files = _files(config)
    pictures = [open_image(data) for data in files]
    rng = np.random.default_rng(config.seed)
    windows = [sample_window(picture.width, picture.height, rng) for picture in pictures]
    with _one_core() as pinned:
        pipelines, versions, missing = _pipelines(config, files, windows)
        print(f"measuring: {', '.join(pipelines)}", file=sys.stderr, flush=True)
        turns = take_turns(pipelines, repeats=config.repeats, turn_seconds=config.turn_seconds)
    views = {name: np.stack(decode(1)).astype(int) for name, decode in pipelines.items()}
    count = len(files)
    return {
        **provenance(
            "input_pipeline",
            config,
            peers={"pillow": PIL.__version__, **versions},
            missing=missing,
        ),
        "pinned": pinned,
        "files": {
            "count": count,
            "bytes": sum(map(len, files)) / count,
            "pixels": sum(picture.width * picture.height for picture in pictures) / count,
            "window_pixels": sum(window.width * window.height for window in windows) / count,
        },
        "seconds": {
            name: [seconds / count for seconds in taken]
            for name, taken in raw(turns)["seconds"].items()
        },
        "difference": {
            name: float(np.abs(other - views["ours"]).mean())
            for name, other in views.items()
            if "ours" in views and name.startswith("tf")
        },
    }


def _files(config: Config) -> list[bytes]:
    if config.folder is not None:
        return read_folder(config.folder, config.files)
    return [
        synthetic_photo(
            config.seed + index, width=config.width, height=config.height, quality=config.quality
        )
        for index in range(config.files)
    ]


def _pipelines(
    config: Config, files: Sequence[bytes], windows: Sequence[Window]
) -> tuple[dict[str, Decode], dict[str, str], dict[str, str]]:
    """Returns who takes part; TensorFlow's version, if it does; who is missing, and why."""
    size = config.image_size
    pipelines: dict[str, Decode] = {}
    versions: dict[str, str] = {}
    missing: dict[str, str] = {}
    for name in config.contestants:
        if not name.startswith("tf"):
            distortion = Distortion() if name == "ours_distorted" else None
            pipelines[name] = decoder(files, windows, size, distortion=distortion)
            continue
        try:
            import tensorflow

            from experiments.benchmarks import input_pipeline_tf as peer
        except ImportError as error:
            missing[name] = f"{error}; pip install tensorflow-cpu"
            continue
        if not versions:
            peer.use_one_thread()
            versions = {"tensorflow": tensorflow.__version__}
        pipelines[name] = peer.fused_decoder(files, windows, size, same=name == "tf_same")
    return pipelines, versions, missing


@contextmanager
def _one_core() -> Iterator[bool]:
    """Keeps this process, and threads that begin meanwhile, on one core where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield False
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield True
    finally:
        os.sched_setaffinity(0, cores)


def table(result: Result) -> str:
    """Returns a line for each contestant, the target, then the conditions."""
    size = result["config"]["image_size"]
    heads = [
        f"training crops of {size} x {size}",
        "images/s on one core (quartiles)",
        "x tf.data",
    ]
    rows: list[list[str]] = []
    for name, seconds in result["seconds"].items():
        rate, ratio = spread([1 / value for value in seconds]), _ratio(result, name)
        rows.append(
            [LABELS[name], tables.quartiles(rate, digits=0), tables.optional("{:.2f}", ratio)]
        )
    for name, reason in result["missing"].items():
        rows.append([LABELS[name], f"not measured: {reason}"])
    return f"{tables.table(heads, rows)}\n\n{tables.bullets(_notes(result))}"


def _ratio(result: Result, name: str) -> float | None:
    """Returns images a second over those of tf.data's defaults, the median over the repeats."""
    if not {name, "tf"} <= set(result["seconds"]):
        return None
    return tables.ratio_by_turn(result["seconds"], "tf", name).median


def _notes(result: Result) -> Iterator[str]:
    config, files, ratio = result["config"], result["files"], _ratio(result, "ours")
    if ratio is not None:
        reached = tables.verdict(ratio >= LEAST)
        yield f"Target: at least {LEAST:.1f} times tf.data's defaults: {ratio:.2f}: {reached}."
    kind = "JPEG files of the user's" if config["folder"] else "synthetic JPEG photos"
    yield (
        f"{files['count']} {kind}, on average {files['bytes'] / 1e3:.0f} kB and "
        f"{files['pixels'] / 1e3:.0f} thousand pixels, of which the windows cover "
        f"{100 * files['window_pixels'] / files['pixels']:.0f} %. The same windows for all, "
        "uint8 out."
    )
    differences = [f"{LABELS[name]}: {value:.2f}" for name, value in result["difference"].items()]
    yield (
        "TensorFlow's defaults are the fast DCT, and a resizing that takes the four nearest pixels "
        "and so skips some where the window is larger than the view; bnjax takes the accurate DCT "
        "and averages over all pixels. Mean difference of the views from bnjax's, levels of 255: "
        f"{'; '.join(differences) or 'not measured'}."
    )
    yield (
        f"Median of {config['repeats']} turns (quartiles), turn by turn in random order in one "
        f"process {'on one core' if result['pinned'] else 'which the system may move'}; a turn is "
        f"one untimed pass over the files, then passes for {config['turn_seconds']:g} s."
    )
    yield tables.surroundings(result)
