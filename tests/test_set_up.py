"""What the notebooks' set-up cell fetches and installs; nothing is installed here."""

import runpy
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CELL = (ROOT / "notebooks" / "set_up_cell.py").read_text()
REPOSITORY = 'REPOSITORY = "https://github.com/bnjax/bnjax"'


class Pip:
    """Stands in for pip and for what is installed; keeps the commands and their constraints."""

    def __init__(self, monkeypatch, fails="", **versions):
        self.commands, self.constraints, self.fails = [], [], fails
        self.versions = versions
        known, run = metadata.version, subprocess.run

        def version(package):
            found = self.versions.get(package, known(package) if package != "absent" else None)
            if found is None:
                raise metadata.PackageNotFoundError(package)
            return found

        def run_pip(command, **settings):
            if command[1:4] != ["-m", "pip", "install"]:
                return run(command, **settings)
            assert command[0] == sys.executable
            file = command[command.index("--constraint") + 1]
            self.constraints = Path(file).read_text().splitlines()
            self.commands.append(command[command.index("--constraint") + 2 :])
            return subprocess.CompletedProcess(command, bool(self.fails), "", self.fails)

        monkeypatch.setattr(metadata, "version", version)
        monkeypatch.setattr(subprocess, "run", run_pip)


@pytest.fixture
def in_clone(monkeypatch):
    monkeypatch.chdir(ROOT / "notebooks")
    monkeypatch.setattr(sys, "path", list(sys.path))


def run_cell(repository=None):
    source = CELL
    if repository is not None:
        assert REPOSITORY in source
        source = source.replace(REPOSITORY, f'REPOSITORY = "{repository}"')
    exec(source, {"__name__": "__main__"})


def git(folder, *arguments):
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path):
    """One that has what the cell asks of it."""
    folder = tmp_path / "origin"
    (folder / "notebooks").mkdir(parents=True)
    (folder / "notebooks/set_up.py").write_text("def set_up(clone): print('first', clone.name)\n")
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "first")
    return folder


def test_nothing_is_installed_where_all_is_there(monkeypatch, in_clone, capsys):
    pip = Pip(monkeypatch)
    run_cell()
    assert pip.commands == []
    assert f"jax {metadata.version('jax')}" in capsys.readouterr().out


def test_what_is_missing_is_added_and_nothing_moved(monkeypatch, in_clone):
    pip = Pip(monkeypatch, bnjax=None, tyro=None, tqdm=None)
    run_cell()
    (command,) = pip.commands
    assert command[:2] == ["--editable", str(ROOT)]
    assert {name.partition(">")[0] for name in command[2:]} == {"tqdm", "tyro"}
    kept = {line.partition("==")[0]: line for line in pip.constraints}
    for name in ("jax", "jaxlib", "flax", "numpy"):
        assert kept[name] == f"{name}=={metadata.version(name)}"
    assert "bnjax" not in kept


def test_an_older_bnjax_is_updated(monkeypatch, in_clone, capsys):
    pip = Pip(monkeypatch, bnjax="0.1.0")
    run_cell()
    assert pip.commands == [["--editable", str(ROOT)]]
    assert "bnjax 0.1.0 becomes" in capsys.readouterr().out


def test_an_older_bnjax_that_is_imported_needs_a_restart(monkeypatch, in_clone):
    import bnjax

    Pip(monkeypatch)
    monkeypatch.setattr(bnjax, "__version__", "0.1.0")
    with pytest.raises(RuntimeError, match="restart it"):
        run_cell()


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        ({"jax": None}, "install the JAX that fits your device"),
        ({"jax": "0.6.2"}, r"bnjax needs jax.*; jax 0\.6\.2 is installed\. pip install"),
    ],
)
def test_another_jax_is_never_installed(monkeypatch, in_clone, versions, message):
    pip = Pip(monkeypatch, **versions)
    with pytest.raises(RuntimeError, match=message) as caught:
        run_cell()
    assert caught.value._render_traceback_() == [str(caught.value)]
    assert pip.commands == []


def test_on_colab_the_remedy_is_another_runtime(monkeypatch, in_clone):
    Pip(monkeypatch, jax="0.6.2")
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    with pytest.raises(RuntimeError, match="Runtime version: latest"):
        run_cell()


def test_a_failing_pip_is_one_line(monkeypatch, in_clone):
    Pip(monkeypatch, fails="WARNING: retrying\nERROR: no such thing\nERROR: more", tyro=None)
    with pytest.raises(RuntimeError, match=r"\(no such thing\)\. Is there a network") as caught:
        run_cell()
    assert "\n" not in str(caught.value)


def test_colab_without_an_accelerator_is_warned_of(monkeypatch, in_clone, capsys):
    Pip(monkeypatch)
    run_cell()
    assert "WARNING" not in capsys.readouterr().out
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    run_cell()
    assert "WARNING: JAX runs on this Colab's CPU" in capsys.readouterr().out


def test_outside_a_clone_one_is_fetched_then_updated(monkeypatch, tmp_path, repository, capsys):
    colab = tmp_path / "content"
    colab.mkdir()
    monkeypatch.chdir(colab)
    run_cell(repository)
    (repository / "notebooks/set_up.py").write_text("def set_up(clone): print('second')\n")
    git(repository, "commit", "--quiet", "-am", "second")
    run_cell(repository)
    assert capsys.readouterr().out == "first bnjax-clone\nsecond\n"
    assert git(colab / "bnjax-clone", "rev-list", "--count", "HEAD") == "1\n"


def test_edits_in_the_fetched_clone_are_not_lost(monkeypatch, tmp_path, repository):
    colab = tmp_path / "content"
    colab.mkdir()
    monkeypatch.chdir(colab)
    run_cell(repository)
    edited = colab / "bnjax-clone/notebooks/set_up.py"
    edited.write_text("def set_up(clone): print('mine')\n")
    (repository / "notebooks/set_up.py").write_text("def set_up(clone): print('second')\n")
    git(repository, "commit", "--quiet", "-am", "second")
    with pytest.raises(RuntimeError, match="is not to be had"):
        run_cell(repository)
    assert "mine" in edited.read_text()


def test_a_repository_out_of_reach_is_one_line(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match="check REPOSITORY and REF") as caught:
        run_cell(tmp_path / "nowhere")
    assert caught.value._render_traceback_() == [str(caught.value)]
    assert "\n" not in str(caught.value)


def test_extras_that_name_extras_are_followed():
    namespace = runpy.run_path(str(ROOT / "notebooks" / "set_up.py"))
    project = {
        "name": "bnjax",
        "dependencies": ["jax>=0.7.2"],
        "optional-dependencies": {
            "all": ["bnjax[data]", "tyro"],
            "data": ["grain>=0.2; python_version >= '3'", "torch; python_version < '3'"],
        },
    }
    found = namespace["requirements"](project, "all")
    assert [needed.name for needed in found] == ["jax", "tyro", "grain"]
