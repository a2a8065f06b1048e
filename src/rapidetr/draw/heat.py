"""A map of numbers laid on a picture, and pictures side by side with a caption each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CAPTION_PX, PANEL_PX = 18, 640  # letters; longest side of a panel


def draw_heat(values_hw: np.ndarray, size_hw: tuple[int, int], white: float) -> Image.Image:
    """Black where a value is 0, through red and yellow to white at `white` (above 0) and where it is not a number.

    Each cell of the map is stretched to its part of `size_hw`.
    """
    unit = np.nan_to_num(values_hw / white, nan=1.0)
    ramp = np.clip(3 * unit[..., None] - np.arange(3), 0, 1)
    return Image.fromarray(np.rint(255 * ramp).astype(np.uint8)).resize((size_hw[1], size_hw[0]), Image.Resampling.NEAREST)


def draw_panels(panels: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures of equal size in one row, each under its caption, which is cut where it is too long."""
    shown = []
    for caption, picture in panels:
        picture = picture.copy()
        picture.thumbnail((PANEL_PX, PANEL_PX))
        shown.append((caption, picture))
    width, height = max(p.width for _, p in shown), max(p.height for _, p in shown)
    sheet = Image.new("RGB", (len(shown) * width, height + CAPTION_PX + 8), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(CAPTION_PX)
    for i, (caption, picture) in enumerate(shown):
        sheet.paste(picture, (i * width, CAPTION_PX + 8))
        while caption and pen.textlength(caption, font) > width - 8:
            caption = caption[:-1]
        pen.text((i * width + 4, 2), caption, "black", font)
    return sheet
