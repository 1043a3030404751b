"""Checkpoints: bitwise return, refusal of what does not fit, survival of damage."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import eight_devices
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from made_checkpoints import CONFIG, make_state, steps_on_disk
from tolerances import assert_bitwise

from bnjax.training.checkpoints import CheckpointError, Checkpoints
from bnjax.training.parallel import HostCheckpoints

LEAVES = {
    "float32": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
    "negative_zero": np.full(4, -0.0, np.float32),
    "nan_payload": np.array([0x7FC00001, 0xFFC12345], np.uint32).view(np.float32),
    "bfloat16": jnp.array([1.5, -2.25], jnp.bfloat16),
    "float16": jnp.array([1.5, -2.25], jnp.float16),
    "float64_numpy": np.array([np.pi]),
    "int64_numpy": np.array([2**62]),
    "int32": jnp.arange(5, dtype=jnp.int32),
    "int8": jnp.array([-128, 127], jnp.int8),
    "bool": np.array([True, False]),
    "complex64": np.array([1 + 2j], np.complex64),
    "scalar": jnp.float32(0.1),
    "scalar_bfloat16": jnp.array(0.1, jnp.bfloat16),
    "float8_e4m3": jnp.array([1.5, -2.25], jnp.float8_e4m3),
    "uint4": jnp.array([1, 15], jnp.uint4),
    "uint2": np.ones((2, 2), jnp.uint2),
    **{
        name: np.array([[0], [-1]]).astype(name)
        for name in ("int1", "uint1", "float6_e2m3fn", "float6_e3m2fn")
        if jax.dtypes.issubdtype(np.dtype(name), np.number)  # JAX 0.7 knows none
    },
    "numpy_scalar": np.uint8(7),
    "no_elements": jnp.zeros((0, 3)),
    "fortran_order": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
    "strided": np.arange(12, dtype=np.int32).reshape(3, 4)[::2, ::-1],
}


@pytest.mark.parametrize("abstract", [False, True], ids=["arrays", "shape_dtype_structs"])
def test_every_dtype_and_layout_returns_bitwise(tmp_path, abstract):
    target = LEAVES
    if abstract:
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), LEAVES)
    with Checkpoints(tmp_path, config=CONFIG) as checkpoints:
        checkpoints.save(3, LEAVES)
        restored = checkpoints.restore(target)
    assert restored.step == 3
    assert all(type(leaf) is np.ndarray for leaf in restored.state.values())
    assert_bitwise(restored.state, LEAVES)


def test_typed_keys_return_as_keys(tmp_path):
    state = {
        "one": jax.random.key(3),
        "many": jax.random.split(jax.random.key(4), (2, 3)),
        "other_impl": jax.random.key(5, impl="rbg"),
        "none": jax.random.split(jax.random.key(6), 2)[:0],
    }
    with Checkpoints(tmp_path, config=CONFIG) as checkpoints:
        checkpoints.save(0, state)
        restored = checkpoints.restore(jax.eval_shape(lambda: state))
    assert_bitwise(restored.state, state)
    for name in ("one", "other_impl"):
        drawn = [jax.random.normal(keys[name], (3,)) for keys in (state, restored.state)]
        np.testing.assert_array_equal(*drawn)


def test_optax_state_returns_as_its_named_tuples(run):
    """Without a target Orbax returns lists for NamedTuples; here the types are the target's."""
    with Checkpoints(run, config=CONFIG) as checkpoints:
        restored = checkpoints.restore(make_state(0))
    assert restored.step == 2
    assert_bitwise(restored.state, make_state(2))
    assert isinstance(restored.state.opt_state[0], optax.EmptyState)
    assert isinstance(restored.state.opt_state[1][0], optax.ScaleByAdamState)


def test_flaxs_train_state_is_saved_before_its_first_step(tmp_path):
    """Its step is a Python integer then, an int32 afterwards: either is the other's target."""
    params = {"w": jnp.ones(3)}
    fresh = TrainState.create(apply_fn=None, params=params, tx=optax.sgd(0.1))
    later = fresh.apply_gradients(grads=params)
    with Checkpoints(tmp_path, config=CONFIG) as checkpoints:
        checkpoints.save(0, fresh)
        assert_bitwise(checkpoints.restore(later).state, fresh.replace(step=np.array(0, np.int32)))
        checkpoints.save(1, later.replace(step=jnp.int32(1)))
        restored = checkpoints.restore(fresh).state
    assert_bitwise(restored, later.replace(step=np.array(1, np.int32)))


