"""Bad values on the command lines: each is refused by name, with its value, before any compute.

Of each argument of each command one value, drawn with a seed; the others are slow.
`python tests/experiments/test_command_lines.py` tries all of them and counts.
"""

import contextlib
import dataclasses
import io
import random
import re
import signal
import sys
import tempfile
import types
import typing
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest import mock

import pytest
from marks import slow_but

from bnjax.data.prepare import imagenet
from bnjax.models import __main__ as models
from experiments import report, verify
from experiments.compiled import dry_run
from experiments.harness import main as harness
from experiments.harness.images import evaluate
from experiments.harness.images.compute import ImageCompute
from experiments.harness.images.programs import Programs
from experiments.imagenet_inception import __main__ as inception
from experiments.imagenet_inception.config import Config as InceptionConfig
from experiments.imagenet_inception.experiment import EXPERIMENT as INCEPTION
from experiments.mnist_lenet import __main__ as lenet
from experiments.mnist_lenet import experiment as lenet_experiment
from experiments.mnist_lenet.config import Config as LenetConfig
from experiments.mnist_lenet.experiment import EXPERIMENT as LENET
from experiments.rethinking_inception import __main__ as rethinking
from experiments.rethinking_inception.config import Config as RethinkingConfig
from experiments.rethinking_inception.experiment import EXPERIMENT as RETHINKING

RUN = Path(lenet.__file__).parent / "results" / "mlp_bn-s0"
NUMBERS = ("nan", "inf", "-inf", "-1", "1e39", "-0.5", "x", "", "1,5", "1e-46", "2x")
INTEGERS = ("-1", "0", "-9223372036854775809", "1.5", "nan", "inf", "x", "", "1e3", "1_", "0x10")
HUGE = ("1000000000000",)
URLS = ("gs://bucket/x", "s3://bucket")
HARMLESS = {
    # Zero is a value of theirs, or what is small is rounded to it.
    *((name, "0") for name in ("checkpoint_every", "dense_until", "workers", "process_index")),
    *((name, "1e-46") for name in ("dropout", "l2", "momentum", "label_smoothing", "decay")),
    ("rmsprop_decay", "1e-46"),
    *((name, "1e-46") for name in ("parameter_decay", "threshold", "width", "centre", "fraction")),
    # Long runs, and distances between events that never come.
    *((name, HUGE[0]) for name in ("steps", "accelerated_steps", "dense_until", "depth")),
    *((name, HUGE[0]) for name in ("lenet_max_seeds", "lenet_max_steps", "lenet_max_sweep_seeds")),
    *((name, HUGE[0]) for name in ("lenet_max_sweep_steps", "units_every")),
    *((name, HUGE[0]) for name in ("process_count", "process_index")),
    *((name, HUGE[0]) for name in ("eval_every", "sparse_eval_every", "checkpoint_every")),
}


NEEDS_A_RUN = {("evaluate", "data"), ("evaluate", "data_dir"), ("evaluate", "blacklist")}
"""Looked at after the runs; those here are none."""
NEEDS_DATA = {("verify", "data"), ("verify", "data_dir")}
"""Looked at by what is stopped here."""
BESIDE = {
    # Of several hosts all three must be given.
    "coordinator": ("--process-count", "2", "--process-index", "1"),
    "process_count": ("--coordinator", "here:1", "--process-index", "1"),
    "process_index": ("--coordinator", "here:1", "--process-count", "2"),
}
"""What an argument is given with, to be looked at."""
FROM_A_FOLDER = {
    "mnist_lenet": ("--data", "mnist"),
    "imagenet_inception": ("--data", "cifar10"),
    "rethinking_inception": ("--data", "cifar10"),
}
"""The same for a folder of data, which packaged images do not have."""


class Accepted(BaseException):
    """Compute would have begun."""


class Case(NamedTuple):
    """A value for one argument of one command.

    Attributes:
        command: which.
        argument: by its field's name.
        value: a bad one.
        argv: the whole command line.
    """

    command: str
    argument: str
    value: str
    argv: tuple[str, ...]


def _accept(*args: Any, **kwargs: Any) -> None:
    raise Accepted


def _too_long(*_: Any) -> None:
    raise TimeoutError("no end")


