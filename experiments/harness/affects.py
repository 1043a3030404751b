"""What a field of a configuration or of an arm affects; identities and shared programs follow.

@dataclass(frozen=True)
class Config:
    width: float = network(0.125)
    seeds: int = nothing(1)
"""

from collections.abc import Callable
from dataclasses import Field, field, fields
from typing import Any, Literal, TypeVar, cast

Affects = Literal["network", "training", "numbers", "views", "arm", "nothing"]
T = TypeVar("T")


def _affects(what: Affects) -> Callable[[T], T]:
    def declare(default: T) -> T:
        # A factory: as a default the value would be the class's too, for programs to read.
        return cast(T, field(default_factory=lambda: default, metadata={"affects": what}))

    return declare


network = _affects("network")
"""Declares a field that the network depends on, so that every program does."""
training = _affects("training")
"""Declares a field that only the program that trains depends on."""
numbers = _affects("numbers")
"""Declares a field that no program depends on, but the run's numbers or its log."""
views = _affects("views")
"""Declares a field that what the network sees of the data depends on."""
arm = _affects("arm")
"""Declares a field that, unless it is None, takes the place of the arm's field of its name."""
nothing = _affects("nothing")
"""Declares a field that does not tell a run from others of its arm, seed, length and data.

It says which runs there are, or what a record states by itself.
"""


def affected(item: Field, of: Any) -> Affects:
    """Returns what a field of a dataclass, or of an instance of one, affects.

    Raises:
        TypeError: if the field does not say it.
    """
    if "affects" not in item.metadata:
        kind = of if isinstance(of, type) else type(of)
        raise TypeError(
            f"{kind.__name__}.{item.name} does not say what it affects: give its default to one of "
            f"the functions of experiments/harness/affects.py, as in `{item.name}: ... = "
            "network(...)`."
        )
    return item.metadata["affects"]


def names(record: Any, *kinds: Affects) -> list[str]:
    """Returns the names of those fields of a dataclass that affect one of `kinds`."""
    return [item.name for item in fields(record) if affected(item, record) in kinds]


def values(record: Any, *kinds: Affects) -> dict[str, Any]:
    """Returns the values of the same fields, by name."""
    return {name: getattr(record, name) for name in names(record, *kinds)}


def identity(record: Any) -> dict[str, Any]:
    """Returns all values that a run's numbers depend on."""
    return values(record, "network", "training", "numbers", "views")


def defaults(kind: type) -> dict[str, Any]:
    """Returns the defaults of a dataclass's fields that a run's numbers depend on, by name."""
    stated = names(kind, "network", "training", "numbers", "views")
    given = {item.name: item.default_factory for item in fields(kind)}
    return {name: make() for name in stated if callable(make := given[name])}


def programs(record: Any) -> dict[str, Any]:
    """Returns the values that the compiled programs depend on: runs that agree share them."""
    return values(record, "network", "training")
