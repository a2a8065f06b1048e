"""A seed in, a picture with exact boxes and masks out: the same bytes on every machine with the same Pillow.

A scene is painted in five steps: a ground; in some scenes clutter without a label; one to eight things, each drawn, turned,
tilted, lit and laid down with its shadow, some on top of others; then light, blur and sensor noise over the whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import PCG64, Generator
from PIL import Image, ImageFilter

from rapidetr.core.errors import ConfigError
from rapidetr.core.masks import Masks, encode_runs
from rapidetr.demo.ground import GROUNDS
from rapidetr.demo.strokes import paint
from rapidetr.demo.things import CLUTTER, THINGS, Thing

MAX_THINGS = 8
SIDE = (0.1, 0.5)  # longer side of a thing's box, in short sides of the picture
COVER_CHANCE = 0.25  # of laying a thing on top of another on purpose; makes about a fifth of all things partly hidden
TRIES = 16  # places that are looked at before a thing is left out
VISIBLE_LEAST, VISIBLE_MOST = 0.3, 0.85  # what remains in sight of a thing that others cover


@dataclass(frozen=True)
class Variation:
    """Which world is rendered: its classes (names of things.py), its grounds (names of ground.py) and its colors."""

    classes: tuple[str, ...]
    grounds: tuple[str, ...]
    hue_shift: float = 0.0  # degrees by which the colors of things are turned
    saturation: float = 1.0  # 0 gray, 1 as drawn

    def __post_init__(self) -> None:
        for what, names, known in (("class", self.classes, THINGS.keys()), ("ground", self.grounds, GROUNDS.keys())):
            unknown = [n for n in names if n not in known]
            if unknown or not names:
                raise ConfigError(f"unknown {what} {', '.join(unknown) or '(none given)'}; this world has: {', '.join(known)}")


WORLD = Variation(
    classes=("die", "coin", "card", "sign", "mug", "key", "pencil", "clock"),
    grounds=("gradient", "wood", "grain", "tiles", "blotches", "cloth"),
)
VARIATION = Variation(classes=("coin", "mug", "clock", "leaf"), grounds=("pebbles", "bokeh", "tiles"), hue_shift=140.0, saturation=1.2)


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture and what is seen in it.

    pixels uint8 [H, W, 3] RGB · boxes_xyxy_px float32 [N, 4], tight around the visible pixels · class_ids int64 [N], indices
    of the variation's classes · masks: visible pixels, disjoint · visible float32 [N]: share of each thing that nothing covers.
    """

    pixels: np.ndarray
    boxes_xyxy_px: np.ndarray
    class_ids: np.ndarray
    masks: Masks
    visible: np.ndarray


def render_scene(seed: int, *, size_hw: tuple[int, int] = (224, 224), variation: Variation | None = None) -> Scene:
    """The scene of `seed`, in the usual world or a variation of it; sides from 96 pixels, else ConfigError."""
    if min(size_hw) < 96:
        raise ConfigError(
            f"scene size is {size_hw[0]}x{size_hw[1]}; expected at least 96 pixels a side, so that small things keep their shape"
        )
    world = variation or WORLD
    rng = Generator(PCG64(seed))
    table = Table(rng, size_hw, world)
    if rng.random() < 0.25:
        for _ in range(int(rng.integers(1, 4))):
            table.lay(CLUTTER, None)
    for _ in range(int(rng.integers(1, MAX_THINGS + 1))):
        class_id = int(rng.integers(len(world.classes)))
        table.lay(THINGS[world.classes[class_id]], class_id)
    boxes, counts = zip(*(table.seen(i) for i in range(len(table.places))), strict=True)
    visible = (np.array(table.seen_px) / np.array(table.whole_px)).astype(np.float32)
    pixels = expose(rng, table.paint, size_hw)
    return Scene(pixels, np.array(boxes, np.float32), np.array(table.class_ids, np.int64), Masks(size_hw, counts), visible)


