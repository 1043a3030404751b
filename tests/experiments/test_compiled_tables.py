"""Tables of compiled steps, from rows made by hand."""

from experiments.compiled.tables import dry_run_table, memory_table, normalization_table
from experiments.imagenet_inception.arms import ARMS
from experiments.rethinking_inception.arms import ARMS as RETHINKING


def arm_row(topology, arm, gigabytes, milliseconds, megabytes, collectives, kernels):
    return {
        "program": "bn_inception",
        "arm": arm,
        "platform": "cuda" if topology.startswith("h") else "tpu",
        "topology": topology,
        "bytes_accessed": gigabytes * 1e9,
        "seconds": None if milliseconds is None else milliseconds / 1e3,
        "peak_bytes": megabytes * 10**6,
        "collectives": {
            kind: {"count": count, "bytes": 1_000 * count} for kind, count in collectives.items()
        },
        "kernels": kernels,
    }


NORMALIZED = {
    "config": {
        "programs": ["bn_inception"],
        "topologies": ["v5e:1x1", "h100:8", "v4:2x2x1"],
        "batch_size": 128,
        "image_size": 224,
        "width": 1.0,
        "layers": 6,
    },
    "environment": {"processor": "P", "python": "3", "versions": {"jax": "1"}},
    "compilers": {"libtpu": "2"},
    "missing": {"v4:2x2x1": "v4:2x2x1: no libtpu."},
    "rows": [
        arm_row("v5e:1x1", "bias", 4.0, 9.0, 600, {}, 50),
        arm_row("v5e:1x1", "flax", 5.0, 10.0, 700, {}, 100),
        arm_row("v5e:1x1", "bnjax", 4.5, 10.5, 700.5, {}, 75),
        arm_row("h100:8", "bias", 6.0, None, 1_200, {"all-reduce": 1}, 50),
        arm_row("h100:8", "flax", 9.0, None, 1_300, {"all-reduce": 7, "all-gather": 2}, 100),
        arm_row("h100:8", "bnjax", 7.5, None, 1_320, {"all-reduce": 5}, 90),
    ],
}


def test_table_compares_what_normalization_adds():
    lines = normalization_table(NORMALIZED).splitlines()
    assert lines[4:14] == [
        "| v5e:1x1 | bias alone | 4.000 | 9.00 | 600.0 | 0 (0) | 50 |",
        "| v5e:1x1 | Flax | 5.000 | 10.00 | 700.0 | 0 (0) | 100 |",
        "| v5e:1x1 | bnjax | 4.500 | 10.50 | 700.5 | 0 (0) | 75 |",
        "| v5e:1x1 | bnjax / Flax | 0.900 | 1.050 | 1.001 |  | 0.750 |",
        "| v5e:1x1 | what it adds, bnjax / Flax | 0.50 | 1.50 |  |  | 0.50 |",
        "| h100:8 | bias alone | 6.000 |  | 1,200.0 | 1 (1) | 50 |",
        "| h100:8 | Flax | 9.000 |  | 1,300.0 | 9 (9) | 100 |",
        "| h100:8 | bnjax | 7.500 |  | 1,320.0 | 5 (5) | 90 |",
        "| h100:8 | bnjax / Flax | 0.833 |  | 1.015 | 0.556 | 0.900 |",
        "| h100:8 | what it adds, bnjax / Flax | 0.50 |  |  | 0.50 | 0.80 |",
    ]


def test_targets_name_what_is_above_flax():
    """Within a thousandth (700.5 MB against 700) counts as equal; 1.05 times the time does not."""
    notes = [line for line in normalization_table(NORMALIZED).splitlines() if line.startswith("- ")]
    where = "BN-Inception, a training step"
    assert notes[:4] == [
        "- Not compiled: v4:2x2x1: no libtpu.",
        f"- Target, {where}, v5e:1x1: not above Flax in bytes, time, peak memory, collectives, "
        "bytes of collectives: missed (time).",
        f"- Target, {where}, h100:8: adds at most 0.6 of the bytes that Flax adds: reached (0.50).",
        f"- Target, {where}, h100:8: not above Flax in peak memory: missed (peak memory).",
    ]
    assert "libtpu 2" in notes[-1]


def test_a_topology_with_a_refused_arm_is_not_compared():
    refused = {**NORMALIZED["rows"][1], "refused": "no room"}
    text = normalization_table(
        {**NORMALIZED, "rows": [NORMALIZED["rows"][0], refused, *NORMALIZED["rows"][2:]]}
    )
    assert "- Not compared, BN-Inception, a training step, v5e:1x1, Flax: no room" in text
    assert "| v5e:1x1 |" not in text
    assert "| h100:8 | bnjax / Flax |" in text


def row(topology, devices, **changes):
    """A chip that takes 20 ms a step, 16 of them for memory and 4 for its links."""
    return {
        "arm": "bn_x5",
        "topology": topology,
        "platform": "tpu",
        "devices": devices,
        "batch_size": 32 * devices,
        "memory_bytes": 17 * 10**9,
        "refused": None,
        "peak_bytes": 2_345_000_000,
        "fits": True,
        "flops": 0.4e12,
        "bytes_accessed": 13.1e9,
        "seconds": 0.018,
        "collectives": {
            "all-reduce": {"count": 2, "bytes": 45_000_000},
            "all-gather": {"count": 1, "bytes": 1_000_000},
        },
        "least_time": {"products": 0.002, "memory": 0.016, "exchange": 0.004, "seconds": 0.02},
        **changes,
    }


