"""Two processes of four devices are one run of eight; and what they say if they do not fit."""

import os
import re
import socket
import threading

import jax
import numpy as np
import pytest
from host_processes import free_port, run_two_hosts
from made_checkpoints import make_state as make_saved
from small_runs import STEPS, batch_of, make_batches, make_state, make_step
from tolerances import PARALLEL, assert_close

from bnjax.training.parallel import DataParallel, HostsError, initialize_hosts, roll_call
from bnjax.training.parallel.hosts import Meeting, find_meeting, own_share
from bnjax.training.parallel.roll_call import call_roll


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What two processes saw."""
    out = tmp_path_factory.mktemp("two hosts")
    return out, run_two_hosts("two_hosts.py", out)


def test_the_shares_of_the_hosts_follow_one_another(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    shares = []
    for index in range(3):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        shares.append(list(range(12)[own_share(12)]))
    assert shares == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["jit", "shard_map", "pmap"])
def test_two_processes_train_as_one(seen, how):
    """Red if a host reads another's share, drops another's units, or sums over its own devices."""
    out, (first, second) = seen
    assert first["devices"] == second["devices"] == [4, 8]
    parallel = DataParallel(how)
    step = parallel.compile_train(make_step(parallel.axis_name, dropout=0.5))
    state = parallel.replicate(make_state(jax.random.key(3)))
    for i in range(STEPS):
        state, metrics = step(state, parallel.split(batch_of(make_batches(), i)))
    alone, metrics = parallel.fetch((state, metrics))
    own, other = (np.load(out / f"{how}-{index}.npz") for index in (0, 1))
    leaves = jax.tree.leaves((alone.params, alone.batch_stats))
    assert len(leaves) == len(own.files)
    for name, wanted in zip(own.files, leaves, strict=True):
        np.testing.assert_array_equal(own[name], other[name])
        assert_close(own[name], wanted, PARALLEL, name)
    for run in (first["runs"][how], second["runs"][how]):
        np.testing.assert_allclose(run["loss"], metrics.loss, rtol=1e-5)
        assert run["diverged"] == "step 4: new value of mean in norm1 is not finite"


@pytest.mark.slow
def test_two_processes_restore_what_the_first_saved(seen):
    """Bit for bit, negative zeros and keys too; and its errors are both's."""
    saved = make_saved(1)
    saved.params["zero"] = np.float32([-0.0, 0.0])
    saved = saved._replace(rng=jax.random.key_data(saved.rng))
    values = [np.asarray(leaf).tobytes().hex() for leaf in jax.tree.leaves(saved)]
    for index, each in enumerate(seen[1]):
        other = each["checkpoint"].pop("other config")
        assert each["checkpoint"] == {"step": 5, "values": values}
        assert "belongs to another config:\n  a: stored 1, given 2" in other
        assert other.startswith("process 0: ") == (index == 1)


@pytest.mark.slow
def test_a_signal_to_one_stops_both_after_the_same_step(seen):
    (first, second) = (each["interrupt"] for each in seen[1])
    assert first == second
    assert 3 <= first["saved"] <= 4
    assert first["said"] == f"stopped at step {first['saved']} by SIGTERM"


@pytest.mark.slow
def test_one_that_is_out_of_time_stops_both_after_the_same_step(seen):
    (first, second) = (each["late"] for each in seen[1])
    assert first == second == {"said": "out of time after step 1; saved", "saved": 1}


@pytest.mark.slow
def test_an_error_in_the_inputs_of_one_ends_both_after_a_checkpoint(seen):
    (first, second) = (each["damaged"] for each in seen[1])
    assert first == {"said": "process 1: record 7: truncated", "saved": 3}
    assert second == {"said": "record 7: truncated", "saved": 3}


@pytest.mark.slow
def test_processes_that_differ_say_in_what(seen):
    for each in seen[1]:
        assert each["disagree"].startswith("config must be the same on all processes")
        assert each["disagree"].endswith("\n  process 1: rate: stored 0, given 1")


@pytest.mark.slow
def test_what_fails_on_one_process_ends_both(seen):
    assert [each["fails"] for each in seen[1]] == ["process 1: no data here", "no data here"]
    assert [each["succeeds"] for each in seen[1]] == [0, 1]


