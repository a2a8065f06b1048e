"""What the things lie on: procedural grounds, float32 [3, H, W] in 0..255.

Color planes lie one after the other because numpy is several times faster on long rows than on triples.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from PIL import Image

from rapidetr.demo.strokes import Color, hsv

Size = tuple[int, int]


def plane_color(color: Color) -> np.ndarray:
    """float32 [3, 1, 1]."""
    return np.array(color, np.float32).reshape(3, 1, 1)


def base_color(rng: Generator) -> np.ndarray:
    return plane_color(hsv(rng.random(), rng.uniform(0, 0.6) ** 1.3, rng.uniform(0.2, 0.95)))


def soft_noise(rng: Generator, size_hw: Size, cells_hw: tuple[float, float]) -> np.ndarray:
    """float32 [H, W], mean near 0 and spread near 1, smooth over about cells_hw spots a picture."""
    coarse = rng.standard_normal((max(2, round(cells_hw[0])), max(2, round(cells_hw[1]))), np.float32)
    return np.asarray(Image.fromarray(coarse).resize(size_hw[::-1], Image.Resampling.BICUBIC))


def mixed(rng: Generator, amount: np.ndarray, spread: float = 90) -> np.ndarray:
    """A base color, moved along a random direction of color by `amount` (float [H, W], about -1..1)."""
    direction = np.float32(rng.uniform(0.4, 1.0, (3, 1, 1)) * spread * rng.uniform(0.3, 1.0))
    return np.asarray(base_color(rng) + amount.astype(np.float32) * direction)


def grid(rng: Generator, size_hw: Size) -> tuple[np.ndarray, np.ndarray]:
    """Two turned coordinates, in short sides of the picture, about -0.7..0.7."""
    short, angle = min(size_hw), rng.uniform(0, 2 * math.pi)
    y = (np.arange(size_hw[0], dtype=np.float32) / short - 0.5)[:, None]
    x = (np.arange(size_hw[1], dtype=np.float32) / short - 0.5)[None]
    c, s = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return c * x + s * y, c * y - s * x


def gradient(rng: Generator, size_hw: Size) -> np.ndarray:
    return mixed(rng, grid(rng, size_hw)[0])


def wood(rng: Generator, size_hw: Size) -> np.ndarray:
    """Planks with bent grain."""
    along, across = grid(rng, size_hw)
    plank = np.floor(across * rng.uniform(2, 6))
    bent = np.sin(along * rng.uniform(2, 6) + plank * 2) + soft_noise(rng, size_hw, (5, 5)) * rng.uniform(0.5, 2)
    rings = across * rng.uniform(15, 40) + bent + plank * 7
    color = plane_color(hsv(rng.uniform(0.04, 0.12), rng.uniform(0.3, 0.7), rng.uniform(0.35, 0.85)))
    tone = 1 + 0.1 * np.sin(rings) + 0.08 * np.sin(plank * 12.9) + 0.03 * soft_noise(rng, size_hw, (60, 60))
    return np.asarray(color * tone)


def grain(rng: Generator, size_hw: Size) -> np.ndarray:
    """Noise at three scales: plaster, stone, carpet."""
    coarse, noise = rng.uniform(3, 12), np.zeros(size_hw, np.float32)
    for times, weight in ((1, 0.5), (4, 0.35), (12, 0.3)):
        noise += soft_noise(rng, size_hw, (coarse * times, coarse * times)) * np.float32(weight)
    return mixed(rng, noise, 60)


def tiles(rng: Generator, size_hw: Size) -> np.ndarray:
    """Tiles with joints, each in its own tone."""
    u, v = grid(rng, size_hw)
    many = rng.uniform(2, 9)
    a, b = u * many + rng.random(), v * many * rng.uniform(0.6, 1.2) + rng.random()
    column, row = np.floor(a), np.floor(b)
    joint = np.maximum(np.abs(a - column - 0.5), np.abs(b - row - 0.5)) > 0.5 - rng.uniform(0.015, 0.05)
    tone = np.sin(column * 12.9898 + row * 78.233) * rng.uniform(0.05, 0.6)
    return mixed(rng, np.where(joint, rng.uniform(-1.2, 1.2), tone), 70)


def blotches(rng: Generator, size_hw: Size) -> np.ndarray:
    """Patches of three colors with soft or sharp borders."""
    sharp = np.float32(rng.uniform(1, 12))
    out = np.broadcast_to(base_color(rng), (3, *size_hw)).copy()
    for _ in range(2):
        cells = rng.uniform(2, 7)
        share = np.clip(soft_noise(rng, size_hw, (cells, cells)) * sharp, 0, 1)
        out += share * (base_color(rng) - out) * 0.8
    return out


def cloth(rng: Generator, size_hw: Size) -> np.ndarray:
    """Stripes one way or both ways."""
    u, v = grid(rng, size_hw)
    weave = np.sin(u * rng.uniform(15, 70)) + (np.sin(v * rng.uniform(15, 70)) if rng.random() < 0.5 else 0)
    return mixed(rng, np.clip(weave * rng.uniform(0.5, 3), -1, 1) * 0.6, 60)


def pebbles(rng: Generator, size_hw: Size) -> np.ndarray:
    """Rounded stones: the distance to the nearest of scattered points, point by point of a jittered grid."""
    many, half_hw = rng.uniform(6, 14), (size_hw[0] // 2, size_hw[1] // 2)  # half the resolution: nine distances a pixel are dear
    u, v = (c * np.float32(many) for c in grid(rng, half_hw))
    column, row = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    reach = int(max(np.abs(column).max(), np.abs(row).max())) + 2
    jitter = rng.uniform(0.1, 0.9, (3, 2 * reach + 1, 2 * reach + 1)).astype(np.float32)
    best, tone = np.full(half_hw, 9, np.float32), np.zeros(half_hw, np.float32)
    for du in (-1, 0, 1):
        for dv in (-1, 0, 1):
            x, y, own = jitter[:, column + (du + reach), row + (dv + reach)]
            far = (x + (column + du - u)) ** 2 + (y + (row + dv - v)) ** 2
            np.copyto(tone, own, where=far < best)
            np.minimum(far, best, out=best)
    stones = Image.fromarray((tone - best).astype(np.float32)).resize(size_hw[::-1], Image.Resampling.BICUBIC)
    return mixed(rng, np.asarray(stones) - 0.5, 110)


def bokeh(rng: Generator, size_hw: Size) -> np.ndarray:
    """Soft lights on a gradient."""
    u, v = grid(rng, size_hw)
    out = mixed(rng, u)
    for _ in range(int(rng.integers(6, 16))):
        x, y, radius = rng.uniform(-0.7, 0.7), rng.uniform(-0.7, 0.7), rng.uniform(0.05, 0.22)
        out += np.clip((radius - np.sqrt((u - x) ** 2 + (v - y) ** 2)) * 30, 0, 1) * (base_color(rng) - out) * 0.35
    return out


GROUNDS: dict[str, Callable[[Generator, Size], np.ndarray]] = {
    f.__name__: f for f in (gradient, wood, grain, tiles, blotches, cloth, pebbles, bokeh)
}
