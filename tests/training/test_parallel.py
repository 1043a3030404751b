"""Members over eight devices equal a plain loop over them, whoever runs beside them."""

from functools import lru_cache

import host_memory
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bnjax.training.parallel import Members, default_together, member, one_cpu_device_per_core

COUNTS = (1, 3, 8, 10)  # fewer than devices, as many, and more, evenly and not
ROWS, UNITS, STEPS = 12, 6, 5


def train(state, rates, data):
    """Some steps of gradient descent, one for each rate; members differ in weights and rates."""

    def loss(w):
        return (jnp.tanh(data @ w) ** 2).mean()

    def body(w, rate):
        value, gradient = jax.value_and_grad(loss)(w)
        return w - rate * gradient, value

    w, losses = lax.scan(body, state["w"], rates)
    return {"w": w, "steps": state["steps"] + len(rates)}, losses


def make(count):
    """The first members' arguments are the same whatever the count."""
    states, rates = [], []
    for i in range(count):
        rng = np.random.default_rng(i)
        states.append(rng.normal(size=(UNITS, UNITS)).astype(np.float32))
        rates.append(rng.uniform(0.1, 1, STEPS).astype(np.float32))
    data = np.random.default_rng(99).normal(size=(ROWS, UNITS)).astype(np.float32)
    return {"w": np.stack(states), "steps": np.arange(count, dtype=np.int32)}, np.stack(rates), data


@lru_cache
def run(count, together):
    """Two dispatches, the second from what the first left on the devices."""
    members = Members(count, together=together)
    state, rates, data = make(count)
    compiled = members.compile(train, per_member=2, donate=True)
    state, rates, data = members.place(state), members.place(rates), members.share(data)
    state, first = compiled(state, rates, data)
    state, second = compiled(state, rates, data)
    return members.fetch((state, first, second))


@lru_cache
def plain(count):
    """The same by a Python loop over members, on one device."""
    states, rates, data = make(count)
    single = jax.jit(train)
    results = []
    for i in range(count):
        state, first = single(member(states, i), rates[i], data)
        state, second = single(state, rates[i], data)
        results.append((state, first, second))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *results)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("together", ["map", "vmap"])
def test_members_equal_a_plain_loop(count, together):
    """Red if a member gets another's arguments, or the filling is returned."""
    for leaf, wanted in zip(
        jax.tree.leaves(run(count, together)), jax.tree.leaves(plain(count)), strict=True
    ):
        assert leaf.shape == wanted.shape
        assert leaf.dtype == wanted.dtype
        np.testing.assert_allclose(leaf, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("count", "others"), [(1, 3), (1, 8), (10, 17)], ids=str)
def test_mapped_members_do_not_depend_bitwise_on_who_runs_beside_them(count, others):
    """One member a device, or several; XLA may round a loop over one otherwise."""
    for leaf, wanted in zip(
        jax.tree.leaves(run(others, "map")), jax.tree.leaves(run(count, "map")), strict=True
    ):
        np.testing.assert_array_equal(leaf[:count], wanted)


@pytest.mark.parametrize(
    ("count", "devices", "each"), [(1, 1, 1), (3, 3, 1), (8, 8, 1), (10, 8, 2)]
)
def test_members_are_split_over_the_devices(count, devices, each):
    members = Members(count, together="map")
    assert members.devices == devices
    placed = members.place(np.arange(count))
    shards = sorted(placed.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    assert len({shard.device for shard in shards}) == devices
    assert {shard.data.shape for shard in shards} == {(each,)}
    filled = np.concatenate([shard.data for shard in shards])
    np.testing.assert_array_equal(filled, np.minimum(np.arange(devices * each), count - 1))
    np.testing.assert_array_equal(members.fetch(placed), np.arange(count))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_members_may_carry_keys(impl):
    """As the states of runs with dropout do."""
    keys = jax.random.split(jax.random.key(1, impl=impl), 10)
    members = Members(10, together="map")
    fetched = members.fetch(members.place({"key": keys}))["key"]
    assert fetched.dtype == keys.dtype
    np.testing.assert_array_equal(jax.random.key_data(fetched), jax.random.key_data(keys))
    draw = members.compile(jax.random.normal, per_member=1)
    drawn = members.fetch(draw(members.place(keys)))
    np.testing.assert_array_equal(drawn, jax.lax.map(jax.random.normal, keys))


@pytest.mark.parametrize(("together", "loops"), [("map", True), ("vmap", False)])
def test_a_device_maps_or_vmaps_its_members(together, loops):
    members = Members(10, together=together)
    double = members.compile(lambda x: 2 * x, per_member=1)
    program = str(jax.make_jaxpr(double)(members.place(np.arange(10.0, dtype=np.float32))))
    assert ("scan[" in program) == loops


def test_shared_data_lies_whole_on_each_device():
    shared = Members(3, together="map").share({"images": np.arange(5)})["images"]
    assert len(shared.addressable_shards) == 3
    for shard in shared.addressable_shards:
        np.testing.assert_array_equal(shard.data, np.arange(5))


def test_shared_data_may_be_changed_once_it_is_put():
    """Seen red: devices read the host's memory."""
    host = host_memory.aligned((64, 32))
    shared = jax.block_until_ready(Members(1, together="map").share(host))
    host[:] = 1
    assert not np.any(shared)


@pytest.mark.parametrize("donate", [False, True])
def test_donation_gives_up_the_first_argument_alone(donate):
    members = Members(3, together="map")
    state, rates, data = make(3)
    state, rates, data = members.place(state), members.place(rates), members.share(data)
    members.compile(train, per_member=2, donate=donate)(state, rates, data)
    assert [leaf.is_deleted() for leaf in state.values()] == [donate, donate]
    assert not rates.is_deleted()
    assert not data.is_deleted()


def test_member_is_one_share_of_a_stacked_tree():
    stacked = {"a": np.arange(6).reshape(3, 2), "b": (np.arange(3),)}
    share = member(stacked, 1)
    np.testing.assert_array_equal(share["a"], [2, 3])
    assert share["b"] == (1,)


def test_cpus_map():
    assert default_together() == "map"


@pytest.mark.parametrize(
    ("count", "together", "message"),
    [
        (0, "map", "count must be >= 1, got 0"),
        (-2, "map", "count must be >= 1, got -2"),
        (3, "scan", "together must be one of 'map', 'vmap', got 'scan'"),
    ],
)
def test_bad_arguments(count, together, message):
    with pytest.raises(ValueError, match=message):
        Members(count, together=together)


def test_devices_cannot_change_once_jax_has_started():
    jax.devices()
    with pytest.raises(RuntimeError, match="before"):
        one_cpu_device_per_core()