class Table:
    """What has been laid down so far: the paint, and which thing owns each pixel (0: none, 1: the first)."""

    def __init__(self, rng: Generator, size_hw: tuple[int, int], world: Variation) -> None:
        self.rng, self.size_hw, self.short = rng, size_hw, min(size_hw)
        self.paint = GROUNDS[world.grounds[rng.integers(len(world.grounds))]](rng, size_hw)
        self.owner = np.zeros(size_hw, np.intp)
        self.class_ids: list[int] = []
        self.places: list[tuple[slice, slice]] = []
        self.seen_px: list[int] = []
        self.whole_px: list[int] = []
        self.colors = color_matrix(world.hue_shift, world.saturation)
        self.light = rng.uniform(0, 2 * math.pi)  # where it comes from
        self.height, self.softness, self.dark = rng.uniform(0.005, 0.04), rng.uniform(0.005, 0.03), rng.uniform(0.15, 0.65)

    def lay(self, thing: Thing, class_id: int | None) -> None:
        """Draws a thing and lays it down where the rules of covering allow it; without such a place it is left out."""
        rng = self.rng
        low, high = SIDE
        side_px = self.short * (low + (high - low) * rng.random() ** 0.8)
        sprite = paint(thing.draw(rng), projection(rng, thing.turn), side_px, self.colors)
        solid = sprite[..., 3] >= 128
        cover = bool(self.places) and rng.random() < COVER_CHANCE
        for _ in range(TRIES):
            y, x = self.somewhere(solid.shape, cover)
            place = (slice(y, y + solid.shape[0]), slice(x, x + solid.shape[1]))
            left = np.array(self.seen_px, int) - np.bincount(self.owner[place][solid], minlength=len(self.places) + 1)[1:]
            if class_id is None or self.allows(left, cover):
                break
        else:
            return
        if class_id is not None:
            self.places.append(place)
            self.owner[place][solid] = len(self.places)
            self.class_ids.append(class_id)
            self.seen_px = [*left.tolist(), int(solid.sum())]
            self.whole_px.append(int(solid.sum()))
        self.blend(sprite, y, x)

    def allows(self, left_px: np.ndarray, cover: bool) -> bool:
        """Whether things may be left with these visible pixels: to cover, at least one must lose a good part, none too much."""
        share = left_px / np.array(self.whole_px, int)
        touched = share[left_px < self.seen_px]
        if not cover:
            return not len(touched)
        return bool(len(touched) and VISIBLE_LEAST <= touched.min() <= VISIBLE_MOST)

    def somewhere(self, shape: tuple[int, int], cover: bool) -> tuple[int, int]:
        """A corner inside the picture; to cover, one that puts a point of the thing on a point of an earlier one."""
        room = (self.size_hw[0] - shape[0], self.size_hw[1] - shape[1])
        if not cover:
            return int(self.rng.integers(room[0] + 1)), int(self.rng.integers(room[1] + 1))
        victim, at = self.places[self.rng.integers(len(self.places))], self.rng.random(4)
        y, x = (int(v.start + at[k] * (v.stop - v.start) - at[k + 2] * shape[k]) for k, v in enumerate(victim))
        return min(max(y, 0), room[0]), min(max(x, 0), room[1])

    def blend(self, sprite: np.ndarray, y: int, x: int) -> None:
        """Paints the shadow of a sprite, then the sprite itself, brighter on the side of the light."""
        h, w = sprite.shape[:2]
        sy, sx = math.sin(self.light), math.cos(self.light)
        spread = self.short * self.softness
        pad = math.ceil(spread) + 1
        shape = np.zeros((h + 2 * pad, w + 2 * pad), np.uint8)
        shape[pad : pad + h, pad : pad + w] = sprite[..., 3]
        shape = np.asarray(Image.fromarray(shape).filter(ImageFilter.BoxBlur(spread)))
        top, left = y - pad - round(sy * self.height * self.short), x - pad - round(sx * self.height * self.short)
        shadow = shape[max(-top, 0) :, max(-left, 0) :] * np.float32(self.dark / 255)
        ground = self.paint[:, max(top, 0) : top + h + 2 * pad, max(left, 0) : left + w + 2 * pad]
        ground *= 1 - shadow[: ground.shape[1], : ground.shape[2]]
        lit = 1 + 0.22 * (np.linspace(-sy, sy, h, dtype=np.float32)[:, None] + np.linspace(-sx, sx, w, dtype=np.float32)[None])
        under, over = self.paint[:, y : y + h, x : x + w], sprite.transpose(2, 0, 1).astype(np.float32)
        under += (over[:3] * lit - under) * (over[3] * np.float32(1 / 255))

    def seen(self, index: int) -> tuple[tuple[int, int, int, int], np.ndarray]:
        """The box and the run lengths of what is visible of a thing."""
        rows, columns = self.places[index]
        crop = self.owner[rows, columns] == index + 1
        ys, xs = np.flatnonzero(crop.any(1)), np.flatnonzero(crop.any(0))
        box = (columns.start + int(xs[0]), rows.start + int(ys[0]), columns.start + int(xs[-1]) + 1, rows.start + int(ys[-1]) + 1)
        return box, encode_runs(crop, self.size_hw, (rows.start, columns.start))


