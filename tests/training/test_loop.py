"""The loop's timetable, its sums, and what a signal leaves behind; programs here only count."""

import os
import signal
import threading

import numpy as np
import pytest

from bnjax.training.loop import Interrupted, OutOfTime, Progress, RunFunctions, Schedule, fit
from bnjax.training.objectives import Metrics

EVERY_TEN = Schedule(
    steps=53,
    steps_per_dispatch=5,
    eval_every=10,
    dense_until=30,
    sparse_eval_every=20,
    checkpoint_every=15,
)


def zero(members=2):
    return Metrics(*(np.zeros(members, dtype) for dtype in (np.float32, np.int32, np.int32)))


class Trace:
    """A counting program, and all that the loop asks of it.

    A step adds its number to the state and its number times (1, 10) to the members' losses.
    """

    def __init__(self, at=lambda trace, step: None, time=float("inf")):
        self.at = at
        self.time = time  # a step takes one unit of it
        self.dispatches = []
        self.entries = []
        self.saved = {}

    def train(self, state, indices):
        assert indices[0] == state["step"]
        self.dispatches.append(len(indices))
        step = state["step"] + len(indices)
        self.at(self, step)
        loss = indices.sum() * np.array([1, 10], np.float32)
        count = np.full(2, len(indices), np.int32)
        total = state["total"] + int(indices.sum())
        return {"step": step, "total": total}, Metrics(loss, count, 2 * count)

    def inputs(self, first, steps):
        return np.arange(first, first + steps)

    def record(self, step, sums, evaluation):
        self.entries.append((step, sums.loss.tolist(), sums.examples.tolist(), evaluation))

    def save(self, step, progress):
        assert step not in self.saved
        self.saved[step] = progress

    def fit(self, schedule, *, start=None, first_step=0, checkpoints=True):
        functions = RunFunctions(
            train=self.train,
            evaluate=lambda state: {"total": state["total"]},
            inputs=self.inputs,
            snapshot=dict,
        )
        return fit(
            functions,
            start or Progress({"step": 0, "total": 0}, zero()),
            schedule,
            first_step=first_step,
            record=self.record,
            checkpoints=self if checkpoints else None,
            description="counting",
            members=2,
            out_of_time=lambda: sum(self.dispatches) >= self.time,
        )


def test_evaluations_and_their_sums():
    """Before the first step, at the dense and the sparse distance, and after the last step.

    Red if sums are not set back, or the last, shorter dispatch is lost.
    """
    trace = Trace()
    state = trace.fit(EVERY_TEN)
    assert state == {"step": 53, "total": sum(range(53))}
    assert trace.dispatches == [5] * 10 + [3]
    expected = [(0, [0, 0], [0, 0], {"total": 0})]
    for before, step in ((0, 10), (10, 20), (20, 30), (30, 40), (40, 53)):
        loss = sum(range(before, step))
        examples = 2 * (step - before)
        evaluation = {"total": sum(range(step))}
        expected.append((step, [loss, 10 * loss], [examples] * 2, evaluation))
    assert trace.entries == expected


def test_a_run_shorter_than_a_dispatch():
    trace = Trace()
    trace.fit(EVERY_TEN._replace(steps=3))
    assert trace.dispatches == [3]
    assert [entry[0] for entry in trace.entries] == [0, 3]


def test_checkpoints_come_at_their_distance_and_at_the_end():
    trace = Trace()
    trace.fit(EVERY_TEN)
    assert sorted(trace.saved) == [15, 30, 45, 53]
    state, sums = trace.saved[15]
    assert state == {"step": 15, "total": sum(range(15))}
    assert sums.loss.tolist() == [sum(range(10, 15)), 10 * sum(range(10, 15))]
    assert trace.saved[53].sums.loss.tolist() == [0, 0]  # they went into the last evaluation


@pytest.mark.parametrize(
    ("dense", "until", "sparse", "every"),
    [(300, 1_000, 500, 0), (300, 1_000, 500, 700), (10, 0, 40, 0), (7, 20, 11, 3), (50, 50, 20, 0)],
)
def test_no_dispatch_up_to_an_event_is_longer_than_the_longest(dense, until, sparse, every):
    """The gap between dense and sparse evaluations may be the longest of all."""
    schedule = Schedule(4_000, None, dense, until, sparse, every)
    step, dispatches = 0, []
    while step < schedule.steps:
        dispatches.append(schedule.dispatch(step))
        step += dispatches[-1]
    assert step == schedule.steps
    assert max(dispatches) <= schedule.longest_dispatch


def test_no_checkpoints_but_the_last_one_at_distance_zero():
    trace = Trace()
    trace.fit(EVERY_TEN._replace(checkpoint_every=0))
    assert sorted(trace.saved) == [53]


