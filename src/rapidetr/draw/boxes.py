"""Boxes, masks and labels on a picture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rapidetr.core.detections import Detections
from rapidetr.core.errors import ConfigError
from rapidetr.draw.colors import Color, class_color, text_color
from rapidetr.pixels.decode import load_picture

FILL_OPACITY = 100  # of 255


def draw_detections(
    detections: Detections, image: Any, *, masks: bool = True, labels: bool = True, thickness: int | None = None
) -> Image.Image:
    """The picture in RGB with what was found in it, best on top; `image` is what `predict` was given, or its pixels.

    Line and letter size follow the size of the picture unless `thickness`, in pixels, says otherwise. A class always has
    the same color. Raises ConfigError when the picture has another size than the detections.
    """
    picture = _as_image(load_picture(image).pixels)
    width, height = picture.size
    if detections.image_hw != (height, width):
        found = f"{detections.image_hw[0]}x{detections.image_hw[1]}"
        raise ConfigError(
            f"detections are of a picture of {found} (height x width), this one is {height}x{width}; draw on the same picture"
        )
    if thickness is not None and thickness < 1:
        raise ConfigError(f"thickness is {thickness}; expected at least 1 pixel")
    line = thickness or max(1, round((height * width) ** 0.5 / 300))
    colors = [class_color(i) for i in detections.class_ids.tolist()]
    worst_first = range(len(detections) - 1, -1, -1)
    if masks and detections.masks is not None:
        for i in worst_first:
            _paint_mask(picture, *detections.masks.crop(i), colors[i], line)
    pen = ImageDraw.Draw(picture)
    corners = _pixel_corners(detections.boxes_xyxy_px, (height, width))
    for i in worst_first:
        pen.rectangle(corners[i], outline=colors[i], width=line)
    if labels:
        _write_labels(pen, detections, corners, colors, (height, width))
    return picture


def _as_image(pixels: np.ndarray) -> Image.Image:
    """A PIL copy of uint8 or float 0..1 [H, W, 3]."""
    return Image.fromarray(pixels if pixels.dtype == np.uint8 else np.rint(pixels * 255).astype(np.uint8))


def _pixel_corners(boxes_xyxy_px: np.ndarray, size_hw: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """First and last column and row that each box covers, as left, top, right, bottom."""
    last = np.array([size_hw[1], size_hw[0]]) - 1
    first = np.clip(np.floor(boxes_xyxy_px[:, :2]), 0, last)
    end = np.clip(np.ceil(boxes_xyxy_px[:, 2:]) - 1, first, last)
    return [(x0, y0, x1, y1) for x0, y0, x1, y1 in np.concatenate([first, end], axis=1).astype(int).tolist()]


def _paint_mask(picture: Image.Image, corner_yx: tuple[int, int], crop: np.ndarray, color: Color, line: int) -> None:
    """Fill a mask so that the picture shines through, and draw its outline inside it; memory for this one crop only."""
    if not crop.size:
        return
    inner = np.pad(crop, line)
    for _ in range(line):
        core = inner[1:-1, 1:-1]
        inner = core & inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    opacity = np.where(crop, np.where(inner, np.uint8(FILL_OPACITY), np.uint8(255)), np.uint8(0))
    picture.paste(color, (corner_yx[1], corner_yx[0]), Image.fromarray(opacity))


def _write_labels(
    pen: ImageDraw.ImageDraw,
    detections: Detections,
    corners: list[tuple[int, int, int, int]],
    colors: list[Color],
    size_hw: tuple[int, int],
) -> None:
    """Name and score at each box, inside the picture; the best detections choose their place first and are written last."""
    letters = max(10, round((size_hw[0] * size_hw[1]) ** 0.5 / 45))
    font, pad = _font(letters, ascii_only="".join(detections.class_names).isascii()), letters // 5
    text_height = int(np.ceil(pen.textbbox((0, 0), "Ågy", font)[3]))
    taken = np.zeros((0, 4))
    placed = []
    for i, (name, score) in enumerate(zip(detections.class_names, detections.scores.tolist(), strict=True)):
        room = min(size_hw[1], max(corners[i][2] + 1 - corners[i][0], 15 * letters)) - 2 * pad
        text, wide = _fit(pen, font, name or f"row {detections.head_rows[i]}", f" {score:.2f}", room)
        place = _free_place(corners[i], (text_height + pad, wide + 2 * pad), size_hw, taken)
        taken = np.concatenate([taken, [place]])
        placed.append((place, text, colors[i]))
    for place, text, color in reversed(placed):
        pen.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=color)
        pen.text((place[0] + pad, place[1]), text, text_color(color), font)


def _font(size: int, ascii_only: bool) -> Any:
    """Pillow's own letters; for names that it has no letters for, the first font of this machine that may have them."""
    for name in () if ascii_only else ("NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "msyh.ttc", "DejaVuSans.ttf"):
        with suppress(OSError):
            return ImageFont.truetype(name, size)
    return ImageFont.load_default(size=size)


def _fit(pen: ImageDraw.ImageDraw, font: Any, name: str, score: str, room: int) -> tuple[str, int]:
    """(name and score on one line, its width in pixels), the name cut so that the width stays within `room`."""
    name = " ".join(name[:200].encode("utf-8", "replace").decode().split())
    while (wide := int(np.ceil(pen.textlength(name + score, font)))) > room and len(name) > 1:
        name = name[:-2] + "…"
    return name + score, wide


def _places(box: tuple[int, int, int, int], label_hw: tuple[int, int], size_hw: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Places for a label at a box, kept inside the picture, most wanted first: above, inside at the top, below, at either end."""
    h, w = label_hw
    for y in (box[1] - h, box[1], box[3] + 1, box[3] + 1 - h):
        for x in (box[0], box[2] + 1 - w):
            x0, y0 = max(0, min(x, size_hw[1] - w)), max(0, min(y, size_hw[0] - h))
            yield x0, y0, x0 + w, y0 + h


def _free_place(
    box: tuple[int, int, int, int], label_hw: tuple[int, int], size_hw: tuple[int, int], taken: np.ndarray
) -> tuple[int, int, int, int]:
    """The first place that covers no other label, or else the one that covers the least of them."""
    best, least = (0, 0, 0, 0), float("inf")
    for place in _places(box, label_hw, size_hw):
        low, high = np.maximum(taken[:, :2], place[:2]), np.minimum(taken[:, 2:], place[2:])
        covered = float(np.clip(high - low, 0, None).prod(axis=1).sum())
        if covered < least:
            best, least = place, covered
    return best
