"""Results in documents: text between markers, made from results and never by hand."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
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
    images = [Image.open(path) for path in (first, second)]
    software, sources = (
        [image.info.get(key) for image in images] for key in ("Software", "Source")
    )
    if sources[0] != sources[1] or None in sources:
        return False
    if software[0] != software[1]:
        return True
    return np.array_equal(*(np.asarray(image.convert("RGB")) for image in images))