def test_nothing_is_left_to_do_at_the_end():
    trace = Trace()
    end = {"step": 53, "total": 1}
    assert trace.fit(EVERY_TEN, start=Progress(end, zero()), first_step=53) == end
    assert (trace.dispatches, trace.entries, trace.saved) == ([], [], {})


@pytest.mark.parametrize("per_dispatch", [5, 10])
def test_going_on_between_two_dispatches_misses_no_event(per_dispatch):
    """As after a run of 13 steps that is now longer: red if dispatches count from there."""
    schedule = EVERY_TEN._replace(steps_per_dispatch=per_dispatch, checkpoint_every=20)
    trace = Trace()
    state = trace.fit(schedule, start=Progress({"step": 13, "total": 0}, zero()), first_step=13)
    assert state == {"step": 53, "total": sum(range(13, 53))}
    assert [entry[0] for entry in trace.entries] == [20, 30, 40, 53]
    assert sorted(trace.saved) == [20, 40, 53]


@pytest.mark.parametrize("first_step", [-1, 54])
def test_a_first_step_outside_the_schedule_is_refused(first_step):
    trace = Trace()
    with pytest.raises(ValueError, match=f"first_step must be in 0 .. 53, got {first_step}"):
        trace.fit(EVERY_TEN, first_step=first_step)
    assert (trace.dispatches, trace.entries) == ([], [])


@pytest.mark.parametrize("value", [53.0, "53", True])
def test_steps_are_integers(value):
    with pytest.raises(ValueError, match=f"eval_every must be an integer, got {value!r}"):
        EVERY_TEN._replace(eval_every=value).check()


def send(number, *, when, times=1):
    def at(trace, step):
        if step == when:
            for _ in range(times):
                os.kill(os.getpid(), number)

    return at


@pytest.fixture(autouse=True)
def _hangups_are_heard_again():
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("when", [5, 15, 20, 53])
def test_a_signal_saves_and_resuming_loses_nothing(number, when):
    """15 is a checkpoint's step, 20 an evaluation's, 53 the last."""
    whole, first = Trace(), Trace(send(number, when=when))
    whole.fit(EVERY_TEN)
    every = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(n) for n in every]
    with pytest.raises(Interrupted, match=f"stopped at step {when} by {number.name}") as stop:
        first.fit(EVERY_TEN)
    assert (stop.value.step, stop.value.signum) == (when, number)
    if number == signal.SIGHUP:  # the next must not end what is still being written
        before[-1] = signal.SIG_IGN
    assert [signal.getsignal(n) for n in every] == before
    assert max(first.saved) == when

    second = Trace()
    state = second.fit(EVERY_TEN, start=first.saved[when], first_step=when)
    assert state == {"step": 53, "total": sum(range(53))}
    assert first.entries + second.entries == whole.entries
    assert first.dispatches + second.dispatches == whole.dispatches


@pytest.mark.parametrize(("time", "last"), [(0, 5), (15, 15), (16, 20)])
def test_the_end_of_the_time_saves_and_resuming_loses_nothing(time, last):
    """After the dispatch in which it comes, at least one; what came before goes on."""
    whole, first = Trace(), Trace(time=time)
    whole.fit(EVERY_TEN)
    with pytest.raises(OutOfTime, match=f"out of time after step {last}"):
        first.fit(EVERY_TEN)
    assert max(first.saved) == last
    second = Trace()
    second.fit(EVERY_TEN, start=first.saved[last], first_step=last)
    assert first.entries + second.entries == whole.entries
    assert first.dispatches + second.dispatches == whole.dispatches


def test_a_run_whose_time_ends_with_its_last_step_is_finished():
    whole, late = Trace(), Trace(time=51)
    whole.fit(EVERY_TEN)
    late.fit(EVERY_TEN)
    assert late.entries == whole.entries


def test_a_signal_counts_for_more_than_the_time():
    """Who pressed Ctrl-C waits for its status."""
    trace = Trace(send(signal.SIGINT, when=10), time=10)
    with pytest.raises(Interrupted, match="stopped at step 10 by SIGINT"):
        trace.fit(EVERY_TEN)
    assert sorted(trace.saved) == [10]


def test_a_signal_during_the_last_save_is_not_lost():
    class Slow(Trace):
        def save(self, step, progress):
            super().save(step, progress)
            if step == 53:
                os.kill(os.getpid(), signal.SIGTERM)

    trace = Slow()
    with pytest.raises(Interrupted, match="stopped at step 53 by SIGTERM"):
        trace.fit(EVERY_TEN)
    assert max(trace.saved) == 53


