"""python -m experiments.benchmarks NAME: speed, measured beside named peers in one run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

from bnjax.command import command
from bnjax.evidence.environment import require_commit
from bnjax.paths import writable_folder
from experiments.benchmarks import (
    batch_norm,
    input_pipeline,
    mnist,
    networks,
    train_step,
)
from experiments.benchmarks.benchmark import Benchmark, Result
from experiments.harness.command_line import ending

BENCHMARKS: dict[str, Benchmark] = {
    "batch_norm": batch_norm,
    "input_pipeline": input_pipeline,
    "mnist": mnist,
    "networks": networks,
    "train_step": train_step,
}

_RESULTS = Path(__file__).parent / "results"


@command()
def main() -> None:
    """Reads the command line and runs one benchmark."""
    with ending("experiments.benchmarks"):
        commands = {name: make_command(benchmark) for name, benchmark in BENCHMARKS.items()}
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="python -m experiments.benchmarks",
            config=(tyro.conf.OmitArgPrefixes,),
        )


def make_command(benchmark: Benchmark) -> Callable[..., None]:
    """Returns the benchmark as a function whose arguments tyro reads.

    It is a function, for tyro wraps the errors that a class raises into boxes of its own.
    """

    def run(
        config: Annotated[benchmark.Config, tyro.conf.arg(name="")],  # type: ignore[name-defined]
        out: Annotated[
            Path, tyro.conf.arg(help="Folder where NAME.json and NAME.md are written.")
        ] = Path("runs/benchmarks"),
    ) -> None:
        benchmark.start(config)
        require_commit(out, _RESULTS)  # before anything is measured
        _write(writable_folder("--out", out), benchmark, benchmark.measure(config))

    run.__doc__ = benchmark.Config.__doc__
    return run


def _write(out: Path, benchmark: Any, result: Result) -> None:
    data, document = (out / f"{result['benchmark']}{suffix}" for suffix in (".json", ".md"))
    written = ""
    try:
        data.write_text(json.dumps(result, indent=1) + "\n")  # first: a table can be made again
        text = benchmark.table(result)
        document.write_text(text + "\n", encoding="utf-8")
        written = f"\n\nWritten: {data}, {document}"
    finally:  # a table needs no disk
        print(f"\n{benchmark.table(result)}{written}")


if __name__ == "__main__":
    main()
