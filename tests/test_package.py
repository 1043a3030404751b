"""What `pip install bnjax` brings: a light library, the rest by extras; the wheel; its types."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
MODULES = {  # of packages that come with extras
    *("PIL", "absl", "array_record", "grain", "h5py", "importlib_resources", "matplotlib"),
    *("orbax", "scipy", "tensorboardX", "tensorflow_datasets", "tqdm", "tyro"),
}


def run(tmp_path, program: str, *arguments: str) -> subprocess.CompletedProcess:
    """In a process that has none of the extras, as far as bnjax can see."""
    hide = f"import sys; sys.modules |= dict.fromkeys({sorted(MODULES - {'absl', 'orbax'})})"
    hide += "; sys.modules |= {'orbax.checkpoint': None}" if "orbax" not in program else ""
    file = tmp_path / "program.py"
    file.write_text(f"{hide}\n{program}")
    return subprocess.run(
        [sys.executable, str(file), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
