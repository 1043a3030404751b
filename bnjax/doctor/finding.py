"""A finding: something that will go wrong, and its remedy."""

from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "note"]


class Finding(NamedTuple):
    """Something that will go wrong.

    Attributes:
        severity: an error does not work, or not where you think; a warning costs time, memory or
            digits; a note is worth knowing.
        what: the problem, in one or two sentences.
        remedy: the advice, with the command or the line.
    """

    severity: Severity
    what: str
    remedy: str
