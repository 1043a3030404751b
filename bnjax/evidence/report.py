"""Results in documents: text between markers, made from results and never by hand."""

import re
from collections.abc import Mapping
from pathlib import Path

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

    Pixel by pixel if one version of matplotlib drew both; otherwise fonts and antialiasing
    differ, and the mean difference must stay below one level of 255.
    """
    images = [Image.open(path) for path in (first, second)]
    pixels = [np.asarray(image.convert("RGB"), np.int16) for image in images]
    if pixels[0].shape != pixels[1].shape:
        return False
    difference = np.abs(pixels[0] - pixels[1])
    one_version = images[0].info.get("Software") == images[1].info.get("Software")
    return bool(difference.max() == 0 if one_version else difference.mean() < 1)
