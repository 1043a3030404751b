"""Results in documents: the text between markers is made from results, never by hand."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bnjax.extras import extra

with extra("figures"):
    from PIL import Image


def fill(text: str, blocks: Mapping[str, str]) -> str:
    """Replaces what stands between `<!-- begin NAME -->` and `<!-- end NAME -->`.

    Args:
        text: Markdown.
        blocks: new content by name; names that the text does not have are left out.

    Raises:
        ValueError: if the text has a name that there is no block for, or a name twice, or one that
            does not end.

    Example:
        >>> page = "<!-- begin arms --> old <!-- end arms -->"
        >>> print(fill(page, {"arms": "| BN | 97.31 |"}))
        <!-- begin arms -->
        | BN | 97.31 |
        <!-- end arms -->
    """
    begun, ended = (re.findall(rf"<!-- {word} (\S+) -->", text) for word in ("begin", "end"))
    for name in begun:
        if name not in blocks:
            raise ValueError(
                f"there is nothing to fill the marker {name!r} with; there is {', '.join(blocks)}."
            )
    if begun != ended or len(set(begun)) < len(begun):
        raise ValueError(f"each marker must begin and end once, got begin {begun} and end {ended}.")
    for name in begun:
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{blocks[name]}\n{end}{rest.partition(end)[2]}"
    return text


def same_picture(first: Path, second: Path) -> bool:
    """Whether two PNGs show the same.

    Pixel by pixel if one version of matplotlib drew both. Otherwise fonts and layout differ, and
    the digests of what was drawn are compared, which `bnjax.evidence.figures.save` writes.
    """
    (seen, pixels), (other, others) = map(_read, (first, second))
    if "Source" not in seen or seen["Source"] != other.get("Source"):
        return False
    return seen["Software"] != other["Software"] or np.array_equal(pixels, others)


def _read(path: Path) -> tuple[dict[Any, Any], np.ndarray]:
    with Image.open(path) as image:
        return dict(image.info), np.asarray(image.convert("RGB"))
