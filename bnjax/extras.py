"""Packages that come with extras of bnjax: asked for where they are needed, named where missing."""

from collections.abc import Iterator
from contextlib import contextmanager


class MissingExtraError(ImportError):
    """A package is not installed; the message names it and the command that installs it."""


@contextmanager
def extra(name: str) -> Iterator[None]:
    """For the imports inside, which `pip install 'bnjax[NAME]'` makes possible.

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
            f"this needs {package}: pip install 'bnjax[{name}]'", name=error.name
        ) from error


_PACKAGES = {
    "PIL": "pillow",
    "array_record": "array-record",
    "orbax": "orbax-checkpoint",
    "tensorflow_datasets": "tensorflow-datasets",
}
"""Names on the package index, where they are not those of the modules."""
