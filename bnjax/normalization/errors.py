"""Errors of checks that pure functions and the layers of Flax share, in the words of either."""


class Refusal(ValueError):
    """Bad input whose remedy has other names in a layer; `in_layers` says what it says there."""

    def __init__(self, problem: str, remedy: str, *, in_layers: str) -> None:
        super().__init__(f"{problem} {remedy}")
        self.in_layers = f"{problem} {in_layers}"


def in_layer(error: ValueError | NameError, layer: str) -> ValueError | NameError:
    """Returns such an error for the user of a layer: its name in front, the remedy in its words."""
    kind = NameError if isinstance(error, NameError) else ValueError
    return kind(f"{layer}: {getattr(error, 'in_layers', error)}")
