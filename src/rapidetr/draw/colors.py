"""Colors that stay with a class, and text that stays readable on them."""

from __future__ import annotations

Color = tuple[int, int, int]

# The first seven are Okabe and Ito's (https://jfly.uni-koeln.de/color/, black left out). Each other one is the saturated color
# that was farthest in CIELAB from all before it, for normal, red-blind and green-blind sight (Machado et al. 2009) at once.
# fmt: off
PALETTE: tuple[Color, ...] = (
    (0, 114, 178), (230, 159, 0), (0, 158, 115), (213, 94, 0), (86, 180, 233), (204, 121, 167), (240, 228, 66),
    (0, 0, 255), (135, 255, 165), (135, 15, 15), (105, 105, 255), (120, 30, 90), (75, 255, 255), (60, 45, 165),
    (90, 240, 195), (255, 0, 90), (240, 165, 90), (105, 150, 255), (45, 45, 210), (150, 0, 60),
)
# fmt: on
NO_CLASS: Color = (128, 128, 128)


def class_color(class_id: int) -> Color:
    """RGB 0..255 of a class index, always the same; gray for -1."""
    return PALETTE[class_id % len(PALETTE)] if class_id >= 0 else NO_CLASS


def luminance(color: Color) -> float:
    """Relative luminance 0..1 of an sRGB color (WCAG 2.1)."""
    r, g, b = (v / 255 / 12.92 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in color)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def text_color(background: Color) -> Color:
    """Black or white, whichever contrasts more (WCAG 2.1: both reach 4.6 : 1 at a luminance of 0.179)."""
    return (0, 0, 0) if luminance(background) > 0.179 else (255, 255, 255)