def has_ipv6():
    """Whether this machine can listen to both, and call itself by IPv6."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return socket.has_dualstack_ipv6()
    except OSError:
        return False


def answers(*calls, timeout_s=20, hosts=("127.0.0.1",)):
    """What each of some processes is told, `(count, index)` each, as threads of this one.

    Process i calls the coordinator `hosts[i]`, or the last one.
    """
    port = free_port()
    said = {}

    def one(number, count, index):
        address = f"{hosts[min(index, len(hosts) - 1)]}:{port}"
        try:
            call_roll(address, count, index, timeout_s=timeout_s)
        except HostsError as error:
            said[number] = str(error)

    threads = [
        threading.Thread(target=one, args=(number, *call)) for number, call in enumerate(calls)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [said.get(number) for number in range(len(calls))]


def test_all_come():
    assert answers((3, 2), (3, 0), (3, 1)) == [None] * 3


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
@pytest.mark.parametrize("hosts", [("127.0.0.1", "[::1]"), ("[::1]", "127.0.0.1")])
def test_a_name_may_have_addresses_of_both_kinds(hosts):
    """Red where process 0 listens to that kind alone which it finds."""
    assert answers((2, 0), (2, 1), hosts=hosts, timeout_s=5) == [None] * 2


def test_processes_that_expect_other_numbers():
    said = answers((2, 0), (3, 1))
    assert said == ["process 1 expects 3 processes, process 0 expects 2."] * 2


def test_two_processes_of_one_number():
    said = answers((3, 0), (3, 1), (3, 1))
    assert said == ["two processes say that they are process 1 of 3."] * 3


def test_a_process_that_does_not_come():
    said = answers((3, 2), (3, 0), timeout_s=2)
    assert said[0] == said[1]
    assert "of 3 processes, [1] did not come to 127.0.0.1:" in said[0]


@pytest.mark.parametrize("words", [b"GET / HTTP/1.1\r\n\r\n", b'{"hello": 1}\n', b""])
def test_strangers_are_not_counted(words, monkeypatch):
    """Nor waited for, if they say nothing and stay."""
    monkeypatch.setattr(roll_call, "PATIENCE_S", 0.2)
    address = f"127.0.0.1:{free_port()}"
    failed = []

    def first():
        try:
            call_roll(address, 2, 0, timeout_s=20)
        except HostsError as error:
            failed.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    host, port = address.split(":")
    while True:
        try:
            stranger = socket.create_connection((host, int(port)))
            break
        except ConnectionRefusedError:
            continue
    with stranger:
        stranger.sendall(words)
        call_roll(address, 2, 1, timeout_s=10)
    thread.join()
    assert not failed


def test_a_coordinator_that_is_not_there():
    """Before JAX starts: it would end the process."""
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(HostsError, match=rf"{address} did not answer within 1 s .*is process 0"):
        initialize_hosts(address, 2, 1, timeout_s=1)


def test_who_waits_says_for_whom(monkeypatch, caplog):
    """Process 0 for those that did not come, the others for process 0, once each."""
    monkeypatch.setattr(roll_call, "SILENCE_S", 0.1)
    assert "[2] did not come" in answers((3, 1), (3, 0), timeout_s=2)[0]
    (said,) = (text for text in caplog.messages if text.startswith("process 0"))
    waiting = r"process 0 of 3 waits at 127.0.0.1:\d+ for \[(1, )?2\], [12] s at most\."
    assert re.fullmatch(waiting, said)
    caplog.clear()
    with pytest.raises(HostsError, match="did not answer"):
        call_roll(f"127.0.0.1:{free_port()}", 2, 1, timeout_s=2)
    (said,) = caplog.messages
    assert re.match(r"process 1 waits for process 0 at 127.0.0.1:\d+, [12] s at most \(.*ref", said)


def test_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(HostsError, match=f"cannot listen on port {port}"):
            initialize_hosts(f"127.0.0.1:{port}", 2, 0, timeout_s=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("here:1", None, None), "process_count and process_index must be given too"),
        ((None, 2, 0), "coordinator must be given too"),
        (("here:1", 2, 2), r"process_index must be in 0..1 with process_count=2, got 2"),
        (("here:1", 2, -1), "got -1"),
        (("here:1", 0, 0), "process_count=0"),
        (("here", 2, 0), "coordinator must be host:port of process 0, .*got 'here'"),
        (("here:port", 2, 1), "got 'here:port'"),
        (("here:99999", 2, 1), "port of 1 to 65535, got 'here:99999'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        initialize_hosts(*arguments, timeout_s=1)


SLURM = {
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_JOB_ID": "12345",
    "SLURM_PROCID": "5",
    "SLURM_STEP_NODELIST": "node[007-011,20],other3",
}
TPU = {"TPU_WORKER_HOSTNAMES": "10.0.0.2,10.0.0.3", "TPU_WORKER_ID": "1"}


@pytest.mark.parametrize(
    ("environment", "meeting"),
    [
        ({}, None),
        (SLURM, Meeting("node007:61497", 8, 5)),
        (SLURM | {"SLURM_STEP_NODELIST": "a-1,b-2"}, Meeting("a-1:61497", 8, 5)),
        (SLURM | {"SLURM_STEP_NODELIST": "n[3,7]"}, Meeting("n3:61497", 8, 5)),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}, None),  # a batch script, or a shell
        (TPU, Meeting("10.0.0.2:8476", 2, 1)),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
        (TPU | {"MEGASCALE_NUM_SLICES": "2"}, None),
    ],
)
def test_what_the_environment_says(environment, meeting):
    assert find_meeting(environment) == meeting


@pytest.mark.parametrize(
    ("environment", "missing"),
    [
        ({**SLURM, "SLURM_PROCID": None}, "SLURM_PROCID"),
        ({**SLURM, "SLURM_STEP_NODELIST": None}, "SLURM_STEP_NODELIST"),
        ({**TPU, "TPU_WORKER_ID": None}, "TPU_WORKER_ID"),
    ],
)
def test_an_environment_that_says_half(environment, missing):
    environment = {key: value for key, value in environment.items() if value is not None}
    with pytest.raises(HostsError, match=f"{missing} is not set"):
        find_meeting(environment)


def test_a_process_alone_joins_nothing(monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    initialize_hosts()
    initialize_hosts("127.0.0.1:1", 1, 0)
    assert jax.process_count() == 1