def test_leaves_are_matched_by_path_not_by_position(tmp_path):
    """Same paths in another order, as an insertion-ordered node gives them."""

    class Ordered:
        def __init__(self, **fields):
            self.fields = fields

    jax.tree_util.register_pytree_with_keys(
        Ordered,
        lambda o: (
            [(jax.tree_util.DictKey(key), value) for key, value in o.fields.items()],
            tuple(o.fields),
        ),
        lambda names, values: Ordered(**dict(zip(names, values, strict=True))),
    )
    with Checkpoints(tmp_path, config=CONFIG) as checkpoints:
        checkpoints.save(0, Ordered(a=np.zeros(2), e=np.zeros((0, 2)), b=np.ones(2)))
        state = checkpoints.restore(Ordered(b=np.ones(2), a=np.ones(2), e=np.ones((0, 2)))).state
    assert list(state.fields) == ["b", "a", "e"]
    np.testing.assert_array_equal(state.fields["a"], np.zeros(2))
    np.testing.assert_array_equal(state.fields["b"], np.ones(2))


def test_sharded_arrays_restore_to_any_topology(tmp_path):
    values = np.arange(48, dtype=np.float32).reshape(8, 6)
    eight = eight_devices.mesh(8)
    four_by_two = eight_devices.mesh(4, 2)
    state = {
        "rows": jax.device_put(values, NamedSharding(eight, P("data"))),
        "blocks": jax.device_put(values, NamedSharding(four_by_two, P("data", "model"))),
        "replicated": jax.device_put(values, NamedSharding(eight, P())),
    }
    with Checkpoints(tmp_path, config=CONFIG) as checkpoints:
        checkpoints.save(0, state)
        restored = checkpoints.restore(state).state
    two = jax.sharding.Mesh(jax.devices()[:2], ("data",))
    placed = jax.device_put(restored, NamedSharding(two, P("data")))
    for leaf in (*restored.values(), *placed.values()):
        np.testing.assert_array_equal(np.asarray(leaf), values)


def test_save_is_not_altered_by_donation_or_mutation(tmp_path):
    """Red if save hands views of the leaves' memory to the writing thread."""
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    with Checkpoints(tmp_path, config=CONFIG) as checkpoints:
        donated, mutated = jnp.zeros(2_000_000), np.zeros(2_000_000)
        jax.block_until_ready(donated)
        checkpoints.save(0, {"donated": donated, "mutated": mutated})
        jax.block_until_ready(step(step(donated)))
        mutated += 1
        assert donated.is_deleted()
        state = checkpoints.restore({"donated": jnp.ones(2_000_000), "mutated": mutated}).state
    assert not state["donated"].any()
    assert not state["mutated"].any()


def test_an_empty_directory_has_nothing(tmp_path):
    with Checkpoints(tmp_path / "new" / "run", config=CONFIG) as checkpoints:
        assert checkpoints.latest() is None
        assert checkpoints.restore(make_state(0)) is None
        checkpoints.save(5, make_state(5))
        assert checkpoints.latest() == 5


@pytest.mark.parametrize("extra", [{}, {"epoch": 3, "metrics": {"loss": float("nan")}}])
def test_a_checkpoint_of_an_earlier_version_is_restored(run, extra):
    """Its manifest has `extra`, which could be given then."""
    rewrite_manifest(run / "2", lambda manifest: manifest.update(extra=extra))
    with Checkpoints(run, config=CONFIG) as checkpoints:
        restored = checkpoints.restore(make_state(0))
        checkpoints.save(2, make_state(2))  # the same values: nothing is written
    assert restored.step == 2
    assert_bitwise(restored.state, make_state(2))


def test_an_earlier_version_can_restore_what_is_saved(run):
    """It refuses a manifest without `extra`."""
    assert json.loads((run / "2" / "manifest.json").read_text())["extra"] == {}


def test_manifest_names_what_is_stored(run):
    manifest = json.loads((run / "2" / "manifest.json").read_text())
    assert manifest["step"] == 2
    assert manifest["config"] == CONFIG
    assert set(manifest["versions"]) == {
        *("python", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "bnjax")
    }
    assert manifest["versions"]["jax"] == jax.__version__
    leaves = {leaf["path"]: leaf for leaf in manifest["leaves"]}
    assert leaves[".params['scale']"]["dtype"] == "bfloat16"
    assert leaves[".params['scale']"]["shape"] == [7]
    assert leaves[".rng"]["prng_impl"] == "threefry2x32"


@pytest.mark.parametrize(
    ("kind", "keep"),
    [(Checkpoints, 1), (Checkpoints, 2), (Checkpoints, 3), (HostCheckpoints, 1)],
)
def test_keep_keeps_that_many(tmp_path, kind, keep):
    with kind(tmp_path, config=CONFIG, keep=keep) as checkpoints:
        for step in (2, 9, 10, 11):
            checkpoints.save(step, make_state(step))
    assert steps_on_disk(tmp_path) == sorted(["2", "9", "10", "11"][-keep:])


