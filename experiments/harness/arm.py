"""An arm: one of the networks that an experiment compares, in one record."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar

import tyro

from experiments.harness import affects
from experiments.harness.affects import nothing


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What an experiment compares; experiments add its network, its optimizer, what it changes.

    Attributes:
        name: in commands, folders and records.
        label: in tables and figures.
        color: of its curve; None for an arm that figures leave out.
        line: style of its curve, as matplotlib takes it.
        paper: the paper's numbers, cells of a table by their heads.
    """

    name: str = nothing("")
    label: str = nothing("")
    color: str | None = nothing(None)
    line: str = nothing("-")
    paper: Mapping[str, str] = field(
        default_factory=dict, compare=False, metadata={"affects": "nothing"}
    )

    def settings(self) -> dict[str, Any]:
        """Returns what tells it from other arms of its experiment, by name."""
        return affects.identity(self)

    def changed_by(self, config: Any) -> Self:
        """Returns the arm with those settings that the configuration gives to all arms."""
        given = affects.values(config, "arm")
        return replace(self, **{name: value for name, value in given.items() if value is not None})


def label_of(arm: Arm, changed: Mapping[str, Any], arms: Sequence[Arm] = ()) -> str:
    """Returns the label of an arm with some settings changed.

    It is that of the one of `arms` which it then is; or its own, with the settings behind it.
    """
    settings = {**_as_recorded(arm), **changed}
    for other in arms if changed else ():
        if type(other) is type(arm) and _as_recorded(other) == settings:
            return other.label
    return ", ".join([arm.label, *(f"{name} {value}" for name, value in changed.items())])


def _as_recorded(arm: Arm) -> dict[str, Any]:
    return json.loads(json.dumps(arm.settings()))


Kind = TypeVar("Kind", bound=Arm)


def by_name(arms: Sequence[Kind], name: str) -> Kind:
    """Returns the arm of a name.

    Raises:
        ValueError: if there is none.
    """
    for arm in arms:
        if arm.name == name:
            return arm
    raise ValueError(f"arms: unknown {name!r}; choose from {', '.join(arm.name for arm in arms)}.")


def expand_arms(config: Any, arms: Sequence[Arm], groups: Mapping[str, tuple[str, ...]]) -> None:
    """Puts the arms of a group in the place of its word, in a configuration in the making.

    An arm of several groups stands where the first of their words is.

    Raises:
        ValueError: if a name is neither an arm's nor a word.
    """
    known = [arm.name for arm in arms]
    found: list[str] = []
    of_words: set[str] = set()
    for name in config.arms:
        if name not in groups and name not in known:
            raise ValueError(
                f"arms: unknown {name!r}; choose from {', '.join(known)}, or from the words for "
                f"several: {', '.join(groups)}."
            )
        found += [arm for arm in groups.get(name, (name,)) if arm not in of_words]
        of_words.update(groups.get(name, ()))
    object.__setattr__(config, "arms", tuple(found))  # it is frozen


def arms_shown(arms: Sequence[Arm], words: Iterable[str] = ()) -> Any:
    """Returns what a configuration's field `arms` is annotated with, so that --help names them."""
    names = ",".join([*(arm.name for arm in arms), *words])
    return tyro.conf.arg(metavar=f"{{{names}}} ...")


def check_arms(given: tuple[str, ...], arms: Sequence[Arm]) -> None:
    """Raises ValueError unless names are of arms, and each once."""
    for name in given:
        by_name(arms, name)
    if not given or len(set(given)) < len(given):
        known = ", ".join(arm.name for arm in arms)
        raise ValueError(
            f"arms must name one or more of {known}, each once, got {', '.join(given) or 'none'}."
        )
