"""`nnx.view`, also for Flax 0.11, which has none."""

from flax import nnx


def view(layer, **settings):
    """The layer with other settings; a copy where Flax cannot share the variables."""
    if hasattr(nnx, "view"):  # Flax 0.12
        return nnx.view(layer, **settings)
    copy = nnx.clone(layer)
    copy.set_attributes(**settings)
    return copy
