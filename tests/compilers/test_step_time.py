"""The time at stated rates, against a computation by hand."""

import pytest

from bnjax.compilers.cost import ProgramCost
from bnjax.compilers.hlo_counts import Collective
from bnjax.compilers.step_time import StepTime, exchange_seconds, step_time
from bnjax.compilers.topologies import CHIPS

CHIP = {chip.name: chip for chip in CHIPS}


def cost_of(flops, accessed, *collectives, topology="v5e:2x4"):
    return ProgramCost(
        topology=topology,
        device_kind="TPU v5 lite",
        devices=8,
        argument_bytes=0,
        output_bytes=0,
        alias_bytes=0,
        temporary_bytes=0,
        peak_bytes=0,
        fits=True,
        flops=flops,
        bytes_accessed=accessed,
        kernels=1,
        seconds=None,
        collectives=collectives,
        compile_seconds=0.0,
    )


def test_the_slower_of_products_and_memory_counts_and_the_exchange_comes_on_top():
    """Red where all three overlap, or all three add up."""
    sums = Collective("all-reduce", 3, 8 * 10**9)
    time = step_time(cost_of(197e12, 819e9 / 4, sums), CHIP["v5e"])
    assert time == StepTime(1.0, 0.25, pytest.approx(2 * 7 / 8 * 8e9 / 100e9))
    assert time.seconds == pytest.approx(1.14)
    assert step_time(cost_of(0.0, 819e9), CHIP["v5e"]).seconds == 1.0


def test_a_cpu_has_no_stated_rates():
    assert step_time(cost_of(1.0, 1.0), CHIP["cpu"]) is None
    with pytest.raises(ValueError, match="chip: cpu has no stated rate of links"):
        exchange_seconds("all-reduce", 1, "cpu:8", CHIP["cpu"])


@pytest.mark.parametrize(
    ("topology", "links"),  # that one chip uses, of 50 GB/s each way
    [
        ("v5e:2x2", 2),
        ("v5e:2x4", 2),
        ("v5e:8x16", 3),
        ("v5e:16x16", 4),
        ("v6e:4x4", 2 * 2),  # twice the rate
        ("v4:2x2x1", 2),
        ("v4:2x2x4", 3),
        ("v4:4x4x8", 6),
        ("v5p:8x8x8", 6 * 2),
    ],
)
def test_a_slice_uses_the_links_that_it_has(topology, links):
    chip = CHIP[topology.partition(":")[0]]
    count = 1
    for edge in topology.partition(":")[2].split("x"):
        count *= int(edge)
    expected = 2 * (count - 1) / count * 1e9 / (links * 50e9)
    assert exchange_seconds("all-reduce", 10**9, topology, chip) == pytest.approx(expected)


def test_a_pod_of_v5e_reaches_the_all_reduce_that_its_page_states():
    """51.2 TB/s over 256 chips: 200 GB/s of each, both directions of all four links."""
    bytes_sent = 2 * 255 / 256 * 1e9
    seconds = exchange_seconds("all-reduce", 10**9, "v5e:16x16", CHIP["v5e"])
    assert 256 * bytes_sent / seconds == pytest.approx(51.2e12)


@pytest.mark.parametrize(
    ("kind", "topology", "seconds"),
    [
        ("all-reduce", "h100:1", 0.0),
        ("all-gather", "v5e:1x1", 0.0),
        ("all-reduce", "h100:2", 1 / 450),
        ("all-reduce", "h100:8", 2 * 7 / 8 / 450),
        ("all-gather", "h100:8", 7 / 8 / 450),
        ("reduce-scatter", "h100:16", 7 / 8 / 450 + 1 / 2 / 8 / 50),
        ("all-reduce", "h100:256", 2 * (7 / 8 / 450 + 31 / 32 / 8 / 50)),
    ],
)
def test_gpus_exchange_within_the_host_first(kind, topology, seconds):
    """A gigabyte over links of 450 GB/s, and cards of 50 GB/s between hosts."""
    assert exchange_seconds(kind, 10**9, topology, CHIP["h100"]) == pytest.approx(seconds)
