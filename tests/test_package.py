"""What `pip install bnjax` brings: a light library, the rest by extras; the wheel; its types."""

import ast
import os
import runpy
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
FILES = [file for room in ("bnjax", "experiments") for file in sorted((ROOT / room).rglob("*.py"))]
COMMANDS = [file for file in FILES if '\nif __name__ == "__main__":' in file.read_text()]

HIDDEN = (
    *("PIL", "array_record", "grain", "h5py", "importlib_resources", "matplotlib", "scipy"),
    *("orbax.checkpoint", "tensorboardX", "tensorflow_datasets", "tqdm", "tyro"),
)
HIDE = f"import sys\nfor name in {HIDDEN}:\n    sys.modules[name] = None\n"


def python(tmp_path, *arguments: str, **options) -> subprocess.CompletedProcess:
    settings = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | settings,
        cwd=tmp_path,
        text=True,
        timeout=300,
        **{"capture_output": True, **options},
    )


@pytest.mark.slow
def test_the_light_library_needs_no_extra(tmp_path):
    program = f"""{HIDE}
import jax
import bnjax.doctor, bnjax.nnx, bnjax.recalibration, bnjax.training.optimizers
from bnjax.data import in_memory, open_data
from bnjax.inference import export, fold_model
from bnjax.linen import BatchNorm
from bnjax.models import MLP, load_safetensors, save_safetensors

images = in_memory(open_data("mnist5k")).test.images[:3].astype("float32")
model = MLP(norm=BatchNorm)
variables = model.init(jax.random.key(0), images, train=False)
save_safetensors(variables, "mlp.safetensors")
variables = load_safetensors("mlp.safetensors").variables
folded = fold_model(model, variables, images, train=False)
file = export(folded.apply, folded.variables, images, train=False)
print(folded.apply(folded.variables, images, train=False).shape)
"""
    ended = python(tmp_path, "-c", program)
    assert (ended.stdout, ended.returncode) == ("(3, 10)\n", 0), ended.stderr


MISSING = {
    "bnjax.data.open_data('mnist', data_dir='.')": ("tensorflow-datasets", "data"),
    "import bnjax.data.views.decoding": ("pillow", "data"),
    "import bnjax.data.prepare.imagenet": ("tyro", "data"),
    "bnjax.training.checkpoints.Checkpoints('.', config={})": ("orbax-checkpoint", "train"),
    "bnjax.progress.ProgressBar(1, description='', unit='')": ("tqdm", "train"),
    "bnjax.training.tensorboard.require_tensorboard()": ("tensorboardX", "tensorboard"),
    "import bnjax.evidence.figures": ("matplotlib", "figures"),
    "import bnjax.evidence.report": ("pillow", "figures"),
    "bnjax.models.pretrained.keras_files.read_keras('x')": ("h5py", "pretrained"),
    "import experiments.mnist_lenet": ("tyro", "experiments"),
}


@pytest.mark.slow
def test_a_missing_extra_is_named_where_it_is_needed(tmp_path):
    """Each in one line, with the command that brings it."""
    program = f"""{HIDE}
import bnjax.data, bnjax.models.pretrained.keras_files, bnjax.training.checkpoints
import bnjax.progress, bnjax.training.tensorboard
from bnjax.extras import MissingExtraError
for statement in {list(MISSING)}:
    try:
        exec(statement)
    except MissingExtraError as error:
        print(error)
"""
    ended = python(tmp_path, "-c", program)
    pip = "pip install -c constraints.txt -e"
    wanted = [f"this needs {of}: {pip} '.[{by}]'" for of, by in MISSING.values()]
    assert ended.stdout.splitlines() == wanted, ended.stderr
    assert {by for _, by in MISSING.values()} <= set(EXTRAS)


def test_without_a_clone_an_extra_is_the_packages(tmp_path):
    copied = tmp_path / "bnjax" / "extras.py"
    copied.parent.mkdir()
    shutil.copy(ROOT / "bnjax" / "extras.py", copied)
    assert runpy.run_path(str(copied))["install"]("page") == "pip install 'bnjax[page]'"


def test_every_extra_that_is_asked_for_is_one():
    asked = {
        node.args[0].value
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "extra"
    }
    page = {"page"}  # tests/experiments/test_results_page.py
    assert asked == {by for _, by in MISSING.values()} | page <= set(EXTRAS)


@pytest.mark.slow
def test_a_command_ends_quietly_when_its_reader_has_gone(tmp_path):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        ended = python(
            *(tmp_path, "-m", "bnjax.models", "mlp"),
            **{"capture_output": False, "stdout": closed, "stderr": subprocess.PIPE},
        )
    assert (ended.stderr, ended.returncode) == ("", 128 + 13)


def test_every_command_ends_so():
    assert {"doctor", "models", "mnist_lenet", "benchmarks"} <= {f.parent.name for f in COMMANDS}
    words = ("command()", "run_command(")
    assert not [f for f in COMMANDS if not any(word in f.read_text() for word in words)]


@pytest.mark.slow
def test_the_doctor_helps(tmp_path):
    ended = python(tmp_path, "-m", "bnjax.doctor", "--help")
    assert ended.stdout.startswith("usage: python -m bnjax.doctor [-h]")
    assert "backend" not in ended.stdout


@pytest.mark.slow
def test_the_wheel_holds_bnjax_alone(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("bnjax", "experiments"):
        ignored = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    command = (
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        ".",
        "./source",
    )
    ended = python(tmp_path, *command)
    assert ended.returncode == 0, ended.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"bnjax"}
    assert {"bnjax/py.typed", "bnjax/data/mnist5k/mnist5k.npz"} <= set(names)


@pytest.mark.slow
def test_mypy_finds_a_users_wrong_keyword(tmp_path):
    (tmp_path / "user.py").write_text(
        """import bnjax, bnjax.linen, bnjax.nnx
import jax.numpy as jnp
from flax import nnx

params, stats = bnjax.init_params(3), bnjax.init_stats(3)
bnjax.normalize_batch(jnp.ones((4, 3)), params, stats, averaging="emma")
bnjax.linen.BatchNorm(averaging="emma")
bnjax.nnx.BatchNorm(3, averaging="emma", rngs=nnx.Rngs(0))
bnjax.nnx.BatchNorm(3, averaging="ema", rngs=nnx.Rngs(0))
"""
    )
    pytest.importorskip("mypy")
    (tmp_path / "bnjax").symlink_to(ROOT / "bnjax")
    flags = ("--config-file=", "--follow-imports=silent", "--cache-dir=cache")
    ended = python(tmp_path, "-m", "mypy", *flags, "user.py")
    lines = ended.stdout.splitlines()
    assert [line.split(":")[1] for line in lines[:-1]] == ["6", "7", "8"], ended.stdout
    assert all('"averaging"' in line for line in lines[:-1])
