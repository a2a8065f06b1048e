"""Several pictures on one sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

SHEET_PX = 1600  # of its longer side, at most


def make_sheet(pictures: Sequence[Image.Image], cell_px: int = 400) -> Image.Image:
    """At least one picture, in a grid about as wide as it is high; none of them larger than a cell, all of them whole."""
    across = math.ceil(math.sqrt(len(pictures)))
    cells = [picture.copy() for picture in pictures]
    for cell in cells:
        cell.thumbnail((cell_px, cell_px))
    width, height = max(c.width for c in cells), max(c.height for c in cells)
    sheet = Image.new("RGB", (across * width, -(-len(cells) // across) * height), "white")
    for i, cell in enumerate(cells):
        sheet.paste(cell, (i % across * width, i // across * height))
    sheet.thumbnail((SHEET_PX, SHEET_PX))
    return sheet
