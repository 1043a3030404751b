"""python -m experiments.benchmarks NAME: speed, measured beside named peers in one run."""

import json
import sys
from pathlib import Path
from typing import Annotated

import jax
import tyro

from bnjax.data import DataError, load_dataset
from bnjax.evidence.records import environment
from bnjax.training.loop import Interrupted
from bnjax.training.parallel import one_cpu_device_per_core
from experiments.benchmarks import mnist

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
    _prepare(out)
    result = mnist.measure(config, load_dataset(config.data, data_dir=data_dir))
    text = mnist.table(result)
    (out / "mnist.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "mnist.md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n\nWritten: {out / 'mnist.json'}, {out / 'mnist.md'}")


def main() -> None:
    """Reads the command line and runs one benchmark."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            {"mnist": run_mnist},
            prog="python -m experiments.benchmarks",
            config=(tyro.conf.OmitArgPrefixes,),
        )
    except Interrupted as stop:
        print("\nStopped; nothing is written.", file=sys.stderr)
        sys.exit(128 + stop.signum)
    except (DataError, ValueError) as error:
        sys.exit(f"error: {error}")


def _prepare(out: Path) -> None:
    """Makes the folder, before anything is measured; committed results need a clean commit."""
    if out.resolve().is_relative_to(_RESULTS):
        git = environment()["git"]
        if git is None or git["dirty"]:
            raise ValueError(
                f"{out} is for results of a commit, and this checkout has changes: commit them, "
                "or choose another --out."
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--out {out} cannot be made ({error.strerror}): give a folder that you may write."
        ) from error


if __name__ == "__main__":
    main()
