"""Profiles: of the third to fifth call, whole however training ends."""

from contextlib import contextmanager

import jax
import pytest

from bnjax.training.profiles import profiled


@pytest.fixture
def log(monkeypatch):
    """What is called, in order: the profiler, and training by the number of the call."""
    events = []

    @contextmanager
    def annotation(name, *, step_num):
        events.append((name, step_num))
        yield

    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: events.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append("stop"))
    monkeypatch.setattr(jax.profiler, "StepTraceAnnotation", annotation)
    return events


def train(log, directory, calls):
    def one(number):
        log.append(number)
        return number + 1

    with profiled(one, directory) as run:
        for number in range(1, calls + 1):
            assert run(number) == number + 1


PROFILED = [1, 2, "start", ("train", 3), 3, ("train", 4), 4, ("train", 5), 5, "stop", 6, 7]


@pytest.mark.parametrize(
    ("calls", "expected"), [(7, PROFILED), (4, [*PROFILED[:7], "stop"]), (2, [1, 2])]
)
def test_the_third_to_fifth_call_are_profiled(calls, expected, log, tmp_path):
    train(log, tmp_path, calls)
    assert log == expected


def test_an_error_ends_the_profile(log, tmp_path):
    with (
        pytest.raises(ZeroDivisionError),
        profiled(lambda number: log.append(1 // number), tmp_path) as run,
    ):
        list(map(run, (1, 1, 1, 0)))
    assert log == [1, 1, "start", ("train", 3), 1, ("train", 4), "stop"]


def test_without_a_directory_the_function_is_the_very_one(log):
    with profiled(print, None) as run:
        assert run is print
    assert not log
