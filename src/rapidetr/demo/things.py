"""The things of the little world: one small drawing function for each, told apart by shape and detail, never by color alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator

from rapidetr.demo.strokes import Color, Drawing, bar, contrast, digit, disc, hsv, plate, ray, shade, star, suit

METALS = ((0.12, 0.62, 0.82), (0.1, 0.04, 0.78), (0.06, 0.55, 0.72), (0.13, 0.4, 0.6), (0.58, 0.1, 0.5))  # gold to steel, as hsv
DARK = (32.0, 30.0, 34.0)


def one_of(rng: Generator, *choices: Any) -> Any:
    return choices[rng.integers(len(choices))]


def any_color(rng: Generator, saturation: tuple[float, float] = (0.35, 0.95), value: tuple[float, float] = (0.4, 0.95)) -> Color:
    return hsv(rng.random(), rng.uniform(*saturation), rng.uniform(*value))


def metal(rng: Generator) -> Color:
    hue, saturation, value = METALS[rng.integers(len(METALS))]
    return hsv(hue + rng.uniform(-0.02, 0.02), saturation * rng.uniform(0.7, 1.2), value * rng.uniform(0.8, 1.2))


def pale(rng: Generator) -> Color:
    return any_color(rng, (0, 0.14), (0.86, 1))


PIPS = ((), (4,), (0, 8), (0, 4, 8), (0, 2, 6, 8), (0, 2, 4, 6, 8), (0, 2, 3, 5, 6, 8))  # cells of a 3 x 3 grid


def draw_die(rng: Generator) -> Drawing:
    """A cube with round corners and pips, seen from anywhere; opposite faces add up to seven."""
    body = one_of(rng, pale(rng), pale(rng), any_color(rng))
    yaw, pitch, radius = rng.uniform(0, 2 * math.pi), rng.uniform(0.35, 1.2), rng.uniform(0.15, 0.45)
    cy, sy, cp, sp = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch)
    axes = np.array([[cy, sy * sp, sy * cp], [0, -cp, sp], [-sy, cy * sp, cy * cp]])  # where the axes of the cube go: right, down, to us
    edges, faces = Drawing(), Drawing()
    for i, value in enumerate(rng.permutation(3).tolist()):
        side = 1.0 if axes[i, 2] > 0 else -1.0
        face, out = axes[[i - 2, i - 1], :2], axes[i, :2] * side
        tone = 0.61 + 0.55 * max(0.0, float(-out[1])) + 0.11 * float(out[0])
        inner = 1 - 0.12 * radius
        edges.add(shade(body, tone * 0.8), disc(0, 0, math.sqrt(2) * inner, points=4) @ DIAGONAL @ face + out * inner)
        faces.add(shade(body, tone), plate(0.97, 0.97, radius) @ face + out)
        pips = PIPS[value + 1 if side > 0 else 6 - value]
        faces.add(shade(contrast(body), tone), *(disc((p % 3 - 1) * 0.52, (p // 3 - 1) * 0.52, 0.2, points=14) @ face + out for p in pips))
    return Drawing([*edges, *faces])


DIAGONAL = np.array([[1, 1], [-1, 1]]) / math.sqrt(2)


def draw_coin(rng: Generator) -> Drawing:
    """A disc with a rim, a reeded edge and a relief: a star, a value or a head."""
    rim = metal(rng)
    field = one_of(rng, shade(rim, 0.88), shade(rim, 1.15), metal(rng))
    thick, angle = rng.uniform(0.03, 0.16), rng.uniform(0, 2 * math.pi)
    drawing = Drawing()
    drawing.add(shade(rim, 0.45), disc(thick * math.cos(angle), thick * math.sin(angle), 1))
    drawing.add(shade(rim, 1.25), disc(0, 0, 1))
    drawing.add(rim, disc(0, 0, 0.95))
    drawing.add(shade(rim, 0.6), star(int(rng.integers(32, 60)), 0.86) * 0.95)
    drawing.add(shade(field, 0.65), disc(0, 0, 0.84))
    drawing.add(field, disc(0.02, 0.03, 0.81))
    value, nose = one_of(rng, 1, 2, 5), np.array([(0.25, -0.3), (0.45, -0.05), (0.25, 0.02)])
    relief = one_of(
        rng,
        [star(5, 0.42) * 0.55],
        digit(value, 0, 0, 0.55),
        digit(value, -0.27, 0, 0.42) + digit(0, 0.27, 0, 0.42),
        [disc(0.02, -0.17, 0.3, 0.36), bar(0, 0.05, 0, 0.5, 0.3, 0.75), nose, disc(-0.15, -0.25, 0.25)],
    )
    drawing.add(shade(field, 0.5), *(part + 0.045 for part in relief))
    drawing.add(shade(field, 1.4), *relief)
    return drawing


SIDES, CORNERS = ((-1, 0), (1, 0)), ((-1, -1), (1, -1), (-1, 1), (1, 1))
CARD_PIPS = {
    1: ((0, 0),), 2: ((0, -1), (0, 1)), 3: ((0, -1), (0, 0), (0, 1)), 4: CORNERS, 5: (*CORNERS, (0, 0)), 6: (*CORNERS, *SIDES),
    8: (*CORNERS, *SIDES, (0, -0.5), (0, 0.5)),
}  # fmt: skip


def draw_card(rng: Generator) -> Drawing:
    """A playing card: its face with pips and corner ranks, or its patterned back."""
    w, paper, drawing = rng.uniform(0.6, 0.7), pale(rng), Drawing()
    drawing.add(shade(paper, 0.55), plate(w + 0.02, 1.02, 0.12))
    drawing.add(paper, plate(w, 1, 0.11))
    if rng.random() < 0.25:
        ink, step = any_color(rng, (0.5, 0.9), (0.3, 0.75)), rng.uniform(0.22, 0.32)
        columns, rows = int((w - 0.12) / step), int(0.88 / step)
        drawing.add(ink, plate(w - 0.09, 0.91, 0.06))
        lattice = ((x * step, y * step) for x in range(-columns, columns + 1) for y in range(-rows, rows + 1))
        drawing.add(shade(ink, 1.6), *(disc(x, y, step * 0.36, step * 0.45, 4) for x, y in lattice))
        return drawing
    kind, rank = int(rng.integers(4)), one_of(rng, *CARD_PIPS)
    ink = hsv(rng.uniform(-0.03, 0.03), 0.85, rng.uniform(0.65, 0.9)) if kind < 2 else hsv(rng.random(), 0.3, rng.uniform(0.08, 0.25))
    marks = digit(rank, 0.15 - w, -0.8, 0.13) + suit(kind, 0.15 - w, -0.54, 0.09)
    drawing.add(ink, *marks, *(-m for m in marks))
    for x, y in CARD_PIPS[rank]:
        pip = suit(kind, x * w * 0.42, -abs(y) * 0.56, 0.42 if rank == 1 else 0.2)
        drawing.add(ink, *(p * (1, -1 if y > 0 else 1) for p in pip))
    return drawing


ARROW = np.array([(-0.14, 0.7), (-0.14, -0.1), (-0.45, -0.1), (0, -0.7), (0.45, -0.1), (0.14, -0.1), (0.14, 0.7)])
TRIANGLE, OCTAGON = disc(0, 0, 1.15, points=3)[:, ::-1] * (1, -1), disc(0, 0, 1, points=8) @ np.array([[0.924, 0.383], [-0.383, 0.924]])
SIGNS = (  # outline, how much of it is inside of the border, usual hue
    (OCTAGON, 0.9, 0.0), (disc(0, 0, 1), 0.76, 0.0), (TRIANGLE, 0.82, 0.12), (-TRIANGLE, 0.66, 0.0), (disc(0, 0, 1), 0.91, 0.6),
    (disc(0, 0, 1.1, points=4), 0.88, 0.13),
)  # fmt: skip


def draw_sign(rng: Generator) -> Drawing:
    """A road sign on its post: stop, limit, warning, give way, direction or diamond."""
    kind, drawing = int(rng.integers(len(SIGNS))), Drawing()
    outline, inside, hue = SIGNS[kind]
    usual = hsv(hue + rng.uniform(-0.03, 0.03), rng.uniform(0.75, 1), rng.uniform(0.65, 0.95))
    color = any_color(rng, (0.7, 1), (0.55, 0.95)) if rng.random() < 0.3 else usual
    white, post = pale(rng), any_color(rng, (0, 0.2), (0.35, 0.7))
    end, wide = rng.uniform(1.6, 2.5), rng.uniform(0.09, 0.16)
    drawing.add(shade(post, 0.7), bar(0, 0.3, 0, end, wide))
    drawing.add(shade(post, 1.4), bar(-wide / 5, 0.3, -wide / 5, end, wide / 3))
    edge, field = ((white, color), (color, white), (DARK, color), (color, white), (white, color), (DARK, color))[kind]
    drawing.add(shade(edge, 0.6), outline * 1.05)
    drawing.add(edge, outline)
    drawing.add(field, outline * inside)
    drawing.add(white if kind == 0 else contrast(field), *draw_glyph(rng, kind))
    return drawing


def draw_glyph(rng: Generator, kind: int) -> list[np.ndarray]:
    """What stands on a sign."""
    number = digit(int(rng.integers(1, 9)), -0.27, 0, 0.36) + digit(0, 0.27, 0, 0.36)
    arrow = ARROW * 0.8 @ one_of(rng, np.eye(2), DIAGONAL, np.array([[0, 1], [-1, 0]]), np.array([[0, -1], [1, 0]]))
    two_bars, cross = (bar(-0.62, y, 0.62, y, 0.2) for y in (-0.15, 0.15)), [bar(-0.4, 0, 0.4, 0, 0.2), bar(0, -0.4, 0, 0.4, 0.2)]
    glyphs: tuple[tuple[list[np.ndarray], ...], ...] = (
        ([*two_bars], [bar(-0.68, 0, 0.68, 0, 0.34)]),
        (number, number, [bar(-0.5, 0, 0.5, 0, 0.25)], []),
        ([bar(0, -0.5, 0, 0.15, 0.24, 0.14), disc(0, 0.36, 0.12)],),
        ([],),
        ([arrow],),
        ([arrow], [disc(0, 0, 0.3)], cross),
    )
    chosen: list[np.ndarray] = one_of(rng, *glyphs[kind])
    return chosen


def draw_mug(rng: Generator) -> Drawing:
    """A cylinder with a handle, an opening and often a decoration."""
    body, accent, drawing = one_of(rng, pale(rng), any_color(rng), any_color(rng)), any_color(rng), Drawing()
    w, h, taper, squash = 0.72, rng.uniform(0.6, 0.95), rng.uniform(0.85, 1.0), rng.uniform(0.12, 0.3)
    grip, bow, tall = rng.uniform(0.16, 0.24), rng.uniform(0.42, 0.55), h * 0.62
    drawing.add(shade(body, 0.72), disc(w * 0.95, 0.03, bow, tall))
    drawing.add(shade(body, 0.9), disc(w * 0.95, -0.01, bow - 0.05, tall - 0.06))
    drawing.add(None, disc(w * 0.95, 0.03, bow - grip, tall - grip))
    bend = np.linspace(0, math.pi, 13)
    arc = np.stack([-np.cos(bend), squash * np.sin(bend)], 1) * w

    def band(top: float, bottom: float, color: Color) -> None:
        """The visible half of the cylinder between two heights (-1 rim, 1 bottom), darker towards its edges."""
        upper, lower = (arc * (1 + (taper - 1) * (t + 1) / 2) + (0, t * h) for t in (top, bottom))
        for k, quad in enumerate(np.stack([upper[:-1], upper[1:], lower[1:], lower[:-1]], 1)):
            drawing.add(shade(color, 1.12 - 0.5 * ((k - 3.5) / 8) ** 2 - 0.3 * (k > 9)), quad)

    band(-1, 1, body)
    decoration = int(rng.integers(5))
    for top, bottom in (((-0.3, 0.3),), ((-0.55, -0.3), (0.45, 0.7)))[decoration] if decoration < 2 else ():
        band(top, bottom, accent)
    if decoration == 2:
        drawing.add(accent, *suit(int(rng.integers(4)), 0, squash * w, h * 0.4))
    if decoration == 3:
        drawing.add(accent, *(disc(x, y * h + squash * w, 0.11, points=14) for x in (-0.4, 0, 0.4) for y in (-0.45, 0, 0.45)))
    drawing.add(shade(body, 1.3), disc(0, -h, w, squash * w))
    drawing.add(shade(body, 0.6), disc(0, -h, w * 0.9, squash * w * 0.86))
    drawing.add(one_of(rng, hsv(0.07, 0.7, 0.25), hsv(0.09, 0.5, 0.6), shade(body, 0.35)), disc(0, 0.06 - h, w * 0.82, squash * w * 0.68))
    return drawing if rng.random() < 0.5 else Drawing((p * (-1, 1), c) for p, c in drawing)


def draw_key(rng: Generator) -> Drawing:
    """A bow with a hole and a shaft with teeth, or a flat blade with a cut edge."""
    color = one_of(rng, metal(rng), metal(rng), metal(rng), any_color(rng))
    bow, wide = rng.uniform(0.4, 0.52), rng.uniform(0.15, 0.2)
    tip = bow + rng.uniform(1.0, 1.35)
    clover = [disc(-0.1, 0, bow * 0.75), disc(0.12, -0.22, bow * 0.62), disc(0.12, 0.22, bow * 0.62)]
    shape = int(rng.integers(4))
    bows = ([disc(0, 0, bow)], [plate(bow * 0.9, bow, bow * 0.4)], clover, [disc(0, 0, bow, points=6)])[shape]
    parts = bows + (draw_bit if rng.random() < 0.5 else draw_blade)(rng, bow, tip, wide)
    drawing = Drawing()
    drawing.add(shade(color, 0.45), *(part + np.array((0.03, 0.05)) for part in parts))
    drawing.add(color, *parts)
    drawing.add(shade(color, 1.45), bar(bow * 0.9, -wide * 0.25, tip - 0.12, -wide * 0.25, wide * 0.3))
    drawing.add(shade(color, 1.2), *(b * 0.8 for b in bows))
    hole = bow * (one_of(rng, 0.35, 0.62), 0.55, 0.4, 0.6)[shape]
    drawing.add(shade(color, 0.55), disc(-0.15 * bow, 0, hole * 1.18))
    drawing.add(None, disc(-0.15 * bow, 0, hole))
    return drawing


def draw_bit(rng: Generator, bow: float, tip: float, wide: float) -> list[np.ndarray]:
    """The round shaft of an old key with two or three teeth."""
    parts = [bar(bow * 0.8, 0, tip, 0, wide), bar(bow, 0, bow + 0.14, 0, wide * 1.9), disc(tip, 0, wide / 2, points=12)]
    x = tip - 0.13
    for _ in range(int(rng.integers(2, 4))):
        parts.append(bar(x, 0, x, rng.uniform(0.28, 0.46), 0.14))
        x -= rng.uniform(0.19, 0.24)
    return parts


def draw_blade(rng: Generator, bow: float, tip: float, wide: float) -> list[np.ndarray]:
    """The flat blade of a door key; one edge is cut."""
    corners = 2 * int(rng.integers(5, 8))
    depth = wide * np.where(np.arange(corners) % 2, 1.2, rng.uniform(0.2, 0.8, corners))
    cut = np.stack([np.linspace(tip - 0.12, bow + 0.2, corners), depth], 1)
    return [np.concatenate([[(bow * 0.7, -wide), (tip - 0.1, -wide), (tip, 0)], cut, [(bow * 0.7, wide * 1.2)]])]


def draw_pencil(rng: Generator) -> Drawing:
    """A hexagonal body in three tones, a wooden point with its lead, often a ferrule and an eraser."""
    body, w, drawing = any_color(rng, (0.4, 1), (0.35, 0.95)), rng.uniform(0.12, 0.2), Drawing()
    end, cone = rng.uniform(0.25, 0.75), rng.uniform(0.3, 0.45)
    wood = hsv(rng.uniform(0.07, 0.11), rng.uniform(0.3, 0.5), rng.uniform(0.8, 0.95))
    base = cone - 0.92
    drawing.add(wood, np.array([(-1, 0), (base, -w), (base, w)]))
    drawing.add(shade(wood, 0.75), np.array([(-1, 0), (base, w * 0.3), (base, w)]))
    drawing.add(one_of(rng, DARK, shade(body, 0.9)), bar(-1, 0, cone * 0.36 - 1, 0, 0, w * 0.72))
    for top, tone in ((-w, 1.25), (-w / 3, 0.95), (w / 3, 0.6)):
        bottom = top + w * 2 / 3
        drawing.add(shade(body, tone), np.array([(base, top), (base - 0.1, top + w / 3), (base, bottom), (end, bottom), (end, top)]))
    if rng.random() < 0.75:
        ferrule, rubber = metal(rng), hsv(rng.uniform(-0.08, 0.08), rng.uniform(0.3, 0.6), rng.uniform(0.7, 0.95))
        drawing.add(rubber, bar(end + 0.12, 0, end + 0.28, 0, 2 * w), disc(end + 0.28, 0, w * 0.6, w, 12))
        drawing.add(shade(rubber, 0.75), bar(end + 0.12, w * 0.65, end + 0.3, w * 0.65, 0.7 * w))
        drawing.add(ferrule, bar(end, 0, end + 0.15, 0, 2.1 * w))
        drawing.add(shade(ferrule, 1.6), bar(end, -w * 0.4, end + 0.15, -w * 0.4, w * 0.4))
        drawing.add(shade(ferrule, 0.55), *(bar(x, -w, x, w, 0.025) for x in (end + 0.04, end + 0.1)))
    return drawing


def draw_clock(rng: Generator) -> Drawing:
    """A dial with marks and hands in a round, square or eight-cornered case; some have the bells and feet of an alarm clock."""
    case, drawing = any_color(rng, (0.1, 0.9), (0.2, 0.85)), Drawing()
    face = one_of(rng, pale(rng), pale(rng), any_color(rng, (0.1, 0.5), (0.15, 0.9)))
    if rng.random() < 0.35:
        bell = metal(rng)
        drawing.add(shade(case, 0.7), *(bar(side * 0.55, 0.7, side * 0.78, 1.12, 0.16) for side in (-1, 1)))
        drawing.add(shade(bell, 0.6), *(disc(side * 0.6, -0.88, 0.36) for side in (-1, 1)))
        drawing.add(bell, *(disc(side * 0.58, -0.9, 0.3) for side in (-1, 1)))
        drawing.add(shade(case, 0.8), bar(0, -0.9, 0, -1.22, 0.12, 0.22))
    outline, rim = one_of(rng, disc(0, 0, 1), disc(0, 0, 1), plate(0.95, 0.95, 0.25), OCTAGON), rng.uniform(0.78, 0.88)
    drawing.add(shade(case, 0.6), outline)
    drawing.add(case, outline * 0.97 - 0.01)
    drawing.add(shade(case, 0.5), outline * (rim + 0.03))
    drawing.add(face, outline * rim)
    marks, minute = one_of(rng, 12, 12, 12, 4), rng.uniform(0, 12)
    hour = rng.integers(12) + minute / 12
    quarters = [k * math.pi / 2 for k in range(4)]
    drawing.add(contrast(face), *(ray(a, rim * 0.74, rim * 0.93, 0.09) for a in quarters))
    if marks == 12:
        drawing.add(contrast(face), *(ray(a + k * math.pi / 6, rim * 0.82, rim * 0.93, 0.05) for a in quarters for k in (1, 2)))
    hands = ((hour, 0.45, 0.13), (minute, 0.66, 0.09))
    drawing.add(contrast(face), *(ray((at - 3) * math.pi / 6, -0.12, reach, wide, wide * 0.6) for at, reach, wide in hands))
    if rng.random() < 0.5:
        drawing.add(hsv(rng.uniform(-0.05, 0.05), 0.9, 0.85), ray(rng.uniform(0, 2 * math.pi), -0.18, 0.7, 0.035))
    drawing.add(contrast(face), disc(0, 0, 0.075, points=12))
    return drawing


def draw_leaf(rng: Generator) -> Drawing:
    """A leaf with its stalk and veins: smooth, toothed or lobed."""
    natural = hsv(rng.uniform(0.02, 0.38), rng.uniform(0.5, 0.9), rng.uniform(0.4, 0.85))
    color, drawing = any_color(rng, (0.45, 0.9), (0.35, 0.85)) if rng.random() < 0.3 else natural, Drawing()
    t = np.linspace(0, 1, 40)
    lobes, depth = one_of(rng, (0, 0.0), (9, 0.12), (3.5, 0.4))
    half = rng.uniform(0.35, 0.6) * np.sin(math.pi * t ** rng.uniform(0.6, 1.1)) * (1 + depth * np.sin(2 * math.pi * lobes * t))
    bend = rng.uniform(-0.25, 0.25)
    rib = np.stack([bend * (t - 0.3) ** 2, 0.8 - 1.8 * t], 1)
    right, left = rib + np.stack([half, 0 * t], 1), rib - np.stack([half, 0 * t], 1)
    drawing.add(shade(color, 0.6), bar(rib[1, 0], rib[1, 1], -bend * 0.6, rng.uniform(1.0, 1.3), 0.07, 0.09))
    drawing.add(color, np.concatenate([right, rib[::-1]]))
    drawing.add(shade(color, 0.8), np.concatenate([left, rib[::-1]]))
    ends = [(rib[k], 0.25 * rib[k] + 0.75 * edge[k + 4]) for k in range(6, 34, 6) for edge in (right, left)]
    veins = [bar(x0, y0, x1, y1, 0.045, 0.015) for (x0, y0), (x1, y1) in ends]
    width = np.array((0.03, 0))
    drawing.add(shade(color, one_of(rng, 0.55, 1.5)), *veins, np.concatenate([rib - width, rib[::-1] + width]))
    return drawing


def draw_clutter(rng: Generator) -> Drawing:
    """Something without a name: a random polygon, ellipse, plate or line, plain or with another one or a hole in it."""
    color, angles = any_color(rng, (0, 0.9), (0.15, 0.95)), np.sort(rng.uniform(0, 2 * math.pi, rng.integers(3, 8)))
    polygon = np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(0.5, 1, (len(angles), 1))
    simple = disc(0, 0, 1, rng.uniform(0.3, 1)), plate(1, rng.uniform(0.2, 0.9), 0.1), bar(-1, 0, 1, 0, rng.uniform(0.03, 0.15))
    outline, drawing = one_of(rng, polygon, polygon, *simple), Drawing()
    drawing.add(color, outline)
    if rng.random() < 0.4:
        drawing.add(one_of(rng, None, any_color(rng), shade(color, 0.7)), outline * rng.uniform(0.5, 0.85))
    return drawing


@dataclass(frozen=True)
class Thing:
    """How to draw a class, and how far it may lie turned from upright, in degrees."""

    draw: Callable[[Generator], Drawing]
    turn: float = 180.0


THINGS = {
    "die": Thing(draw_die), "coin": Thing(draw_coin), "card": Thing(draw_card), "sign": Thing(draw_sign, 30.0),
    "mug": Thing(draw_mug, 30.0), "key": Thing(draw_key), "pencil": Thing(draw_pencil), "clock": Thing(draw_clock, 40.0),
    "leaf": Thing(draw_leaf),
}  # fmt: skip
CLUTTER = Thing(draw_clutter)