def _calls(main: Callable[[], None]) -> Callable[[tuple[str, ...]], None]:
    def call(argv: tuple[str, ...]) -> None:
        with mock.patch.object(sys, "argv", ["main", *argv]):
            main()

    return call


COMMANDS: dict[str, tuple[Callable[[tuple[str, ...]], None], list[type], tuple[str, ...]]] = {
    "mnist_lenet": (_calls(lenet.main), [harness.arguments_class(LENET), LenetConfig], ()),
    "imagenet_inception": (
        _calls(inception.main),
        [harness.arguments_class(INCEPTION), ImageCompute, InceptionConfig],
        (),
    ),
    "rethinking_inception": (
        _calls(rethinking.main),
        [harness.arguments_class(RETHINKING), ImageCompute, RethinkingConfig],
        (),
    ),
    "evaluate": (evaluate.subcommand(INCEPTION), [evaluate.Arguments], ("nowhere",)),
    "dry-run": (
        dry_run.subcommand(INCEPTION, "bn_x5"),
        [dry_run.Arguments, InceptionConfig],
        ("--topology", "cpu:8"),
    ),
    "verify": (_calls(verify.main), [verify.Arguments], (str(RUN),)),
    "report": (_calls(report.main), [report.Arguments], ()),
}
"""What runs a command, the classes of its arguments, and what stands in front."""
OTHERS = [
    Case("models", "network", "vgg", ("vgg",)),
    *(Case("models", "depth", value, (f"--depth={value}",)) for value in ("0", "-1", "1.5", "x")),
    Case("models", "colour", "", ("--colour", "red")),  # red may be a network
    Case("data.imagenet", "check", "chekc", ("chekc", "--tars", "nowhere")),
    Case("data.imagenet", "tars", "nowhere", ("check", "--tars", "nowhere")),
    Case("data.imagenet", "tars", "gs://tars", ("check", "--tars", "gs://tars")),
    Case("data.imagenet", "data-dir", "", ("prepare", "--tars", "nowhere")),
    *(
        Case("data.imagenet", "data_dir", url, ("prepare", "--tars", "t", "--data-dir", url))
        for url in URLS
    ),
]


def _values(kind: Any) -> tuple[str, ...]:
    """Bad values for a field of a type."""
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _values(typing.get_args(kind)[0])
    if origin in (types.UnionType, typing.Union):
        return _values(next(part for part in typing.get_args(kind) if part is not type(None)))
    if origin is Literal:
        return ("nope", "", "None2")
    if origin is tuple:
        inner = typing.get_args(kind)[0]
        return _values(inner)[:3] if inner is not str else ("nope",)
    return {
        bool: ("maybe",),
        int: INTEGERS + HUGE,
        float: NUMBERS,
        Path: URLS,
        str: ("nope", ""),
    }.get(kind, ())


def cases() -> Iterator[Case]:
    """All of them."""
    for command, (_, classes, before) in COMMANDS.items():
        for kind in classes:
            hints = typing.get_type_hints(kind, include_extras=True)
            for item in dataclasses.fields(kind):
                positional = item.name in ("runs", "run", "config", "how", "device_count")
                for value in () if positional else _values(hints[item.name]):
                    if (item.name, value) in HARMLESS:
                        continue
                    if (command, item.name) in NEEDS_A_RUN | NEEDS_DATA:
                        continue
                    if (item.name, value) == ("population_batches", HUGE[0]):
                        continue  # bounded by the data, in a test of its own
                    flag = f"--{item.name.replace('_', '-')}"
                    given = (flag, value) if typing.get_origin(hints[item.name]) else None
                    beside = BESIDE.get(item.name, ())
                    if item.name == "data_dir":
                        beside = FROM_A_FOLDER.get(command, ())
                    argv = (*before, *beside, *(given or (f"{flag}={value}",)))
                    yield Case(command, item.name, value, argv)
        yield Case(command, "colour", "red", (*before, "--colour", "red"))
    yield from OTHERS


