"""Class colors differ for every kind of sight, and text contrasts with each."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rapidetr.draw.colors import NO_CLASS, PALETTE, class_color, luminance, text_color

# Linear RGB as people see it (Machado, Oliveira and Fernandes 2009, severity 1).
SIGHTS = {
    "normal": np.eye(3),
    "green-blind": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
    "red-blind": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
}


def cielab(color: tuple[int, int, int], sight: np.ndarray) -> np.ndarray:
    c = np.array(color) / 255
    linear = np.clip(sight @ np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4), 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(np.maximum(to_xyz @ linear / [0.9505, 1.0, 1.089], 1e-9))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", list(SIGHTS))
def test_colors_differ(sight: str) -> None:
    """Okabe and Ito's own seven are at least 17 apart in CIELAB; about 2 is the smallest difference that people see."""
    seen = [cielab(color, SIGHTS[sight]) for color in PALETTE]
    assert min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2)) > 16


def test_a_class_keeps_its_color() -> None:
    assert [class_color(i) for i in range(len(PALETTE))] == list(PALETTE)
    assert class_color(0) == class_color(len(PALETTE)) == (0, 114, 178)
    assert class_color(-1) == NO_CLASS
    assert NO_CLASS not in PALETTE


@pytest.mark.parametrize("color", [*PALETTE, NO_CLASS, (0, 0, 0), (255, 255, 255)])
def test_text_contrasts(color: tuple[int, int, int]) -> None:
    """WCAG asks 4.5 : 1 of text; black or white can always give it."""
    dark, light = sorted([luminance(color), luminance(text_color(color))])
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_luminance_of_known_colors() -> None:
    assert luminance((0, 0, 0)) == 0
    assert luminance((255, 255, 255)) == pytest.approx(1, abs=1e-12)
    assert luminance((255, 0, 0)) == pytest.approx(0.2126, abs=1e-12)
    assert luminance((128, 128, 128)) == pytest.approx(0.2159, abs=1e-4)  # WCAG's worked value has four digits
