"""Training crops from full-size JPEG files: images a second on one core, beside tf.data.

All take the same windows of the same files to the same size, turn by turn in one process that may
use one core.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL

from bnjax.data.views.crops import Window, sample_window
from bnjax.data.views.decoding import open_image
from bnjax.data.views.distortions import Distortion, distort
from bnjax.evidence.records import environment
from experiments.benchmarks.input_pipeline_photos import read_folder, synthetic_photo
from experiments.benchmarks.input_pipeline_table import table
from experiments.benchmarks.turns import take_turns

__all__ = ["CONTESTANTS", "SCHEMA", "Config", "measure", "table"]

SCHEMA = 1

CONTESTANTS = ("ours", "ours_distorted", "tf", "tf_same")
"""Ours, without and with distortions; TensorFlow by its defaults, and making our pixels."""


@dataclass(frozen=True)
class Config:
    """Training crops from full-size JPEG files, on one core."""

    folder: Path | None = None
    """Of JPEG files, with those below it; by default synthetic photos are made."""
    files: int = 64
    """How many, at most; each gets one window, as GoogLeNet samples them."""
    width: int = 500
    """Of synthetic photos, pixels; the usual size of ImageNet's is 500 x 375."""
    height: int = 375
    """Of synthetic photos, pixels."""
    quality: int = 90
    """Of synthetic photos, JPEG's."""
    image_size: int = 224
    """Height and width of the views, pixels."""
    contestants: tuple[str, ...] = CONTESTANTS
    """Who takes part."""
    repeats: int = 20
    """Turns of each contestant."""
    turn_seconds: float = 0.2
    """A turn's length: all files are decoded until it is over, at least once."""
    seed: int = 0
    """Of photos and windows."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.contestants if name not in CONTESTANTS]
        if unknown:
            raise ValueError(
                f"contestants: unknown {unknown[0]!r}; choose from {', '.join(CONTESTANTS)}."
            )
        if not self.contestants or len(set(self.contestants)) < len(self.contestants):
            raise ValueError(f"contestants must be given, each once; got {self.contestants}.")
        for name in ("files", "width", "height", "image_size", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}.")
        if not 1 <= self.quality <= 95:
            raise ValueError(f"quality must be in [1, 95], got {self.quality}.")
        if not self.turn_seconds > 0:
            raise ValueError(f"turn_seconds must be > 0, got {self.turn_seconds}.")


class Pipeline(Protocol):
    """Makes all views so many times and returns those of the last."""

    def run(self, calls: int) -> list[np.ndarray]:
        """Every file so many times."""


class OurDecoding:
    """bnjax's views of given windows.

    Args:
        files: JPEG.
        windows: of each.
        size: height and width of the views.
        distortion: of colours; None leaves them.
    """

    def __init__(
        self,
        files: Sequence[bytes],
        windows: Sequence[Window],
        size: int,
        *,
        distortion: Distortion | None = None,
    ) -> None:
        self._work = list(zip(files, windows, strict=True))
        self._size = (size, size)
        self._distortion = distortion
        self._rng = np.random.default_rng(0)

    def run(self, calls: int) -> list[np.ndarray]:
        """Every file so many times; the views of the last time."""
        for _ in range(calls):
            views = [self._view(data, window) for data, window in self._work]
        return views

    def _view(self, data: bytes, window: Window) -> np.ndarray:
        view = open_image(data).resized(window, self._size)
        return view if self._distortion is None else distort(view, self._distortion, self._rng)


def measure(config: Config) -> dict[str, Any]:
    """Times all contestants.

    Returns:
        JSON values, raw; `missing` names the contestants whose library is not installed, and why.

    Raises:
        ValueError: the folder has no JPEG file.
        DataError: a file is damaged.
    """
    files = _files(config)
    windows = _windows(config, files)
    with _one_core() as pinned:
        pipelines, versions, missing = _pipelines(config, files, windows)
        print(f"measuring: {', '.join(pipelines)}", file=sys.stderr, flush=True)
        turns = take_turns(
            {name: pipeline.run for name, pipeline in pipelines.items()},
            repeats=config.repeats,
            turn_seconds=config.turn_seconds,
        )
    views = {name: np.stack(pipeline.run(1)).astype(int) for name, pipeline in pipelines.items()}
    sizes = [open_image(data) for data in files]
    return {
        "schema": SCHEMA,
        "benchmark": "input_pipeline",
        "config": {**asdict(config), "folder": None if config.folder is None else "given"},
        "environment": environment(),
        "allocation": {},
        "peers": {"pillow": PIL.__version__, **versions},
        "missing": missing,
        "pinned": pinned,
        "files": {
            "count": len(files),
            "bytes": sum(map(len, files)) / len(files),
            "pixels": sum(size.width * size.height for size in sizes) / len(files),
            "window_pixels": sum(window.width * window.height for window in windows) / len(files),
        },
        "seconds": {
            name: [turn.seconds / len(files) for turn in taken] for name, taken in turns.items()
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


def _windows(config: Config, files: Sequence[bytes]) -> list[Window]:
    rng = np.random.default_rng(config.seed)
    pictures = [open_image(data) for data in files]
    return [sample_window(picture.width, picture.height, rng) for picture in pictures]


def _pipelines(
    config: Config, files: Sequence[bytes], windows: Sequence[Window]
) -> tuple[dict[str, Pipeline], dict[str, str], dict[str, str]]:
    """Who can take part; TensorFlow's version, if it does; who cannot, and why."""
    size = config.image_size
    pipelines: dict[str, Pipeline] = {}
    versions: dict[str, str] = {}
    missing: dict[str, str] = {}
    for name in config.contestants:
        if not name.startswith("tf"):
            distortion = Distortion() if name == "ours_distorted" else None
            pipelines[name] = OurDecoding(files, windows, size, distortion=distortion)
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
        pipelines[name] = peer.FusedDecoding(files, windows, size, same=name == "tf_same")
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
