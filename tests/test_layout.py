"""The arrows of docs/design.md, held against all imports; what importing costs; docstrings."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import bnjax

ROOT = Path(__file__).parent.parent
ROOMS = ("bnjax", "experiments")
LONGEST = 500  # lines of a file that holds one idea


def arrows() -> dict[str, set[str]]:
    """What each room may import of this repository besides itself: the table of docs/design.md."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    section = text.partition("## 3. The arrows\n")[2].partition("\n## ")[0]
    allowed = {}
    for left, right in re.findall(r"^\| (`.+`) \| (.+) \|$", section, re.MULTILINE):
        for name in re.findall(r"`(.+?)`", left):
            assert name not in allowed, f"{name} has two rows"
            allowed[name] = set(re.findall(r"`(.+?)`", right))
    return allowed


ALLOWED = arrows()
HEAVY = ("tensorflow", "tensorflow_datasets", "grain", "orbax", "matplotlib")


def modules() -> dict[str, Path]:
    """Every module of the repository's packages, by name."""
    files = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    names = {}
    for path in files:
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imported(path: Path, module: str) -> set[str]:
    """Modules that a file imports anywhere in it, functions included."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]).rstrip(".")
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else base for name in names}
    return found


def room(module: str) -> str:
    """The room of a module: the longest name that it begins with, or a folder of `experiments`."""
    rooms = [name for name in ALLOWED if within(module, {name})]
    folder = ".".join(module.split(".")[:2])
    return max([*rooms, *[folder] * folder.startswith("experiments.")], key=len)


def may_import(module: str) -> set[str]:
    """The room of a module, unless that is a package's `__init__.py`, and what the table says."""
    own = room(module)
    return ALLOWED.get(own, ALLOWED["experiments.*"]) | ({own} - set(ROOMS))


def within(module: str, rooms: set[str]) -> bool:
    return any((module + ".").startswith(name + ".") for name in rooms)


MODULES = modules()


def test_the_modules_are_found():
    """Otherwise the tests below would hold for nothing."""
    found = {"bnjax", "bnjax.training.loop", "bnjax.normalization.moments"}
    assert found | {"bnjax.linen", "experiments.harness.images.train"} <= set(MODULES)
    loop = imported(MODULES["bnjax.training.loop"], "bnjax.training.loop")
    assert {"signal", "jax", "bnjax.training.checkpoints"} <= loop


def test_each_room_is_there():
    """A row for what is gone would allow nothing, and hold nothing."""
    named = set(ALLOWED).union(*ALLOWED.values()) - {"experiments.*"}
    assert named <= {*MODULES, *ROOMS}
    assert {module for module in MODULES if room(module) in ROOMS} == set(ROOMS)


@pytest.mark.parametrize("module", MODULES)
def test_arrows_run_one_way(module):
    names = imported(MODULES[module], module)
    ours = {name for name in names if within(name, set(ROOMS))}
    wrong = {name for name in ours if not within(name, may_import(module))}
    assert not wrong, f"{module} must not import {sorted(wrong)}"
    assert not any(within(name, {"notebooks", "tests"}) for name in names)


def test_no_module_imports_itself_by_way_of_others():
    """Imports in functions count: a circle that they hide is one. Seen red with benchmarks'."""
    graph = {module: imported(path, module) & set(MODULES) for module, path in MODULES.items()}
    TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_normalization_can_be_lifted_out():
    """It imports JAX, the standard library and itself."""
    for module, path in MODULES.items():
        if not within(module, {"bnjax.normalization"}):
            continue
        tops = {name.partition(".")[0] for name in imported(path, module)}
        assert tops - set(sys.stdlib_module_names) <= {"jax", "bnjax"}, module


def test_jit_and_placing_are_said_in_one_room():
    """design.md: only `training/parallel` says jit, pmap, shard_map, mesh and donate."""
    words = {"jit", "pmap", "shard_map", "Mesh", "NamedSharding", "donate_argnums"}
    for module, path in MODULES.items():
        if not within(module, {"bnjax.compilers", "bnjax.models", "bnjax.training"}):
            continue
        tree = ast.walk(ast.parse(path.read_text()))
        said = {getattr(node, "attr", None) or getattr(node, "id", None) for node in tree}
        room = "bnjax.training.parallel"
        speaks = module in {f"{room}.data_parallel", f"{room}.members"}
        assert bool(words & said) == speaks, module


def test_imports_stay_light():
    """In a process of its own: this one has imported everything already."""
    light = ["bnjax", "bnjax.normalization", "bnjax.linen", "bnjax.models", "bnjax.data"]
    light += ["bnjax.nnx", "bnjax.inference", "bnjax.recalibration", "bnjax.doctor"]
    light += ["bnjax.progress", "bnjax.whitening"]
    light += [name for name in MODULES if within(name, {"bnjax.compilers", "bnjax.training"})]
    lines = [
        "import importlib, sys",
        f"for name in {light}:",
        "    importlib.import_module(name)",
        f"    heavy = [other for other in {HEAVY} if other in sys.modules]",
        "    assert not heavy, f'{name} imports {heavy}'",
        "import jax._src.xla_bridge as bridge",
        "assert not bridge._backends, 'importing starts a backend'",
    ]
    command = [sys.executable, "-c", "\n".join(lines)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def public():
    """Names with the objects behind them: of each __all__, and of modules without one."""
    for info in pkgutil.walk_packages(bnjax.__path__, "bnjax."):
        module = importlib.import_module(info.name)
        names = getattr(module, "__all__", None)
        if names is None:
            names = [
                name
                for name, value in vars(module).items()
                if not name.startswith("_")
                and (inspect.isclass(value) or inspect.isfunction(value))
                and value.__module__ == info.name
            ]
        for name in names:
            yield f"{info.name}.{name}", getattr(module, name)
    for name in bnjax.__all__:
        yield f"bnjax.{name}", getattr(bnjax, name)


def own_docstring(value) -> str:
    """What was written for it: not a base class's, nor what namedtuple and dataclass make up."""
    text = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    return "" if not text or text.startswith(f"{value.__name__}(") else text


def test_every_public_name_has_a_docstring():
    values = {
        name: value
        for name, value in public()
        if inspect.isclass(value) or inspect.isfunction(value)
    }
    assert {"bnjax.normalize_batch", "bnjax.models.LeNet5", "bnjax.training.loop.fit"} <= set(
        values
    )
    assert not [name for name, value in values.items() if not own_docstring(value)]


def test_every_module_says_what_it_is():
    for module, path in MODULES.items():
        assert ast.get_docstring(ast.parse(path.read_text())), module


@pytest.mark.parametrize("module", MODULES)
def test_no_file_outgrows_its_idea(module):
    lines = len(MODULES[module].read_text().splitlines())
    assert lines <= LONGEST, f"{module} has {lines} lines: split it"


def test_there_is_no_room_for_leftovers():
    """design.md: a helper without a room is a sign that a room is missing."""
    names = {path.stem for path in MODULES.values()}
    assert not names & {"utils", "util", "helpers", "common", "misc"}
