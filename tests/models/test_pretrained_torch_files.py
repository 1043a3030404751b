"""Files of torch.save, made by hand: read without torch, and without running what they say."""

import os
import pickle
import zipfile
from functools import partial

import made_weights
import numpy as np
import pytest
from made_weights import CLASSES, MODEL

from bnjax.models import load_pretrained


@pytest.fixture(scope="module")
def state():
    """Not to be changed."""
    return made_weights.googlenet(CLASSES)


@pytest.fixture(scope="module")
def saved(state, tmp_path_factory):
    """The same state dict in both formats; not to be changed."""
    folder = tmp_path_factory.mktemp("saved")
    return {
        "archive": made_weights.save(folder / "new.pth", state),
        "stream": made_weights.save_stream(folder / "old.pth", state),
    }


def load(path):
    return load_pretrained(MODEL, path, source="torchvision")


@pytest.mark.parametrize("kind", ["archive", "stream"])
def test_both_formats_are_read(saved, state, kind):
    params = load(saved[kind]).variables["params"]
    for name, kernel in {
        "conv1.conv.weight": params["conv1"]["conv"]["kernel"],
        "inception5b.branch4.1.conv.weight": params["inception_5b"]["pool_project"]["conv"][
            "kernel"
        ],
    }.items():
        np.testing.assert_array_equal(kernel, state[name].transpose(2, 3, 1, 0))


