"""Packages that come with extras of bnjax: asked for where they are needed, named where missing."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class MissingExtraError(ImportError):
    """A package is not installed; the message names it and the command that installs it."""


@contextmanager
def extra(name: str) -> Iterator[None]:
    """For the imports inside, which the extra makes possible.

    Args:
        name: of an extra in pyproject.toml.

    Raises:
        MissingExtraError: a package is not installed. One that is installed and broken raises
            what it raises.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        package = _PACKAGES.get(module, module)
        raise MissingExtraError(
            f"this needs {package}: {install(name)}", name=error.name
        ) from error


def install(name: str) -> str:
    """Returns the command that installs an extra; in a clone, with the versions of its results."""
    pinned = "constraints-colab.txt" if "COLAB_RELEASE_TAG" in os.environ else "constraints.txt"
    if (Path(__file__).parents[1] / pinned).exists():
        return f"pip install -c {pinned} -e '.[{name}]'"
    return f"pip install 'bnjax[{name}]'"


_PACKAGES = {
    "PIL": "pillow",
    "array_record": "array-record",
    "orbax": "orbax-checkpoint",
    "tensorflow_datasets": "tensorflow-datasets",
}
"""Names on the package index, where they are not those of the modules."""
