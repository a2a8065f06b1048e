"""The alphabet of drawings: outlines in units of the thing (about -1..1, y down), filled with a color or cut out."""

from __future__ import annotations

import colorsys
import math
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

Color = tuple[float, float, float]  # RGB in 0..255


class Drawing(list[tuple[np.ndarray, Color | None]]):
    """Outlines, float [P, 2] as x, y, each with its color, in the order of painting; no color cuts a hole."""

    def add(self, color: Color | None, *outlines: np.ndarray) -> None:
        self += [(outline, color) for outline in outlines]


def hsv(hue: float, saturation: float, value: float) -> Color:
    """RGB in 0..255; the hue runs round once from 0 to 1, saturation and value are cut off at 1."""
    r, g, b = colorsys.hsv_to_rgb(hue % 1, min(saturation, 1), min(value, 1))
    return 255 * r, 255 * g, 255 * b


def shade(color: Color, factor: float) -> Color:
    """Darker below 1; above 1 nearer to white."""
    lift = min(max(0.0, factor - 1), 1.0)
    dim = min(factor, 1.0)
    r, g, b = color
    return r * dim + (255 - r) * lift, g * dim + (255 - g) * lift, b * dim + (255 - b) * lift


def contrast(color: Color) -> Color:
    """Nearly black on bright colors, nearly white on dark ones."""
    return (32.0, 30.0, 36.0) if 0.3 * color[0] + 0.6 * color[1] + 0.1 * color[2] > 115 else (243.0, 241.0, 235.0)


@cache
def turns(points: int) -> np.ndarray:
    angles = np.arange(points) * (2 * math.pi / points)
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def disc(x: float, y: float, rx: float, ry: float | None = None, points: int = 32) -> np.ndarray:
    """An ellipse, or with few points a regular polygon."""
    return turns(points) * (rx, rx if ry is None else ry) + (x, y)


def bar(x0: float, y0: float, x1: float, y1: float, width: float, end: float | None = None) -> np.ndarray:
    """A straight bar of `width`, which becomes `end` at its far end."""
    reach = 2 * math.hypot(x1 - x0, y1 - y0)
    nx, ny, far = (y0 - y1) / reach, (x1 - x0) / reach, width if end is None else end
    side = (x0 + nx * width, y0 + ny * width), (x1 + nx * far, y1 + ny * far)
    return np.array([*side, (x1 - nx * far, y1 - ny * far), (x0 - nx * width, y0 - ny * width)])


def ray(angle: float, near: float, far: float, width: float, end: float | None = None) -> np.ndarray:
    """A bar that points away from the origin."""
    c, s = math.cos(angle), math.sin(angle)
    return bar(c * near, s * near, c * far, s * far, width, end)


def plate(half_width: float, half_height: float, radius: float) -> np.ndarray:
    """A rectangle with round corners about the origin."""
    corners = disc(0, 0, radius).reshape(4, 8, 2)
    signs = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)])[:, None]
    return (corners + signs * (half_width - radius, half_height - radius)).reshape(-1, 2)


def star(points: int, inner: float) -> np.ndarray:
    return turns(2 * points) * np.where(np.arange(2 * points) % 2, inner, 1.0)[:, None]


# corners of the strokes of a digit on a grid of half-widths, named as seven-segment displays name them
SEGMENTS = {
    "a": (-1, -2, 1, -2), "b": (1, -2, 1, 0), "c": (1, 0, 1, 2), "d": (-1, 2, 1, 2), "e": (-1, 0, -1, 2), "f": (-1, -2, -1, 0),
    "g": (-1, 0, 1, 0),
}  # fmt: skip
DIGITS = ("abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcdfg")


def digit(number: int, x: float, y: float, scale: float) -> list[np.ndarray]:
    """A digit about (x, y), twice `scale` high."""
    lines = (np.array(SEGMENTS[s]).reshape(2, 2) * (0.42 * scale) + (x, y) for s in DIGITS[number])
    return [bar(x0, y0, x1, y1, 0.26 * scale) for (x0, y0), (x1, y1) in lines]


@cache
def heart() -> np.ndarray:
    c, s = turns(28).T
    return np.stack([s**3, (8 * c**4 - 8 * c * c + 1 + 2 * (4 * c**3 - 3 * c) + 5 * (2 * c * c - 1) - 13 * c) / 16], 1)


def suit(kind: int, x: float, y: float, scale: float) -> list[np.ndarray]:
    """Hearts, diamonds, spades or clubs about (x, y), twice `scale` high."""
    stem = bar(0, 0.1, 0, 1, 0.12, 0.7)
    clubs = [disc(0, -0.5, 0.45), disc(-0.5, 0.2, 0.45), disc(0.5, 0.2, 0.45), stem]
    shapes = ([heart()], [disc(0, 0, 0.75, 1, 4)], [heart() * (1, -0.85), stem], clubs)[kind]
    return [shape * scale + (x, y) for shape in shapes]


def paint(drawing: Drawing, projection: np.ndarray, side_px: float, color_matrix: np.ndarray | None) -> np.ndarray:
    """uint8 [h, w, 4]: the drawing seen through a 3 x 3 `projection`, its longer extent `side_px` pixels, edges antialiased.

    Holes must lie inside of filled outlines. Outlines are projected and rounded to a grid two or three times as fine, so that
    pixels do not hang on the last bits of a sine.
    """
    fine = 3 if side_px < 48 else 2
    flat = np.concatenate([points for points, _ in drawing])
    seen = flat @ projection[:2, :2].T / (flat @ projection[2, :2] + 1)[:, None]
    seen -= seen.min(0)
    seen = np.rint(seen * ((side_px * fine - 1) / seen.max())).astype(int)
    width, height = (-(-(seen.max(0) + 1) // fine) * fine).tolist()
    colors = [color or (0.0, 0.0, 0.0) for _, color in drawing]
    if color_matrix is not None:
        colors = np.clip(np.array(colors) @ color_matrix.T, 0, 255).tolist()
    picture = Image.new("RGBA", (width, height))
    pen, start, corners = ImageDraw.Draw(picture), 0, seen.reshape(-1).tolist()
    for (points, color), (r, g, b) in zip(drawing, colors, strict=True):
        end = start + 2 * len(points)
        pen.polygon(corners[start:end], fill=(0, 0, 0, 0) if color is None else (int(r), int(g), int(b), 255))
        start = end
    return np.asarray(picture.reduce(fine))