def projection(rng: Generator, turn: float) -> np.ndarray:
    """3 x 3 projection of a drawing: turned, sheared a little, seen slightly from the side."""
    angle = math.radians(rng.uniform(-turn, turn))
    c, s = math.cos(angle), math.sin(angle)
    squeeze = np.array([[rng.uniform(0.8, 1.0), rng.uniform(-0.12, 0.12)], [0, rng.uniform(0.8, 1.0)]])
    out = np.eye(3)
    out[:2, :2] = np.array([[c, -s], [s, c]]) @ squeeze
    out[2, :2] = rng.uniform(-0.12, 0.12, 2)
    return out


def color_matrix(hue_shift: float, saturation: float) -> np.ndarray | None:
    """3 x 3 matrix that turns RGB about the gray axis and stretches it away from there; None where it would do nothing."""
    if not hue_shift and saturation == 1:
        return None
    c, s, gray = math.cos(math.radians(hue_shift)), math.sin(math.radians(hue_shift)) / math.sqrt(3), np.full((3, 3), 1 / 3)
    return np.asarray(gray + saturation * (c * (np.eye(3) - gray) + s * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])))


def expose(rng: Generator, paint: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3]: the painted scene as a camera might see it, with its light, color cast, blur and noise."""
    down, across = (
        1 + rng.uniform(-0.2, 0.2) * t - rng.uniform(0, 0.15) * t * t for t in (np.linspace(-1, 1, n, dtype=np.float32) for n in size_hw)
    )
    gain = np.float32(rng.uniform(0.9, 1.1, (3, 1, 1)) * rng.uniform(0.7, 1.2))
    contrast, level = rng.uniform(0.75, 1.15), rng.uniform(100, 150)
    seen = paint * np.outer(down, across) * (gain * np.float32(contrast))
    seen += level * (1 - contrast)
    blur = rng.uniform(0.2, 1.1) * min(size_hw) / 224 if rng.random() < 0.5 else 0
    grains = np.frombuffer(rng.bytes(2 * paint[0].size), np.uint8).reshape(2, *size_hw)  # two even distributions make a nearly normal one
    noise = (np.add(*grains, dtype=np.float32) - 255) * (rng.uniform(0, 9) / 104)
    for plane, strength in zip(seen, rng.uniform(0.6, 1.2, 3).tolist(), strict=True):
        if blur:
            plane[:] = np.asarray(as_picture(plane).filter(ImageFilter.BoxBlur(blur)))
        plane += noise * strength
    return np.asarray(Image.merge("RGB", [as_picture(plane) for plane in seen]))


def as_picture(plane: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(plane, 0, 255).astype(np.uint8))
