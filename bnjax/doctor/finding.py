"""One thing that will bite, and its remedy."""

from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "note"]


class Finding(NamedTuple):
    """Something that will bite.

    Attributes:
        severity: an error does not work, or not where you think; a warning costs time, memory or
            digits; a note is worth knowing.
        what: in one or two sentences.
        remedy: what to do, with the command or the line.
    """

    severity: Severity
    what: str
    remedy: str
