"""Results in documents: text between markers, made from results and never by hand."""

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
        blocks: new content by name.

    Raises:
        ValueError: if a name has not exactly one pair of markers in the text.
    """
    for name, content in blocks.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        found = pattern.findall(text)
        if len(found) != 1:
            raise ValueError(f"the text needs one pair of the markers {begin} and {end}.")
        text = text.replace(found[0], f"{begin}\n{content}\n{end}")
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
