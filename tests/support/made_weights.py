"""Files of torch made by hand, opcode by opcode, and arrays under torchvision's names: no torch.

And the network that takes them.
"""

import struct
import zipfile
from functools import partial

import numpy as np

from bnjax.linen import BatchNorm
from bnjax.models import GoogLeNet

STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage"}
BLOCK = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
MODULES = {  # of GoogLeNet: inputs, 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}


CLASSES = 3
MODEL = GoogLeNet(
    CLASSES,
    norm=partial(BatchNorm, epsilon=1e-3),
    variant="torchvision",
    local_response_norm=False,
    auxiliary=False,
)
"""Takes `googlenet(CLASSES)`."""


def googlenet(classes, *, heads=False):
    """A state dict with torchvision's names and shapes; no two values alike, variances positive."""
    shapes = {}

    def block(at, inputs, outputs, kernel):
        vector = (outputs,)
        for name in BLOCK:
            shapes[f"{at}.{name}"] = (outputs, inputs, kernel, kernel) if "conv" in name else vector
        shapes[f"{at}.bn.num_batches_tracked"] = ()

    block("conv1", 3, 64, 7)
    block("conv2", 64, 64, 1)
    block("conv3", 64, 192, 3)
    for name, (inputs, one, three_reduce, three, five_reduce, five, project) in MODULES.items():
        at = f"inception{name}"
        block(f"{at}.branch1", inputs, one, 1)
        block(f"{at}.branch2.0", inputs, three_reduce, 1)
        block(f"{at}.branch2.1", three_reduce, three, 3)
        block(f"{at}.branch3.0", inputs, five_reduce, 1)
        block(f"{at}.branch3.1", five_reduce, five, 3)
        block(f"{at}.branch4.1", inputs, project, 1)
    for at, inputs in {"aux1": 512, "aux2": 528}.items() if heads else ():
        block(f"{at}.conv", inputs, 128, 1)
        shapes |= {f"{at}.fc1.weight": (1024, 2048), f"{at}.fc1.bias": (1024,)}
        shapes |= {f"{at}.fc2.weight": (classes, 1024), f"{at}.fc2.bias": (classes,)}
    shapes |= {"fc.weight": (classes, 1024), "fc.bias": (classes,)}
    rng = np.random.default_rng(0)
    return {
        name: np.array(7) if shape == () else rng.random(shape, np.float32)
        for name, shape in shapes.items()
    }


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def integer(value):
    return b"J" + struct.pack("<i", value)


def several(*items):
    return b"(" + b"".join(items) + b"t"


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def dictionary(entries):
    """An OrderedDict."""
    pairs = b"".join(text(key) + value for key, value in entries.items())
    return name("collections", "OrderedDict") + b")R(" + pairs + b"u"


def program(value):
    return b"\x80\x02" + value + b"."


def tensor(
    array, key, *, view=b"", offset=0, shape=None, strides=None, function="_rebuild_tensor_v2"
):
    """`view` is what older files have in a reference to a storage, besides."""
    shape = array.shape if shape is None else shape
    strides = strides or [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
    kind = name("torch", STORAGES[array.dtype.name])
    storage = several(text("storage"), kind, text(key), text("cpu"), integer(array.size), view)
    sizes = (several(*map(integer, values)) for values in (shape, strides))
    rest = b"\x89" + name("collections", "OrderedDict") + b")R"
    call = several(storage + b"Q", integer(offset), *sizes, rest)
    return name("torch._utils", function) + call + b"R"


def archive(path, value, arrays, *, byteorder=b"little", top="archive"):
    """What torch writes since 1.6: a zip file, nothing in it compressed."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{top}/data.pkl", value)
        file.writestr(f"{top}/byteorder", byteorder)
        for key, array in arrays.items():
            file.writestr(f"{top}/data/{key}", array.tobytes())
        file.writestr(f"{top}/version", b"3\n")
    return path


def save(path, state, **options):
    """A state dict as such an archive."""
    keys = {key: str(i) for i, key in enumerate(state)}
    value = program(dictionary({key: tensor(state[key], keys[key]) for key in state}))
    return archive(path, value, {keys[key]: state[key] for key in state}, **options)


def save_stream(path, state):
    """What torch wrote before 1.6: pickles and storages one after the other."""
    magic = bytes.fromhex("6cfc9c46f9206aa85019")
    entries = {
        key: tensor(array, str(i), view=b"N") for i, (key, array) in enumerate(state.items())
    }
    machine = text("little_endian") + b"\x88"
    parts = [
        program(b"\x8a\x0a" + magic),
        program(b"M" + struct.pack("<H", 1001)),
        program(b"}(" + machine + b"u"),
        program(dictionary(entries)),
        program(b"](" + b"".join(text(str(i)) for i in range(len(state))) + b"e"),
    ]
    for array in state.values():
        parts += [struct.pack("<q", array.size), array.tobytes()]
    path.write_bytes(b"".join(parts))
    return path
