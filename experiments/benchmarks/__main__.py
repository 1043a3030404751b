"""python -m experiments.benchmarks NAME: speed, measured beside named peers in one run."""

import json
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from bnjax.command import command
from bnjax.data import in_memory, open_data
from bnjax.evidence.records import require_commit
from bnjax.training.parallel import one_cpu_device_per_core
from experiments.benchmarks import (
    batch_norm,
    input_pipeline,
    memory,
    mnist,
    networks,
    train_step,
)
from experiments.harness.command_line import ending, output_folder

_RESULTS = Path(__file__).parent / "results"


def run_mnist(
    config: Annotated[mnist.Config, tyro.conf.arg(name="")] = mnist.Config(),  # noqa: B008 - frozen
    out: Path = Path("runs/benchmarks"),
    data_dir: Path | None = None,
) -> None:
    """Training speed on the paper's MNIST network: bnjax, a Flax loop, eager PyTorch.

    Args:
        config: what to measure.
        out: Where mnist.json and mnist.md are written.
        data_dir: Where prepared data sets are; by default $TFDS_DATA_DIR, else
            ~/tensorflow_datasets.
    """
    jax.config.update("jax_platforms", "cpu")  # all programs on the same cores
    one_cpu_device_per_core()
    out = _prepare(out)
    result = mnist.measure(config, in_memory(open_data(config.data, data_dir=data_dir)))
    _write(out, mnist, result)


def run_batch_norm(
    config: Annotated[batch_norm.Config, tyro.conf.arg(name="")] = batch_norm.Config(),  # noqa: B008
    out: Path = Path("runs/benchmarks"),
) -> None:
    """One layer, forward and backward: time, memory, accuracy, collectives; beside every peer.

    Args:
        config: what to measure.
        out: Where batch_norm.json and batch_norm.md are written.
    """
    if config.keep_memory:
        memory.restart_keeping_memory()
    _run(batch_norm, config, out)


def run_train_step(
    config: Annotated[train_step.Config, tyro.conf.arg(name="")] = train_step.Config(),  # noqa: B008
    out: Path = Path("runs/benchmarks"),
) -> None:
    """A train step of a narrow BN-Inception: what normalization adds to it.

    Args:
        config: what to measure.
        out: Where train_step.json and train_step.md are written.
    """
    if config.keep_memory:
        memory.restart_keeping_memory()
    _run(train_step, config, out)


def run_networks(
    config: Annotated[networks.Config, tyro.conf.arg(name="")] = networks.Config(),  # noqa: B008
    out: Path = Path("runs/benchmarks"),
) -> None:
    """A train step of BN-Inception, narrow and whole, in bnjax and in PyTorch.

    Args:
        config: what to measure.
        out: Where networks.json and networks.md are written.
    """
    if config.keep_memory:
        memory.restart_keeping_memory()
    _run(networks, config, out)


def run_input_pipeline(
    config: Annotated[input_pipeline.Config, tyro.conf.arg(name="")] = input_pipeline.Config(),  # noqa: B008
    out: Path = Path("runs/benchmarks"),
) -> None:
    """Training crops from full-size JPEG files on one core: bnjax, tf.data.

    Args:
        config: what to measure.
        out: Where input_pipeline.json and input_pipeline.md are written.
    """
    _run(input_pipeline, config, out)


@command()
def main() -> None:
    """Reads the command line and runs one benchmark."""
    with ending("experiments.benchmarks"):
        tyro.extras.subcommand_cli_from_dict(
            {
                "batch_norm": run_batch_norm,
                "input_pipeline": run_input_pipeline,
                "mnist": run_mnist,
                "networks": run_networks,
                "train_step": run_train_step,
            },
            prog="python -m experiments.benchmarks",
            config=(tyro.conf.OmitArgPrefixes,),
        )


def _run(benchmark: Any, config: Any, out: Path) -> None:
    out = _prepare(out)
    _write(out, benchmark, benchmark.measure(config))


def _prepare(out: Path) -> Path:
    """Makes the folder, before anything is measured; committed results need a clean commit."""
    require_commit(out, _RESULTS)
    return output_folder(out)


def _write(out: Path, benchmark: Any, result: dict[str, Any]) -> None:
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