DRY = {
    "config": {
        "image_size": 224,
        "width": 1.0,
        "compute": "bfloat16",
        "normalize_together": 32,
        "remat": False,
        "micro_batches": 1,
    },
    "parallel": "jit",
    "environment": {"python": "3.11.7", "versions": {"jax": "1"}},
    "compilers": {"libtpu": "2"},
    "rows": [
        row("v5e:2x4", 8),
        row("v5e:1x1", 1, refused="no room", peak_bytes=None, least_time=None),
        row("h100:8", 8, platform="cuda", fits=False, peak_bytes=90e9, seconds=None),
        row("cpu:2", 2, platform="cpu", memory_bytes=8 * 10**9, least_time=None),
    ],
}


def test_the_table_shows_what_a_step_takes():
    lines = dry_run_table(DRY, ARMS).splitlines()
    assert lines[0] == "**BN-x5**"
    assert lines[4:8] == [
        "| v5e:2x4 | 256 | 2.35, fits 17.00 GB | 0.400 | 13.10 | 3 (46.0) |",
        "| v5e:1x1 | 32 | does not fit 17.00 GB |  |  |  |",
        "| h100:8 | 256 | 90.00, does not fit 17.00 GB | 0.400 | 13.10 | 3 (46.0) |",
        "| cpu:2 | 64 | 2.35, fits 8.00 GB | 0.400 | 13.10 | 3 (46.0) |",
    ]


def test_a_small_network_has_small_units():
    small = row("cpu:1", 1, peak_bytes=41_230, flops=3.4e6, bytes_accessed=51.0e3, collectives={})
    lines = dry_run_table({**DRY, "rows": [small | {"least_time": None}]}, ARMS).splitlines()
    assert lines[2].split(" | ")[2:4] == ["peak memory of a chip, kB", "MFLOP on a chip"]
    assert lines[4] == "| cpu:1 | 32 | 41.23, fits 17.00 GB | 3.400 | 51.00 | 0 (0.0) |"


def test_the_table_shows_the_time_to_the_papers_accuracy():
    """2.1 million steps of 20 ms; of 256 images, an eighth of them see as many images."""
    lines = dry_run_table(DRY, ARMS).splitlines()
    hours, images = 2.1e6 * 0.02 / 3600, 2.1e6 / 8 * 0.02 / 3600
    assert f"{hours:.2f} {images:.2f}" == "11.67 1.46"
    assert lines[11:13] == [
        "| v5e:2x4 | 2.00 | 16.00 | 4.00 | 20.00 | 18.00 | 12,800 | 11.67 | 1.46 |",
        "| h100:8 | 2.00 | 16.00 | 4.00 | 20.00 |  | 12,800 | 11.67 | 1.46 |",
    ]
    assert lines[13] == ""  # a CPU has no stated rates, and what was refused has no time
    notes = [line for line in lines if line.startswith("- ")]
    assert notes[0] == (
        "- One training step at 224 pixels, width 1, bfloat16 activations, normalization over "
        "groups of 32, `jit` over all chips."
    )
    assert "- BN-x5, v5e:1x1: no room" in notes
    assert notes[-1] == "- Python 3.11.7, jax 1, libtpu 2."


def test_an_arm_without_such_an_accuracy_has_no_hours():
    sigmoid = {**DRY, "rows": [row("v5e:2x4", 8, arm="bn_x5_sigmoid")]}
    assert "| 12,800 |  |  |" in dry_run_table(sigmoid, ARMS)


def test_what_is_refused_has_the_name_of_its_own_experiment_s_arm():
    """Red where it is looked for among the arms of imagenet_inception."""
    refused = row("v5e:1x1", 1, arm="inception_v3", refused="no room", least_time=None)
    text = dry_run_table({**DRY, "rows": [refused]}, RETHINKING)
    assert "- + BN-auxiliary = Inception-v3, v5e:1x1: no room" in text


def peak(network, batch_size, **changes):
    return {
        "network": network,
        "topology": "v5e:1x1",
        "batch_size": batch_size,
        "memory_bytes": 17 * 10**9,
        "refused": None,
        "peak_bytes": batch_size * 10**9,
        "fits": True,
        **changes,
    }


def test_the_table_of_memory_says_what_does_not_fit():
    result = {
        "config": {
            "networks": ["bn_inception", "inception_v3"],
            "batch_sizes": [8, 32],
            "topologies": ["v5e:1x1", "h100:1"],
            "remat": True,
        },
        "environment": {"processor": "P", "python": "3", "versions": {"jax": "1"}},
        "compilers": {"libtpu": "2"},
        "missing": {"h100:1": "h100:1: no plugin"},
        "rows": [
            peak("bn_inception", 8),
            peak("bn_inception", 32, fits=False),
            peak("inception_v3", 8),
            peak("inception_v3", 32, refused="no room", peak_bytes=None, fits=None),
        ],
    }
    lines = memory_table(result).splitlines()
    assert lines[:6] == [
        "| peak memory, GB | compiled for | 8 a chip | 32 a chip |",
        "| --- | --- | ---: | ---: |",
        "| BN-Inception, 224x224 | v5e:1x1 | 8.00 | 32.00 (does not fit) |",
        "| Inception-v3, 299x299 | v5e:1x1 | 8.00 | does not fit |",
        "",
        "- Not compiled: h100:1: no plugin",
    ]
    assert lines[6] == "- A chip of v5e:1x1 has 17.00 GB."
    assert "Each Inception module is computed again (remat)." in lines[7]
    assert lines[8] == "- Compiled on P; python 3, jax 1, libtpu 2."
