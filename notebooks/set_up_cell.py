# @title Set-up: fetches the repository, installs what is missing, moves nothing that is here
REPOSITORY = "https://github.com/bnjax/bnjax"  # @param {type: "string"}
REF = "main"  # @param {type: "string"}

import os
import runpy
import subprocess
from pathlib import Path


def git(*arguments):
    """Ends the cell with one line where git cannot do what it is asked."""
    done = subprocess.run(
        ["git", "-C", str(clone), *arguments],
        env=os.environ | {"GIT_TERMINAL_PROMPT": "0"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        error = RuntimeError(
            f"{REF} of {REPOSITORY} is not to be had ({reason}): check REPOSITORY and REF above "
            "and the network, or run this notebook in a clone of the repository."
        )
        error._render_traceback_ = lambda: [str(error)]  # one line, in IPython
        raise error


folders = (Path.cwd(), *Path.cwd().parents)
clone = next((folder for folder in folders if (folder / "notebooks/set_up.py").exists()), None)
if clone is None:  # not in a clone: this cell makes one, of one commit
    clone = Path.cwd() / "bnjax-clone"
    clone.mkdir(exist_ok=True)
    git("init", "--quiet")
    git("fetch", "--quiet", "--depth=1", REPOSITORY, REF)
    git("checkout", "--quiet", "--detach", "FETCH_HEAD")
runpy.run_path(str(clone / "notebooks/set_up.py"))["set_up"](clone)