def test_an_error_in_the_inputs_is_raised_when_the_step_under_way_is_saved():
    class Damaged(Trace):
        def inputs(self, first, steps):
            if first == 25:
                raise OSError("record 7")
            return np.arange(first, first + steps)

    trace = Damaged()
    with pytest.raises(OSError, match="record 7"):
        trace.fit(EVERY_TEN)
    assert sorted(trace.saved) == [15, 25]
    early = Damaged()
    with pytest.raises(OSError, match="record 7"):
        early.fit(EVERY_TEN, start=trace.saved[25], first_step=25)
    assert (early.saved, early.dispatches) == ({}, [])


def test_a_signal_that_ends_what_makes_the_inputs_saves_as_well():
    """A hangup reaches worker processes, too: red for their error in place of the signal's."""

    class Ended(Trace):
        def inputs(self, first, steps):
            if first == 25:
                raise OSError("a worker has ended")
            return super().inputs(first, steps)

    trace = Ended(send(signal.SIGHUP, when=25))
    with pytest.raises(Interrupted, match="stopped at step 25 by SIGHUP"):
        trace.fit(EVERY_TEN)
    assert sorted(trace.saved) == [15, 25]


def test_a_signal_without_checkpoints_stops_as_well():
    trace = Trace(send(signal.SIGINT, when=10))
    with pytest.raises(Interrupted):
        trace.fit(EVERY_TEN, checkpoints=False)
    assert trace.dispatches == [5, 5]


def test_a_second_ctrl_c_stops_at_once():
    trace = Trace(send(signal.SIGINT, when=10, times=2))
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background
    try:
        with pytest.raises(KeyboardInterrupt):
            trace.fit(EVERY_TEN)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert trace.saved == {}


def test_a_terminal_that_closes_may_hang_up_twice():
    """Once the kernel and once the shell: the second must not end the process before it saves."""
    trace = Trace(send(signal.SIGHUP, when=10, times=2))
    with pytest.raises(Interrupted) as stop:
        trace.fit(EVERY_TEN)
    assert (stop.value.signum, max(trace.saved)) == (signal.SIGHUP, 10)


def test_a_run_under_nohup_outlives_the_terminal():
    trace = Trace(send(signal.SIGHUP, when=10))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        trace.fit(EVERY_TEN)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert sorted(trace.saved) == [15, 30, 45, 53]


def test_a_second_signal_acts_as_it_did_before():
    """SIGTERM after Ctrl-C: a handler that the caller had set is called."""
    heard = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))

    def at(trace, step):
        if step == 10:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        with pytest.raises(Interrupted) as stop:
            Trace(at).fit(EVERY_TEN)
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert stop.value.signum == signal.SIGINT
    assert heard == [signal.SIGTERM]


def test_an_error_in_a_step_gives_the_handlers_back():
    def fail(trace, step):
        raise FloatingPointError("step 5")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(FloatingPointError):
        Trace(fail).fit(EVERY_TEN)
    assert signal.getsignal(signal.SIGINT) is before


def test_training_in_a_thread_leaves_signals_alone():
    """Python lets only the main thread set handlers."""
    trace = Trace()
    results = []
    thread = threading.Thread(target=lambda: results.append(trace.fit(EVERY_TEN)))
    thread.start()
    thread.join()
    assert results == [{"step": 53, "total": sum(range(53))}]


def test_the_bar_counts_the_steps_of_all_members(capsys):
    Trace().fit(EVERY_TEN)
    bar = capsys.readouterr().err
    assert "counting, 2 runs: 100%" in bar
    assert "on training batches: loss" in bar
    assert "106/106" in bar
    assert "step/s" in bar


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"steps_per_dispatch": 0}, "steps_per_dispatch must be >= 1, got 0"),
        ({"eval_every": 0}, "eval_every must be >= 1, got 0"),
        ({"sparse_eval_every": -20}, "sparse_eval_every must be >= 1, got -20"),
        ({"dense_until": -1}, "dense_until must be >= 0, got -1"),
        ({"checkpoint_every": -15}, "checkpoint_every must be >= 0, got -15"),
        ({"eval_every": 12}, "eval_every=12 must be a multiple of steps_per_dispatch=5"),
        ({"sparse_eval_every": 8}, "sparse_eval_every=8 must be a multiple of"),
        ({"checkpoint_every": 7}, "checkpoint_every=7 must be a multiple of"),
    ],
)
def test_a_schedule_that_does_not_work_is_refused_before_the_first_step(change, message):
    trace = Trace()
    with pytest.raises(ValueError, match=message):
        trace.fit(EVERY_TEN._replace(**change))
    assert (trace.dispatches, trace.entries) == ([], [])
