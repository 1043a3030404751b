"""Ninety hostile weights files, by a fixed seed: each is refused by name, and runs nothing."""

import random
from functools import partial

import h5py
import made_weights
import numpy as np
import pytest
from made_weights import CLASSES, MODEL
from marks import slow

from bnjax.linen import BatchNorm
from bnjax.models import InceptionV3, load_pretrained, save_safetensors

V3 = InceptionV3(
    CLASSES,
    auxiliary="none",
    count_include_pad=False,
    norm=partial(BatchNorm, epsilon=1e-3),
)
ARRAYS = {"conv1.conv.weight": np.ones((2, 3), np.float32), "fc.bias": np.arange(4.0, dtype="f4")}


def whole(kind, path):
    """A small file of the kind; not of our networks."""
    if kind == "archive":
        made_weights.save(path, ARRAYS)
    elif kind == "stream":
        made_weights.save_stream(path, ARRAYS)
    elif kind == "safetensors":
        save_safetensors(ARRAYS, path)
    else:
        with h5py.File(path, "w") as file:
            for name in ("conv2d", "batch_normalization"):
                for i in range(1 if name == "conv2d" else 3):
                    file[f"layers/{name}/vars/{i}"] = np.ones(3, np.float32)
    return path.read_bytes()


def damaged(data, rng):
    """Flipped bits, zeroed, repeated, removed or foreign parts, and large numbers."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data))
        end = min(len(data), at + rng.randint(1, 16))
        part = rng.choice(
            [
                bytes([data[at] ^ 1 << rng.randrange(8)]),
                bytes(end - at),
                b"\xff" * (end - at),
                bytes(data[at:end]) * 2,
                b"",
                rng.randbytes(end - at),
            ]
        )
        data[at:end] = part
    return bytes(data)


KINDS = {"archive": 30, "stream": 20, "safetensors": 25, "h5": 15}
ENDINGS = {"archive": "pth", "stream": "pt"}


@pytest.mark.parametrize("kind", [slow(kind) if kind == "h5" else kind for kind in KINDS])
def test_hostile_files_are_refused_by_name(kind, tmp_path):
    rng = random.Random(17)
    path = tmp_path / f"a.{ENDINGS.get(kind, kind)}"
    data = whole(kind, path)
    model, source = (V3, "keras") if kind == "h5" else (MODEL, "torchvision")
    poor = []
    for number in range(KINDS[kind]):
        path.write_bytes(damaged(data, rng))
        try:
            load_pretrained(model, path, source=source)
        except ValueError as error:
            if str(path) not in str(error) or len(str(error)) > 4000:
                poor.append(f"{number}: {error!r:.200}")
        except Exception as error:
            poor.append(f"{number}: {error!r:.200}")
        else:
            poor.append(f"{number}: silent")
    assert not poor, "\n".join(poor)
