"""Experiments: one folder a question; run from a clone, with the extra of that name."""

from bnjax.extras import extra

with extra("experiments"):
    import tyro  # noqa: F401  # every command needs it; what one needs besides, it asks for