def test_same_step_again_is_accepted_only_with_the_same_content(run):
    with Checkpoints(run, config=CONFIG) as checkpoints:
        before = os.stat(run / "2").st_ino
        checkpoints.save(2, make_state(2))
        checkpoints.latest()
        assert os.stat(run / "2").st_ino == before
        for step, state in [(2, make_state(3)), (1, make_state(1)), (0, make_state(0))]:
            with pytest.raises(CheckpointError, match=rf"step {step} cannot.*holds step 2"):
                checkpoints.save(step, state)
        checkpoints.save(3, make_state(3))
        assert checkpoints.latest() == 3
        checkpoints.save(4, {"a": np.zeros(4)})
        for other in ({"b": np.zeros(4)}, {"a": np.zeros((2, 2))}, {"a": np.zeros(4, np.int64)}):
            with pytest.raises(CheckpointError, match="with other content"):
                checkpoints.save(4, other)


def test_same_step_again_is_refused_if_damaged(run):
    damage_arrays(run / "2")
    with (
        Checkpoints(run, config=CONFIG) as checkpoints,
        pytest.raises(CheckpointError, match="exists and is damaged"),
    ):
        checkpoints.save(2, make_state(2))


# Damage


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def damage_arrays(checkpoint):
    flip_a_bit(
        max((checkpoint / "arrays").rglob("*"), key=lambda p: p.is_file() * p.stat().st_size)
    )


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, os.remove])
def test_damage_to_any_file_falls_back_with_a_warning(two_steps, tmp_path, damage, capfd):
    files = [p.relative_to(two_steps) for p in (two_steps / "2").rglob("*") if p.is_file()]
    assert len(files) > 5
    for number, file in enumerate(files):
        run = shutil.copytree(two_steps, tmp_path / str(number))
        damage(run / file)
        before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
        with Checkpoints(run, config=CONFIG) as checkpoints:
            with pytest.warns(UserWarning, match="step 1 is restored instead") as caught:
                restored = checkpoints.restore(make_state(0))
            assert checkpoints.latest() == 1
        assert len(caught) == 1
        assert f"{run / '2'}: " in str(caught[0].message)
        assert file.name.split(".sha256")[0] in str(caught[0].message)
        assert restored.step == 1
        assert_bitwise(restored.state, make_state(1))
        assert {p: p.read_bytes() for p in before} == before
    assert capfd.readouterr() == ("", "")


