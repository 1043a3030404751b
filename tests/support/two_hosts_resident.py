"""One of several processes of a run with the data on the devices, for test_resident_hosts.

`python two_hosts_resident.py ADDRESS COUNT INDEX OUT` writes what it logged and reached to
`OUT/INDEX.json`, and its weights beside it.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)

from runs import Entries, inception_task  # noqa: E402 - after the configuration
from small_networks import CONFIG, VIEWS, small_networks  # noqa: E402

from bnjax.data import open_data  # noqa: E402
from experiments.harness.images import resident  # noqa: E402
from experiments.harness.images.compute import ImageCompute  # noqa: E402
from experiments.harness.images.train import train  # noqa: E402


def main():
    address, count, index, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    compute = ImageCompute(coordinator=address, process_count=count, process_index=index)
    compute.start()
    resident.loops = lambda parallel: True  # as on accelerators
    task = inception_task(replace(CONFIG, pipeline="resident", **VIEWS), "bn_baseline")
    log = Entries()
    with small_networks():
        (reached,) = train(task, open_data("mnist5k"), compute, log)
    np.savez(out / f"{index}.npz", *jax.tree.leaves(reached.weights))
    said = {"devices": jax.device_count(), "entries": log.entries, "final": reached.final}
    (out / f"{index}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
