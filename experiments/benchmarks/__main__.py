"""python -m experiments.benchmarks NAME: speed, measured beside named peers in one run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from bnjax.command import command
from bnjax.evidence.records import require_commit
from experiments.benchmarks import (
    batch_norm,
    compiled,
    input_pipeline,
    mnist,
    networks,
    networks_memory,
    train_step,
)
from experiments.benchmarks.benchmark import Benchmark, Result
from experiments.command_line import ending, output_folder

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
            {**commands, "compiled": run_compiled, "networks_memory": run_networks_memory},
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
        out = _prepare(out)
        _write(out, benchmark, benchmark.measure(config))

    run.__doc__ = benchmark.Config.__doc__
    return run


def run_compiled(
    config: Annotated[compiled.Config, tyro.conf.arg(name="")] = compiled.Config(),  # noqa: B008 - frozen
    out: Path = Path("runs/benchmarks"),
) -> None:
    """A BN-Inception step compiled for TPUs and GPUs that are not here: bytes, memory, collectives.

    Args:
        config: what to compile.
        out: Where compiled.json and compiled.md are written.
    """
    jax.config.update("jax_platforms", "cpu")  # chips are compiled for, none is used
    out = _prepare(out)
    result = compiled.measure(config, out / "compiled.rows.tmp")
    _write(out, compiled, result)


def run_networks_memory(
    config: Annotated[networks_memory.Config, tyro.conf.arg(name="")] = networks_memory.Config(),  # noqa: B008
    out: Path = Path("runs/benchmarks"),
) -> None:
    """Memory that a training step of BN-Inception and Inception-v3 takes on a chip, by batch.

    Minutes for each; a run that is cut short goes on with the same command.

    Args:
        config: what to compile.
        out: Where networks_memory.json and networks_memory.md are written.
    """
    jax.config.update("jax_platforms", "cpu")  # chips are compiled for, none is used
    out = _prepare(out)
    result = networks_memory.measure(config, out / "networks_memory.rows.tmp")
    _write(out, networks_memory, result)


def _prepare(out: Path) -> Path:
    """Makes the folder, before anything is measured; committed results need a clean commit."""
    require_commit(out, _RESULTS)
    return output_folder(out)


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