def test_a_checkpoint_with_a_state_dict(tmp_path, state):
    """In it a parameter, and two tensors that view one storage, one of them transposed."""
    arrays = {str(i): value for i, value in enumerate(state.values())}
    entries = {
        name: made_weights.tensor(value, str(i)) for i, (name, value) in enumerate(state.items())
    }
    entries["conv2.conv.weight"] = (
        made_weights.name("torch._utils", "_rebuild_parameter")
        + made_weights.several(entries["conv2.conv.weight"], b"\x88", made_weights.dictionary({}))
        + b"R"
    )
    arrays["shared"] = np.arange(CLASSES + 1024 * CLASSES, dtype=np.float32)
    shared = partial(made_weights.tensor, arrays["shared"], "shared")
    entries["fc.bias"] = shared(shape=(CLASSES,))
    entries["fc.weight"] = shared(offset=CLASSES, shape=(CLASSES, 1024), strides=(1, CLASSES))
    checkpoint = {"epoch": made_weights.integer(3), "state_dict": made_weights.dictionary(entries)}
    value = made_weights.program(made_weights.dictionary(checkpoint))
    made_weights.archive(tmp_path / "a.pth", value, arrays)

    params = load(tmp_path / "a.pth").variables["params"]
    expected = state["conv2.conv.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params["conv2_reduce"]["conv"]["kernel"], expected)
    np.testing.assert_array_equal(params["logits"]["bias"], np.arange(CLASSES))
    np.testing.assert_array_equal(
        params["logits"]["kernel"], CLASSES + np.arange(1024 * CLASSES).reshape(1024, CLASSES)
    )


class Command:
    """Pickles to a call, as an attacker's object does."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


ATTACKS = {
    "system": lambda mark: pickle.dumps({"a": Command(os.system, f"touch {mark}")}, protocol=2),
    "eval": lambda mark: pickle.dumps(Command(eval, f"open({mark!r}, 'w').close()"), protocol=4),
    "mkdir": lambda mark: pickle.dumps([Command(os.mkdir, mark)], protocol=0),
    "instance": lambda mark: b"(S'touch " + mark.encode() + b"'\nios\nsystem\n.",
    "dotted": lambda mark: (
        b"\x80\x04\x8c\x02os\x8c\x0dpath.os.mkdir\x93"
        + made_weights.several(made_weights.text(mark))
        + b"R."
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("kind", ["archive", "stream"])
def test_nothing_that_a_pickle_names_is_run(attack, kind, tmp_path):
    """Each of them works: plain pickle runs it."""
    mark = tmp_path / "mark"
    evil = ATTACKS[attack](str(mark))
    pickle.loads(evil)
    assert mark.exists()
    mark.rmdir() if mark.is_dir() else mark.unlink()

    path = tmp_path / "evil.pth"
    if kind == "archive":
        made_weights.archive(path, evil, {})
    else:
        harmless = made_weights.save_stream(path, {}).read_bytes()
        end = harmless.index(made_weights.program(made_weights.dictionary({})))
        path.write_bytes(harmless[:end] + evil)
    with pytest.raises(ValueError, match="is no part of a state dict: nothing of it was run"):
        load(path)
    assert not mark.exists()


def test_a_pickle_alone_is_not_run_either(tmp_path):
    mark = tmp_path / "mark"
    (tmp_path / "evil.pth").write_bytes(ATTACKS["eval"](str(mark)))
    with pytest.raises(ValueError, match=r"names builtins\.eval"):
        load(tmp_path / "evil.pth")
    (tmp_path / "number.pth").write_bytes(pickle.dumps(5))
    with pytest.raises(ValueError, match=r"a pickle, but not of torch\.save"):
        load(tmp_path / "number.pth")
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["archive", "stream"])
@pytest.mark.parametrize("share", [0.0001, 0.5, 0.999999])
def test_truncated_files_are_refused(saved, kind, share, tmp_path):
    whole = saved[kind].read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match="damaged or truncated"):
        load(tmp_path / "cut.pth")


def test_a_flipped_bit_is_found(saved, tmp_path):
    """By the archive's checksums; the old format has none."""
    whole = bytearray(saved["archive"].read_bytes())
    whole[len(whole) // 2] ^= 1
    (tmp_path / "flipped.pth").write_bytes(whole)
    with pytest.raises(ValueError, match="damaged or truncated"):
        load(tmp_path / "flipped.pth")


ONE = np.ones((2, 3), np.float32)
WEIGHT = made_weights.tensor(ONE, "0")
ARCHIVES = {
    "list": (b"]", {}, "holds a list: save the model's state_dict"),
    "number": (
        made_weights.dictionary({"a": made_weights.integer(5)}),
        {},
        "holds 'a' of type int among its tensors",
    ),
    "large": (
        made_weights.dictionary({"a": made_weights.tensor(ONE, "0", shape=(2, 4))}),
        {"0": ONE},
        r"a of shape \(2, 4\) is larger than its storage",
    ),
    "strides": (
        made_weights.dictionary({"a": made_weights.tensor(ONE, "0", strides=(4, 1))}),
        {"0": ONE},
        r"a of shape \(2, 3\) is larger than its storage",
    ),
    "offset": (
        made_weights.dictionary({"a": made_weights.tensor(ONE, "0", offset=1)}),
        {"0": ONE},
        r"a of shape \(2, 3\) is larger than its storage",
    ),
    "repeated": (
        made_weights.dictionary(
            {"a": made_weights.tensor(ONE, "0", shape=(1 << 20, 1 << 20), strides=(0, 0))}
        ),
        {"0": ONE},
        "is larger than its storage",
    ),
    "negative": (
        made_weights.dictionary({"a": made_weights.tensor(ONE, "0", shape=(-2, -3))}),
        {"0": ONE},
        "a negative size",
    ),
    "short": (
        made_weights.dictionary({"a": WEIGHT}),
        {"0": ONE[0]},
        "storage '0' is not of 6 values",
    ),
    "absent": (made_weights.dictionary({"a": WEIGHT}), {}, "it has no storage '0'"),
    "two": (
        made_weights.dictionary(
            {"a": WEIGHT, "b": made_weights.tensor(ONE.astype(np.float16), "0")}
        ),
        {"0": ONE},
        "refers to storage '0' in two ways",
    ),
    "other": (
        made_weights.dictionary({"a": made_weights.tensor(ONE, "0", function="_rebuild_qtensor")}),
        {"0": ONE},
        r"names torch\._utils\._rebuild_qtensor",
    ),
    "stack": (b"R", {}, "damaged or truncated"),
    "empty": (made_weights.dictionary({}), {}, "holds no tensor"),
    "memo": (b"}r" + (1 << 28).to_bytes(4, "little"), {}, "asks for place 268435456 of its memo"),
    "array": (b"\x96" + (1 << 33).to_bytes(8, "little") + b"a", {}, "damaged or truncated"),
    "hash": (
        b"})" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60)) + b"Ns",
        {},
        "more values than its length explains",
    ),
    "dup": (b"})" + b"2\x86" * 60 + b"Ns", {}, "duplicates values"),
    "rank": (
        made_weights.dictionary({"a": made_weights.tensor(ONE[:1, :1], "0", shape=(1,) * 99)}),
        {"0": ONE[:1, :1]},
        "is damaged or truncated .* dimension",
    ),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_odd_archives_are_refused(name, tmp_path):
    value, arrays, message = ARCHIVES[name]
    path = made_weights.archive(tmp_path / "a.pth", made_weights.program(value), arrays)
    with pytest.raises(ValueError, match=message):
        load(path)


def test_compressed_and_overlong_archives_are_refused(tmp_path):
    """torch stores: a megabyte could be two gigabytes."""
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", made_weights.program(b"}"))
        file.writestr("archive/data/0", bytes(1 << 20))
    with pytest.raises(ValueError, match="has compressed members"):
        load(tmp_path / "a.pth")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_a_prefix_of_all_names_is_left_out(prefix, state, tmp_path):
    path = made_weights.save(tmp_path / "a.pth", {prefix + name: x for name, x in state.items()})
    found = load(path)
    np.testing.assert_array_equal(found.variables["params"]["logits"]["bias"], state["fc.bias"])
    assert f"begin with '{prefix}'" in found.notes[0]


def test_the_list_of_wrong_names_is_short(state, tmp_path):
    path = made_weights.save(tmp_path / "a.pth", {f"{name}.x": x for name, x in state.items()})
    with pytest.raises(ValueError, match=r"287 of 287 arrays are missing(.|\n)*and 267 more") as e:
        load(path)
    assert len(str(e.value)) < 4000


def test_files_of_another_kind_are_refused(tmp_path, state):
    path = made_weights.save(tmp_path / "big.pth", {"a": ONE}, byteorder=b"big")
    with pytest.raises(ValueError, match="written on a big-endian machine"):
        load(path)
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match=r"an archive, but not of torch\.save"):
        load(tmp_path / "zip.pth")
    (tmp_path / "text.pth").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=r"not a file of torch\.save: it begins with b'<htm'"):
        load(tmp_path / "text.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"not a file of torch\.save: it begins with b''"):
        load(tmp_path / "empty.pth")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load(tmp_path / "absent.pth")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load(tmp_path / "folder.pth")
    with pytest.raises(ValueError, match=r"must end in \.pth or .* or \.safetensors"):
        load(tmp_path / "weights.h5")
    another = made_weights.save(tmp_path / "another.pth", {"layer1.0.conv1.weight": ONE})
    with pytest.raises(ValueError, match=r"287 of 287 arrays are missing, 1 are left over"):
        load(another)