def rewrite_manifest(checkpoint, change):
    """Edits a manifest and writes its digest anew, as a careless or hostile editor could."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    change(manifest)
    text = json.dumps(manifest).encode()
    (checkpoint / "manifest.json").write_bytes(text)
    digest = hashlib.sha256(text).hexdigest()
    (checkpoint / "manifest.sha256").write_text(f"{digest}  manifest.json\n")


def test_values_are_compared_even_where_the_files_are_as_written(run):
    """A leaf's own digest: red if restore trusts the files' digests and Orbax."""

    def change(manifest):
        manifest["leaves"][1]["sha256"] = "0" * 64

    rewrite_manifest(run / "2", change)
    with (
        Checkpoints(run, config=CONFIG) as checkpoints,
        pytest.warns(UserWarning, match=r"SHA-256: \.params\['dense'\]\['kernel'\]\n"),
    ):
        assert checkpoints.restore(make_state(0)).step == 1


def test_a_copied_folder_does_not_pass_as_another_step(run):
    shutil.copytree(run / "1", run / "7")
    with (
        Checkpoints(run, config=CONFIG) as checkpoints,
        pytest.warns(UserWarning, match="manifest is that of step 1"),
    ):
        assert checkpoints.restore(make_state(0)).step == 2


def test_unknown_schema_version_is_refused(run):
    rewrite_manifest(run / "2", lambda manifest: manifest.update(schema_version=99))
    with pytest.raises(CheckpointError, match="schema version 99, this bnjax reads 1"):
        Checkpoints(run, config=CONFIG)


def test_all_damaged_is_an_error_that_lists_each(run):
    damage_arrays(run / "1")
    (run / "2" / "manifest.json").unlink()
    with (
        Checkpoints(run, config=CONFIG) as checkpoints,
        pytest.raises(CheckpointError) as caught,
    ):
        checkpoints.restore(make_state(0))
    for fragment in (f"{run / '1'}: files differ", f"{run / '2'}: its manifest", "good copy"):
        assert fragment in str(caught.value)
    assert steps_on_disk(run) == ["1", "2"]


def test_training_on_after_a_fall_back_keeps_the_damaged_checkpoint_aside(run):
    damage_arrays(run / "2")
    for expected in ("2.damaged", "2.damaged-2"):
        with Checkpoints(run, config=CONFIG) as checkpoints:
            with pytest.warns(UserWarning, match="step 1 is restored"):
                checkpoints.restore(make_state(0))
            checkpoints.save(2, make_state(2))
            assert checkpoints.restore(make_state(0)).step == 2
        assert (run / expected).is_dir()
        damage_arrays(run / "2")
    assert steps_on_disk(run) == ["1", "2", "2.damaged", "2.damaged-2"]


def test_a_repaired_checkpoint_is_not_set_aside(run):
    manifest = (run / "2" / "manifest.json").read_bytes()
    truncate(run / "2" / "manifest.json")
    with Checkpoints(run, config=CONFIG) as checkpoints:
        with pytest.warns(UserWarning, match="step 1 is restored"):
            checkpoints.restore(make_state(0))
        (run / "2" / "manifest.json").write_bytes(manifest)
        assert checkpoints.restore(make_state(0)).step == 2
        checkpoints.save(3, make_state(3))
    assert steps_on_disk(run) == ["2", "3"]


# What does not fit


def test_every_mismatch_with_the_target_is_named(run):
    """Orbax casts a changed dtype silently; and a mismatch is no damage to fall back from."""
    good = make_state(0)
    target = good._replace(
        step=jnp.float32(0),
        params={"dense": {"kernel": jnp.zeros((7, 5))}, "bias": jnp.zeros(7)},
        rng=jax.random.key(0, impl="rbg"),
    )
    with Checkpoints(run, config=CONFIG) as checkpoints:
        with pytest.raises(CheckpointError) as caught:
            checkpoints.restore(target)
        assert checkpoints.restore(good).step == 2
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{run / '2'} does not fit the target:"
    assert sorted(line.strip() for line in lines[1:-1]) == [
        ".params['bias']: stored nothing, given 'float32[7]'",
        ".params['dense']['kernel']: stored 'float32[5, 7]', given 'float32[7, 5]'",
        ".params['scale']: stored 'bfloat16[7]', given nothing",
        ".rng: stored 'key<fry>[]', given 'key<rbg>[]'",
        ".step: stored 'int32[]', given 'float32[]'",
    ]


def test_another_config_is_refused_with_the_differences(run):
    config = {"experiment": "test", "optimizer": {"lr": 0.2, "decay": None}, "arm": "bn"}
    with pytest.raises(CheckpointError) as caught:
        Checkpoints(run, config=config)
    assert [line.strip() for line in str(caught.value).splitlines()[1:-1]] == [
        "optimizer.lr: stored 0.1, given 0.2",
        "seeds: stored [0, 1], given nothing",
        "arm: stored nothing, given 'bn'",
    ]
    assert "use another directory" in str(caught.value)
    with Checkpoints(run, config={**CONFIG, "seeds": (0, 1)}):  # refusal has freed the directory
        pass


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"config": {"path": object()}}, TypeError, "config must be a mapping of JSON values"),
        ({"config": CONFIG, "keep": 0}, ValueError, "keep must be >= 1, got 0"),
        ({"config": CONFIG, "keep": 1.5}, ValueError, "keep must be an integer, got 1.5"),
        ({"config": CONFIG, "directory": "gs://bucket/run"}, ValueError, "must be a local folder"),
        ({"config": CONFIG, "directory": Path("gs://b")}, ValueError, "got 'gs:/b'; mount"),
    ],
)
def test_bad_arguments_are_named(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        Checkpoints(**{"directory": tmp_path, **arguments})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("step", "state", "error", "message"),
    [
        (-1, {"a": np.ones(1)}, ValueError, "step must be >= 0, got -1"),
        (0.5, {"a": np.ones(1)}, ValueError, "step must be an integer"),
        (0, {"a": {"b": 0.5}}, TypeError, r"state\['a'\]\['b'\] must be an array, got 0.5"),
        (0, {"a": 2**31}, TypeError, r"state\['a'\] must be an array, got 2147483648"),
        (0, {"a": np.array(["x"])}, TypeError, r"state\['a'\] must have a native numeric"),
        (0, {"a": np.ones(1, ">f4")}, TypeError, "must have a native numeric"),
        (0, {"a": np.ones(1, "longdouble")}, TypeError, "a native numeric .*longdouble"),
        (0, {"a": jax.ShapeDtypeStruct((1,), np.int32)}, TypeError, "must be an array"),
        (0, {"a": np.zeros(0)}, ValueError, "state has no values"),
    ],
)
def test_bad_saves_are_named(tmp_path, step, state, error, message):
    with Checkpoints(tmp_path, config=CONFIG) as checkpoints:
        with pytest.raises(error, match=message):
            checkpoints.save(step, state)
        assert checkpoints.latest() is None
