"""One of several processes of a run, for test_hosts: `python two_hosts.py ADDRESS COUNT INDEX OUT`.

Writes what it has seen to `OUT/<index>.json`, and its final parameters beside it.
"""

import json
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)

from made_checkpoints import make_state as make_saved  # noqa: E402 - after the configuration
from small_runs import STEPS, batch_of, make_batches, make_state, make_step  # noqa: E402

from bnjax.data import DataError  # noqa: E402
from bnjax.training.checkpoints import CheckpointError  # noqa: E402
from bnjax.training.divergence import Diverged, raise_if_diverged, start_watch  # noqa: E402
from bnjax.training.loop import Interrupted, OutOfTime, Progress, RunFunctions, Schedule, fit  # noqa: E402
from bnjax.training.objectives import Metrics  # noqa: E402
from bnjax.training.parallel import (  # noqa: E402
    DataParallel,
    HostCheckpoints,
    HostsError,
    all_hosts_agree,
    all_succeed,
    initialize_hosts,
)


def own(batch, count, index):
    """This process's consecutive examples."""

    def share(leaf):
        size = len(leaf) // count
        return leaf[index * size : (index + 1) * size]

    return jax.tree.map(share, batch)


def train(how, count, index):
    parallel = DataParallel(how)
    step = parallel.compile_train(make_step(parallel.axis_name, dropout=0.5))
    state = parallel.replicate(start_watch(make_state(jax.random.key(3))))
    for i in range(STEPS):
        batch = own(batch_of(make_batches(), i), count, index)
        state, metrics = step(state, parallel.split(batch))
    raise_if_diverged(state)
    state, metrics = parallel.fetch((state, metrics))
    images, labels, masks = batch_of(make_batches(), 0)
    images[-1] = np.nan  # an example of the last process
    bad, _ = step(
        parallel.replicate(state), parallel.split(own((images, labels, masks), count, index))
    )
    try:
        raise_if_diverged(bad)
    except Diverged as error:
        return state, metrics, str(error)
    raise AssertionError("not diverged")


def message(kind, act):
    try:
        act()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}")


def open_data(index):
    if index == 1:
        raise OSError("no data here")
    return index


def checkpoint(out, index):
    """Saved by process 0 alone; restored from its disk by both."""
    saved = make_saved(1)
    saved.params["zero"] = np.float32([-0.0, 0.0])
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), saved)
    with HostCheckpoints(out / "saved", config={"a": 1}) as checkpoints:
        assert checkpoints.restore(target) is None
        checkpoints.save(5, saved if index == 0 else make_saved(2))
        step, state = checkpoints.restore(target)
    state = state._replace(rng=jax.random.key_data(state.rng))
    other = message(CheckpointError, lambda: HostCheckpoints(out / "saved", config={"a": 2}))
    values = [np.asarray(leaf).tobytes().hex() for leaf in jax.tree.leaves(state)]
    return {"step": step, "values": values, "other config": other}


def end(out, index, act, kinds, *, out_of_time=lambda: False):
    """Process 1 alone acts, while it makes the inputs of the fourth step."""

    def inputs(first, steps):
        if (index, first) == (1, 3):
            act()
        return first

    def one(state, first):
        assert first == state["step"]
        return {"step": state["step"] + 1}, Metrics(np.float32(0), np.int32(0), np.int32(1))

    functions = RunFunctions(one, lambda state: None, inputs, lambda state: state)
    progress = Progress({"step": np.int32(0)}, Metrics(np.float32(0), np.int32(0), np.int32(0)))
    schedule = Schedule(20, 1, 20, 20, 20, 0)
    with HostCheckpoints(out, config={}) as checkpoints:
        try:
            fit(
                functions,
                progress,
                schedule,
                first_step=0,
                record=lambda *_: None,
                checkpoints=checkpoints,
                out_of_time=out_of_time,
            )
        except kinds as error:
            restored = checkpoints.restore(progress)
            return {"said": str(error), "saved": int(restored.state.state["step"])}
    raise AssertionError("not ended")


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def damaged():
    raise DataError("record 7: truncated")


def main():
    address, count, index, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    initialize_hosts(address, count, index, timeout_s=60)
    seen = {"devices": [jax.local_device_count(), jax.device_count()], "runs": {}}
    for how in ("jit", "shard_map", "pmap"):
        state, metrics, diverged = train(how, count, index)
        leaves = jax.tree.leaves((state.params, state.batch_stats))
        np.savez(out / f"{how}-{index}.npz", *leaves)
        seen["runs"][how] = {"loss": float(metrics.loss), "diverged": diverged}
    all_hosts_agree({"rate": 0.5}, "config")
    seen["disagree"] = message(
        HostsError, lambda: all_hosts_agree({"rate": index, "arm": "bn"}, "config")
    )
    seen["fails"] = message((HostsError, OSError), lambda: all_succeed(lambda: open_data(index)))
    seen["succeeds"] = all_succeed(lambda: index)
    seen["checkpoint"] = checkpoint(out, index)
    seen["interrupt"] = end(out / "stopped", index, terminate, Interrupted)
    seen["late"] = end(out / "late", index, lambda: None, OutOfTime, out_of_time=lambda: index == 1)
    seen["damaged"] = end(out / "damaged", index, damaged, (DataError, HostsError))
    (out / f"{index}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
