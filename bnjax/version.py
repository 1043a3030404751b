"""The version, once: `pyproject.toml` reads it here, and so does a record of the code that runs."""

__version__ = "0.10.0"
