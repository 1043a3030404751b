"""What the README of an experiment holds between markers, made from its committed results."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from bnjax.evidence.figures import Form

Blocks = Callable[[Path], dict[str, str]]
"""From the folder of committed results to Markdown by the names of markers."""


class Report(ABC):
    """What is made of the runs below a folder; each part is a pure function of them."""

    block_names: ClassVar[tuple[str, ...]] = ()
    """Those of `blocks` that are cited by their folder; others by the experiment."""

    @abstractmethod
    def summarize(self, out: Path) -> dict[str, Any]:
        """Returns all numbers of the tables, JSON values."""

    @abstractmethod
    def tables(self, out: Path, summary: dict[str, Any]) -> list[str]:
        """Returns what the command prints; empty parts are left out."""

    @abstractmethod
    def blocks(self, out: Path) -> dict[str, str]:
        """Returns what a README holds of the runs below `out`, Markdown by names of markers."""

    @abstractmethod
    def draw(self, out: Path, to: Path | None = None, *, form: Form = "png") -> list[Path]:
        """Draws the figures that the runs allow into `to`, or `out` itself; returns the files."""


@dataclass(frozen=True)
class Page:
    """The committed results of an experiment, and what is made of them.

    Attributes:
        report: what is made of a folder of runs.
        folders: of runs, below the results; each has a summary.
        drawn: those of them that have figures.
        more: what else the README holds.
        made_from: folders of runs, below the results, of what `more` holds and no folder is named
            after; by block.
    """

    report: Report
    folders: tuple[str, ...] = ("",)
    drawn: tuple[str, ...] = ("",)
    more: Blocks = lambda results: {}
    made_from: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def blocks(self, results: Path) -> dict[str, str]:
        """Returns Markdown by the names of markers.

        The report's of each folder; of one below the results with its name in front.
        """
        parts: dict[str, str] = {}
        for folder in self.folders:
            for name, text in self.report.blocks(results / folder).items():
                parts[_prefix(folder) + name] = text
        return parts | self.more(results)

    def sources(self, results: Path, name: str) -> tuple[Path, ...]:
        """Returns what a block is made from, files or folders of runs.

        What has its name; what `made_from` says; for those of the report's `block_names` their
        runs; else the experiment's folder.
        """
        for own in (results / f"{name}.json", results / name):
            if own.exists():
                return (own,)
        if name in self.made_from:
            return tuple(results / folder for folder in self.made_from[name])
        for folder in self.folders:
            if name in {_prefix(folder) + block for block in self.report.block_names}:
                return (results / folder,)
        return (results.parent,)

    def summaries(self, results: Path) -> Iterator[tuple[Path, Any]]:
        """Yields the file of each folder's summary, and what it must say."""
        for folder in self.folders:
            yield results / folder / "summary.json", self.report.summarize(results / folder)


def _prefix(folder: str) -> str:
    return f"{folder.replace('/', '_')}_" if folder else ""