def repeats(words: str, case: Case) -> bool:
    """Whether words name the argument, and the value as it was given or as it was read."""
    name = case.argument.replace("_", "[-_]")
    named = re.search(rf"(?<![a-z][-_])(?<![a-z]){name}(?![-_]?[a-z])", words)
    if case.value == "maybe":
        return case.value in words  # tyro's flags take no value; it says only which is left over
    if len(case.value) < 3:
        return named is not None
    read = {case.value, str(Path(case.value))}
    with contextlib.suppress(ValueError):
        read.add(str(float(case.value)))
        read.add(f"{int(case.value):,}")
    return named is not None and any(each in words for each in read)


def verdict(case: Case) -> tuple[str, str]:
    """`named`, `poor` or `silent`; and what was said."""
    said = io.StringIO()
    code: str | int | None = 0
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(20)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            if case.command == "models":
                models.main(list(case.argv))
            elif case.command == "data.imagenet":
                imagenet.main(list(case.argv))
            else:
                COMMANDS[case.command][0](case.argv)
    except SystemExit as stop:
        code = stop.code
    except Accepted:
        return "silent", "computes"
    except Exception as error:
        return "poor", f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    text = said.getvalue() + (code if isinstance(code, str) else "")
    if code in (0, None):
        return "silent", text
    words = " ".join(text.replace("│", " ").split())
    named = repeats(words, case) and "Traceback" not in words
    return ("named" if named else "poor"), words


@contextlib.contextmanager
def no_compute() -> Iterator[None]:
    """Stops each command where compute would begin."""
    with contextlib.ExitStack() as stack:
        for module, name in (
            (Programs, "compile"),  # ahead of the first run
            (harness, "complete"),
            (dry_run, "compile_cases"),
            (models, "summarize"),
            (evaluate, "measure"),
            (verify, "rerun"),
            (report, "documents"),
        ):
            stack.enter_context(mock.patch.object(module, name, _accept))
        for module, name in (
            (lenet_experiment, "one_cpu_device_per_core"),
            (verify, "_take_devices_of"),
        ):
            stack.enter_context(mock.patch.object(module, name, return_value=None))
        yield


ALL = random.Random(0).sample(each := sorted(set(cases())), len(each))
FIRST = {(case.command, case.argument): case for case in ALL}.values()


@pytest.fixture(scope="module", autouse=True)
def _no_compute(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with no_compute(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("here"))
        yield


@pytest.mark.parametrize(
    "case", slow_but(FIRST, ALL), ids=lambda case: f"{case.command}-{case.argument}"
)
def test_a_bad_value_is_refused_by_name(case: Case) -> None:
    judged, words = verdict(case)
    assert judged == "named", words


@pytest.mark.parametrize(
    ("command", "argv"),
    [
        ("imagenet_inception", ("--rates",)),
        ("imagenet_inception", ("--rates", "--seeds", "1")),
        ("imagenet_inception", ("--arms",)),
        ("mnist_lenet", ("--sweep", "--seeds", "1")),
    ],
)
def test_a_list_without_a_value_is_refused(command: str, argv: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit, match=f"error: {argv[0]} has no value"):
        COMMANDS[command][0](argv)


@pytest.mark.parametrize(
    "name", ["cifar10", "cifar10_jpeg", "imagenette", "tiny_imagenet", "imagenet2012"]
)
def test_a_missing_data_set_names_the_flag(name: str, tmp_path: Path) -> None:
    given = ("--data", name, "--data-dir", str(tmp_path / "data_dir"))
    with pytest.raises(SystemExit) as ended:
        COMMANDS["imagenet_inception"][0](given)
    assert "with TFDS_DATA_DIR, data_dir or --data-dir" in str(ended.value)
    assert f"is not in {tmp_path}/data_dir/" in str(ended.value)


@pytest.mark.parametrize("command", ["imagenet_inception", "mnist_lenet"])
def test_no_argument_at_all_is_a_command(command: str) -> None:
    with pytest.raises(Accepted):
        COMMANDS[command][0](())


if __name__ == "__main__":
    counts: Counter[tuple[str, str]] = Counter()
    with no_compute(), tempfile.TemporaryDirectory() as here, contextlib.chdir(here):
        for each in cases():
            judged, words = verdict(each)
            counts[each.command, judged] += 1
            if judged != "named":
                print(judged, each.command, each.argv, "|", words[-300:], flush=True)
    for key, count in sorted(counts.items()):
        print(*key, count)
