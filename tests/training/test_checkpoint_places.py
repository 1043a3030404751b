"""Checkpoints in odd places, among odd files, and in places that go away."""

import hashlib
import json
import random
import shutil
import warnings

import orbax.checkpoint as ocp
import pytest
from made_checkpoints import CONFIG, make_state, steps_on_disk
from tolerances import assert_bitwise

from bnjax.training.checkpoints import CheckpointError, Checkpoints

NAMES = ("run[0]", "lr=[0.1,0.2]", "[!x]", "a\\b", "a*?", "a{b,c}", "%41 #ü", "a\nb")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_is_restored_wherever_it_lies(tmp_path, name):
    """Orbax takes paths for patterns, TensorStore a backslash for a slash."""
    folder = tmp_path / name / "checkpoints"
    with Checkpoints(folder, config=CONFIG) as checkpoints:
        checkpoints.save(1, make_state(1))
    with Checkpoints(folder, config=CONFIG) as checkpoints:
        restored = checkpoints.restore(make_state(0))
    assert restored.step == 1
    assert_bitwise(restored.state, make_state(1))
    assert [path.name for path in tmp_path.iterdir()] == [name]  # and nothing beside it


def _zero_middle(path):
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = bytes(8)
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [_zero_middle, lambda path: path.unlink()])
def test_what_cannot_be_read_back_does_not_count_as_saved(run, monkeypatch, harm):
    """A disk, or a library, that writes something else and reports success."""
    save = ocp.Checkpointer.save

    def save_badly(self, directory, *args, **kwargs):
        save(self, directory, *args, **kwargs)
        harm(max(directory.rglob("*"), key=lambda p: p.is_file() * p.stat().st_size))

    with Checkpoints(run, config=CONFIG) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(ocp.Checkpointer, "save", save_badly)
            checkpoints.save(3, make_state(3))
            with pytest.raises(CheckpointError, match=r"step 3 was not saved in .*DamageError"):
                checkpoints.latest()
        assert steps_on_disk(run) == ["1", "2"]
        checkpoints.save(3, make_state(3))
        assert checkpoints.restore(make_state(0)).step == 3


def test_unfinished_files_and_links_are_cleared_like_folders(run, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("")
    (run / "40.tmp").write_text("")
    (run / "41.tmp").symlink_to(elsewhere)
    with Checkpoints(run, config=CONFIG) as checkpoints:
        assert checkpoints.restore(make_state(0)).step == 2
    assert steps_on_disk(run) == ["1", "2"]
    assert (elsewhere / "kept").exists()


def test_a_lock_that_is_a_folder_is_named(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot be locked .*\.lock must be a file"):
        Checkpoints(tmp_path, config=CONFIG)


def test_a_directory_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CheckpointError, match=r"file.* cannot be used"):
            Checkpoints(folder, config=CONFIG)


@pytest.mark.parametrize("remove", [shutil.rmtree, lambda run: run.rename(f"{run}.moved")])
def test_a_directory_that_goes_away_is_named_and_nothing_is_lost(run, remove):
    checkpoints = Checkpoints(run, config=CONFIG)
    remove(run)
    for act in (
        checkpoints.latest,
        lambda: checkpoints.save(3, make_state(3)),
        lambda: checkpoints.restore(make_state(0)),
    ):
        with pytest.raises(CheckpointError, match=r"cannot be used .*moved or removed"):
            act()
    checkpoints.close()
    assert not run.exists()


def _set(manifest, name, value):
    manifest[name] = value
    return manifest


def _leaf(manifest, **change):
    manifest["leaves"][0] |= change
    return manifest


MALFORMED = {
    "number": lambda manifest: 5,
    "null": lambda manifest: None,
    "list": lambda manifest: [manifest],
    "text": lambda manifest: "manifest",
    "nothing": lambda manifest: {},
    "no versions": lambda manifest: _set(manifest, "versions", None),
    "no leaves": lambda manifest: _set(manifest, "leaves", None),
    "leaf": lambda manifest: _set(manifest, "leaves", [3]),
    "path": lambda manifest: _leaf(manifest, path=3),
    "shape": lambda manifest: _leaf(manifest, shape=3),
    "sizes": lambda manifest: _leaf(manifest, shape=[None]),
    "dtype": lambda manifest: _leaf(manifest, dtype=None),
    "digest": lambda manifest: _leaf(manifest, sha256=None),
    "key": lambda manifest: _leaf(manifest, dtype="key<fry>", prng_impl="x"),
    "files": lambda manifest: _set(manifest, "files", []),
    "config": lambda manifest: _set(manifest, "config", 3),
    "missing": lambda manifest: {key: manifest[key] for key in manifest if key != "files"},
}


def _write_manifest(checkpoint, text):
    (checkpoint / "manifest.json").write_bytes(text)
    digest = hashlib.sha256(text).hexdigest()
    (checkpoint / "manifest.sha256").write_text(f"{digest}  manifest.json\n")


@pytest.mark.parametrize("case", [*MALFORMED, "bytes", "deep"])
def test_a_manifest_of_any_shape_is_damage(run, case):
    """With a digest that fits, so that its shape alone can tell."""
    manifest = json.loads((run / "2" / "manifest.json").read_text())
    texts = {"bytes": b"\xff\xfe", "deep": b"[" * 100_000}
    text = texts.get(case) or json.dumps(MALFORMED[case](manifest)).encode()
    _write_manifest(run / "2", text)
    with (
        Checkpoints(run, config=CONFIG) as checkpoints,
        pytest.warns(UserWarning, match="manifest.json is no manifest"),
    ):
        assert checkpoints.restore(make_state(0)).step == 1


def damage_file(path, chance):
    """One of six damages to a file, by chance."""
    content = bytearray(path.read_bytes())
    place = chance.randrange(len(content))
    kind = chance.choice(("bit", "byte", "cut", "longer", "gone", "zeros"))
    if kind == "gone":
        path.unlink()
        return
    if kind == "bit":
        content[place] ^= 1 << chance.randrange(8)
    elif kind == "byte":
        content[place] = (content[place] + chance.randrange(1, 256)) % 256
    elif kind == "cut":
        del content[place:]
    elif kind == "longer":
        content += b"\0"
    else:
        content = bytearray(len(content))
    path.write_bytes(content)


def test_damages_by_chance_are_noticed(two_steps, tmp_path):
    chance = random.Random(0)
    for number in range(12):
        run = shutil.copytree(two_steps, tmp_path / str(number))
        files = sorted(path for path in (run / "2").rglob("*") if path.is_file())
        damage_file(chance.choice(files), chance)
        with Checkpoints(run, config=CONFIG) as checkpoints, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            restored = checkpoints.restore(make_state(0))
        assert restored.step == 1
        assert_bitwise(restored.state, make_state(1))
