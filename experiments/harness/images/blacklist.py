"""Validation images that do not count, by a list that a user has.

Szegedy et al. 2016 evaluate on 48,238 of ImageNet's 50,000 validation images: the others are on the
blacklist that came with the data of 2014, a file of their numbers.
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bnjax.data.data_set import DataError, Example, Split

LEFT_OUT = -1
"""The label of an image that does not count."""


def read_blacklist(path: Path) -> frozenset[str]:
    """Returns the names, without folder and ending, of the images that a file lists.

    Args:
        path: a text file with one image a line: its file's name, or its number among the validation
            images of ImageNet, from 1.

    Raises:
        ValueError: there is no such file, or it lists nothing, or an image twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"blacklist: {path} cannot be read ({error}).") from None
    names = [_name(line) for line in map(str.strip, lines) if line]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"blacklist: {path} must list one or more images, one a line, each once; it has "
            f"{len(names):,} lines and {len(set(names)):,} images."
        )
    return frozenset(names)


def _name(line: str) -> str:
    return f"ILSVRC2012_val_{int(line):08d}" if line.isdecimal() else PurePosixPath(line).stem


@dataclass(frozen=True)
class Blacklisted:
    """A split whose listed images have the label `LEFT_OUT`.

    Attributes:
        split: the whole one.
        names: as `read_blacklist` returns them.
    """

    split: Split
    names: frozenset[str]

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Those of the whole split."""
        return self.split.shard_sizes

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Example:
        """Reads one example; DataError, naming it, if it cannot be read."""
        example = self.split[index]
        listed = PurePosixPath(example.name.rpartition(", ")[2]).stem in self.names
        return example._replace(label=LEFT_OUT) if listed else example


def check_left_out(split: Blacklisted) -> None:
    """Raises DataError unless all listed images are in the split, each of which is read."""
    left_out = sum(split[index].label == LEFT_OUT for index in range(len(split)))
    if left_out != len(split.names):
        raise DataError(
            f"blacklist: of its {len(split.names):,} images {left_out:,} are among the "
            f"{len(split):,} validation images: the list is of another data set, or the data has "
            "no file names."
        )
