"""The training loop: dispatches, evaluations, records, checkpoints; no arithmetic."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import jax
import numpy as np

from bnjax.progress import ProgressBar
from bnjax.scalars import integer
from bnjax.training.checkpoints import Checkpoints
from bnjax.training.objectives import Metrics
from bnjax.training.parallel.host_checkpoints import HostCheckpoints
from bnjax.training.parallel.hosts import agree_to_stop, is_first, raise_on_all

Tree = Any


class Interrupted(Exception):
    """Training stopped on request, after a checkpoint."""

    def __init__(self, step: int, signum: int) -> None:
        super().__init__(f"stopped at step {step} by {signal.Signals(signum).name}")
        self.step = step
        self.signum = signum


class OutOfTime(Exception):
    """Training stopped because its time was over, after a checkpoint; or did not begin."""


class Schedule(NamedTuple):
    """The timetable of a run, in steps.

    Attributes:
        steps: length of the run.
        steps_per_dispatch: steps in one call of the compiled functions, fewer before the last step
            and, for a run that goes on from elsewhere, up to the next multiple; None for all up to
            the next evaluation or checkpoint.
        eval_every: steps between evaluations; one comes before the first step, one after the last.
        dense_until: step after which `sparse_eval_every` takes the place of `eval_every`.
        sparse_eval_every: steps between evaluations from then on.
        checkpoint_every: steps between checkpoints; 0 for none but after the last step and on
            interruption.

    Example:
        >>> schedule = Schedule(
        ...     steps=100, steps_per_dispatch=10, eval_every=10, dense_until=20,
        ...     sparse_eval_every=50, checkpoint_every=50,
        ... )
        >>> [*schedule.evaluations(100)]
        [0, 10, 20, 50, 100]
    """

    steps: int
    steps_per_dispatch: int | None
    eval_every: int
    dense_until: int
    sparse_eval_every: int
    checkpoint_every: int

    def check(self) -> None:
        """Raises ValueError unless all events fall between two dispatches."""
        together = 1 if self.steps_per_dispatch is None else self.steps_per_dispatch
        for name, value in (self._asdict() | {"steps_per_dispatch": together}).items():
            integer(name, value, least=0 if name in ("dense_until", "checkpoint_every") else 1)
        for name in ("eval_every", "sparse_eval_every", "checkpoint_every"):
            if getattr(self, name) % together:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be a multiple of "
                    f"steps_per_dispatch={self.steps_per_dispatch}."
                )

    def dispatch(self, step: int) -> int:
        """Returns how many steps one call takes from `step` on, a step before the last."""
        if self.steps_per_dispatch is not None:
            return min(self.steps_per_dispatch - step % self.steps_per_dispatch, self.steps - step)
        after = range(step + 1, self.steps + 1)
        return next(n for n in after if self.evaluates_at(n) or self.saves_at(n)) - step

    @property
    def longest_dispatch(self) -> int:
        """A number of steps that no call exceeds, the same for runs of any length."""
        if self.steps_per_dispatch is not None:
            return self.steps_per_dispatch
        dense, sparse = self.eval_every, self.sparse_eval_every
        last = self.dense_until // dense * dense  # the last dense evaluation
        gap = sparse * (self.dense_until // sparse + 1) - last  # to the first sparse one
        longest = max(dense, sparse, gap)
        return min(longest, self.checkpoint_every or longest)

    def evaluates_at(self, step: int) -> bool:
        """Whether an evaluation is due after `step` steps."""
        return self._is_regular(step) or step == self.steps

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` steps."""
        every = self.checkpoint_every or self.steps
        return step % every == 0 or step == self.steps

    def evaluations(self, step: int) -> Iterator[int]:
        """Yields the steps of all evaluations up to and including `step`."""
        end = min(step, self.steps)
        yield from range(0, min(end, self.dense_until) + 1, self.eval_every)
        every = self.sparse_eval_every
        yield from range(every * (self.dense_until // every + 1), end + 1, every)
        if end == self.steps and not self._is_regular(end):
            yield end

    def _is_regular(self, step: int) -> bool:
        every = self.eval_every if step <= self.dense_until else self.sparse_eval_every
        return step % every == 0


class RunFunctions(NamedTuple):
    """The functions that the loop calls; the caller has compiled what is to be compiled.

    Attributes:
        train: `(state, inputs) -> (state, metrics)`, metrics summed over the inputs' steps, on the
            host or replicated; may give up the old state's buffers.
        evaluate: `state -> tree` of arrays.
        inputs: `(first step, steps) -> inputs` of `train` for these steps: batches, or indices of
            examples that lie on the device. Called in order, and while the device is busy.
        snapshot: `state -> tree` of host arrays, for a checkpoint.
        check: called with the state after each dispatch; raises to end the run.
    """

    train: Callable[[Tree, Tree], tuple[Tree, Metrics]]
    evaluate: Callable[[Tree], Tree]
    inputs: Callable[[int, int], Tree]
    snapshot: Callable[[Tree], Tree]
    check: Callable[[Tree], None] = lambda state: None


class Progress(NamedTuple):
    """The content of a checkpoint: the state, and the training metrics since the last evaluation.

    The metrics are host arrays, one sum for each member.
    """

    state: Tree
    sums: Metrics


def start_or_resume(
    initial: Progress,
    checkpoints: Checkpoints | HostCheckpoints | None,
    *,
    snapshot: Callable[[Tree], Tree],
    place: Callable[[Tree], Tree],
) -> tuple[Progress, int]:
    """Returns the progress to go on from, and the steps behind it, as `fit` takes them.

    Args:
        initial: of a run without a step.
        checkpoints: where the newest whole one is looked for; None for nowhere.
        snapshot: `state -> tree` of host arrays, as that of `RunFunctions`.
        place: its inverse, for a state that was restored.

    Raises:
        CheckpointError: as `Checkpoints.restore`.
    """
    if checkpoints is None:
        return initial, 0
    restored = checkpoints.restore(initial._replace(state=snapshot(initial.state)))
    if restored is None:
        return initial, 0
    state, sums = restored.state
    return Progress(place(state), sums), restored.step


def fit(
    functions: RunFunctions,
    progress: Progress,
    schedule: Schedule,
    *,
    first_step: int,
    record: Callable[[int, Metrics, Tree], None],
    checkpoints: Checkpoints | HostCheckpoints | None = None,
    description: str = "",
    members: int = 1,
    out_of_time: Callable[[], bool] = lambda: False,
) -> Tree:
    """Trains from `first_step` to the schedule's end.

    Ctrl-C, SIGTERM, SIGHUP and the end of the time let the dispatch under way end, save a
    checkpoint and raise; a second signal stops at once. In a run of several processes, what stops
    one stops all of them after the same step.

    Args:
        functions: those of the run.
        progress: the state to start from, which may be donated, and the metrics.
        schedule: when to evaluate and save.
        first_step: steps that `progress` has behind it, at most the schedule's.
        record: called at each evaluation with the step, the training metrics summed since the
            last one, and the evaluation's result.
        checkpoints: where to save; None for nowhere.
        description: shown on the progress bar.
        members: runs trained side by side; the bar counts the steps of all of them.
        out_of_time: asked after each dispatch whether it was the last one for now.

    Returns:
        The final state.

    Raises:
        ValueError: at once, for a schedule that does not work, or a `first_step` outside it.
        Interrupted: after a signal.
        OutOfTime: where a process is out of time.
        Diverged: or whatever else `functions.check` raises.
        DataError: or whatever else `functions.inputs` raises without a signal, after a checkpoint;
            on the processes where it did not, HostsError with its text.
    """
    schedule.check()
    if not 0 <= integer("first_step", first_step) <= schedule.steps:
        raise ValueError(
            f"first_step must be in 0 .. {schedule.steps}, got {first_step}: a run that is longer "
            "than its schedule has ended."
        )
    state, sums = progress
    step = first_step

    def next_inputs() -> tuple[Tree, Exception | None]:
        """Returns the next dispatch's, or the error, to be raised after a checkpoint."""
        try:
            if step == schedule.steps:
                return None, None
            return functions.inputs(step, schedule.dispatch(step)), None
        except Exception as error:
            return None, error

    bar = ProgressBar(
        schedule.steps * members,
        initial=step * members,
        description=f"{description}, {members} runs" if members > 1 else description,
        unit="step",
        compiles=True,
        shown=is_first(),
    )
    with bar, _signals() as received:
        if step == 0:
            record(0, sums, functions.evaluate(state))
        compiled = set()  # lengths of dispatches
        evaluated = step == 0
        inputs, error = next_inputs()
        raise_on_all(error)
        while step < schedule.steps:
            steps = schedule.dispatch(step)
            started = time.perf_counter()
            state, new = functions.train(state, inputs)
            step += steps
            inputs, error = next_inputs()  # while the device computes; what follows waits for it
            new = jax.tree.map(np.asarray, new)
            functions.check(state)
            sums = jax.tree.map(np.add, sums, new)
            bar.update(
                steps * members,
                _postfix(new),
                compiled_s=0 if steps in compiled else time.perf_counter() - started,
                images=int(new.examples.sum()) / (steps * members),
            )
            compiled.add(steps)
            if schedule.evaluates_at(step):
                started = time.perf_counter()
                record(step, sums, functions.evaluate(state))
                sums = jax.tree.map(np.zeros_like, sums)
                if not evaluated:
                    bar.leave_out(time.perf_counter() - started)
                evaluated = True
            signum, failed, late = agree_to_stop(
                max(received, default=0), error is not None, out_of_time()
            )
            stops = signum or failed or late
            if checkpoints is not None and (schedule.saves_at(step) or stops):
                checkpoints.save(step, Progress(functions.snapshot(state), sums))
            if signum:  # first: it may have ended what makes the inputs, too
                raise Interrupted(step, signum)
            if failed:
                raise_on_all(error)
            if late and step < schedule.steps:  # after the last one, it is soon finished
                saved = "" if checkpoints is None else "; saved"
                raise OutOfTime(f"out of time after step {step:,}{saved}")
        # A signal may have come during the last save.
        signum, _, _ = agree_to_stop(max(received, default=0), False, False)
        if signum:
            raise Interrupted(step, signum)
    return state


def _postfix(metrics: Metrics) -> str:
    """Returns loss and accuracy on the batches of the last dispatch, over all members."""
    examples = max(int(metrics.examples.sum()), 1)
    loss, correct = (float(leaf.sum()) / examples for leaf in (metrics.loss, metrics.correct))
    return f"on training batches: loss {loss:.3f}, accuracy {100 * correct:.1f} %"


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects the first of Ctrl-C, SIGTERM and a hangup; the second one acts as without us.

    A terminal that closes may send several hangups, and a process may be told to outlive them
    (`nohup`).
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # Python delivers signals to the main thread alone
        return

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)
        if signal.SIGHUP in received:  # what is still being written outlives the next one
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def handle(number: int, frame: Any) -> None:
        received.append(number)
        restore()
        with suppress(OSError):  # by number: a handler may interrupt a print
            os.write(2, b"\nStopping after this dispatch; once more stops at once.\n")

    for number in numbers:
        signal.signal(number, handle)
    try:
        yield received
    finally:
        restore()
