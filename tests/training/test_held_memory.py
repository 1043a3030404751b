"""What a process holds, against what is allocated here."""

import gc
import sys

import eight_devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnjax.training.memory import held

MEGABYTE = 1 << 20

pytestmark = pytest.mark.slow  # much is collected before each


@pytest.fixture(autouse=True)
def _what_came_before_stays():
    """Garbage of other tests goes before this one, not in its midst."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_arrays_count_until_they_are_deleted():
    before = held().arrays
    array = jax.device_put(np.zeros(MEGABYTE, np.float32))
    assert held().arrays - before == 4 * MEGABYTE
    array.delete()
    assert held().arrays == before


def test_every_copy_on_a_device_counts():
    everywhere = jax.NamedSharding(eight_devices.mesh(8), jax.P())
    before = held().arrays
    array = jax.device_put(jnp.zeros(MEGABYTE, jnp.uint8), everywhere)
    assert held().arrays - before == 8 * MEGABYTE
    assert held().arrays - before == 8 * MEGABYTE  # the shards are arrays themselves by now
    del array


@pytest.mark.skipif(sys.platform != "linux", reason="no other system says it")
def test_the_host_holds_what_is_touched():
    before = held().host
    array = np.ones(64 * MEGABYTE, np.uint8)
    assert held().host - before > 60 * MEGABYTE
    assert array.any()
