"""The rendered world: exact truth, the promised distribution, and the same scene everywhere."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from rapidetr.core.errors import ConfigError
from rapidetr.demo import VARIATION, WORLD, Scene, Variation, render_scene
from rapidetr.demo.ground import GROUNDS
from rapidetr.demo.strokes import Drawing, disc, paint
from rapidetr.demo.things import CLUTTER, THINGS
from rapidetr.demo.world import color_matrix

# (seed, variation): classes, boxes, areas
EXPECTED: dict[tuple[int, bool], tuple[list[int], list[list[int]], list[int]]] = {
    (0, False): (
        [0, 5, 0, 6, 4, 0],
        [[56, 88, 123, 147], [82, 36, 141, 72], [142, 32, 207, 115], [16, 179, 123, 217], [19, 25, 63, 78], [140, 128, 219, 214]],
        [2581, 1095, 3166, 2844, 1457, 3738],
    ),
    (1, False): (
        [3, 5, 7, 0, 2, 0, 2],
        [
            [137, 97, 214, 185],
            [12, 54, 93, 122],
            [26, 122, 88, 183],
            [108, 35, 190, 128],
            [150, 100, 204, 155],
            [100, 134, 171, 215],
            [98, 110, 126, 132],
        ],
        [965, 1894, 2668, 4574, 1610, 3179, 407],
    ),
    (0, True): (
        [3, 1, 2, 2, 3, 0, 1],
        [
            [177, 109, 219, 152],
            [136, 18, 224, 117],
            [55, 102, 118, 164],
            [100, 160, 158, 211],
            [114, 169, 130, 202],
            [23, 144, 62, 181],
            [12, 51, 64, 106],
        ],
        [830, 5505, 2131, 1250, 224, 1140, 2112],
    ),
}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render_scene(seed) for seed in range(120)]


def truth_digest(scene: Scene) -> str:
    parts = (scene.boxes_xyxy_px.tobytes(), scene.class_ids.tobytes(), *(c.tobytes() for c in scene.masks.counts))
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def check_truth(scene: Scene, size_hw: tuple[int, int], classes: int) -> None:
    """Shapes and types, and by slow means: masks disjoint and not empty, boxes tight around them."""
    n, dense = len(scene.class_ids), scene.masks.dense()
    assert scene.pixels.shape == (*size_hw, 3)
    assert scene.pixels.dtype == np.uint8
    assert scene.boxes_xyxy_px.shape == (n, 4)
    assert dense.shape == (n, *size_hw)
    assert 1 <= n <= 8
    assert ((scene.class_ids >= 0) & (scene.class_ids < classes)).all()
    assert dense.sum(0).max() == 1
    for mask, box in zip(dense, scene.boxes_xyxy_px.tolist(), strict=True):
        ys, xs = np.nonzero(mask)
        assert box == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_truth_is_exact(scenes: list[Scene]) -> None:
    for scene in scenes:
        check_truth(scene, (224, 224), len(WORLD.classes))


@pytest.mark.parametrize("size_hw", [(96, 96), (96, 160), (200, 120), (288, 288)])
@pytest.mark.parametrize("variation", [None, VARIATION])
def test_truth_is_exact_at_other_sizes(size_hw: tuple[int, int], variation: Variation | None) -> None:
    for seed in range(12):
        check_truth(render_scene(seed, size_hw=size_hw, variation=variation), size_hw, len((variation or WORLD).classes))


def test_same_seed_same_scene_other_seed_other_scene() -> None:
    a, b, c = render_scene(7), render_scene(7), render_scene(8)
    assert np.array_equal(a.pixels, b.pixels)
    assert truth_digest(a) == truth_digest(b) != truth_digest(c)
    assert not np.array_equal(a.pixels, c.pixels)


@pytest.mark.parametrize(("seed", "variation"), [*EXPECTED])
def test_scenes_never_change(seed: int, variation: bool) -> None:
    """Shipped figures were measured on these scenes; whoever changes the drawing must measure again."""
    scene = render_scene(seed, variation=VARIATION if variation else None)
    class_ids, boxes, areas = EXPECTED[seed, variation]
    assert scene.class_ids.tolist() == class_ids
    # Pillow 10 and 13 fill single pixels at the edges of polygons differently
    np.testing.assert_allclose(scene.boxes_xyxy_px, boxes, atol=1)
    np.testing.assert_allclose(scene.masks.areas, areas, atol=3)


def test_visible_share_and_hidden_things(scenes: list[Scene]) -> None:
    """About a fifth of all things is partly hidden, none is lost."""
    visible = np.concatenate([s.visible for s in scenes])
    assert visible.min() >= 0.3
    assert visible.max() == 1
    assert 0.14 <= (visible < 1).mean() <= 0.27
    assert (visible <= 0.85).sum() > 0.6 * (visible < 1).sum()  # most of the hidden ones miss a good part


def test_hidden_things_lose_pixels_to_others_only(scenes: list[Scene]) -> None:
    """A thing that nothing covers keeps all of its pixels, so its area is far above that of a covered twin's remainder."""
    for scene in scenes:
        for i in np.flatnonzero(scene.visible < 1):
            x0, y0, x1, y1 = scene.boxes_xyxy_px[i]
            later = scene.boxes_xyxy_px[i + 1 :]
            near = (later[:, 0] <= x1) & (later[:, 2] >= x0) & (later[:, 1] <= y1) & (later[:, 3] >= y0)
            assert near.any()  # only what was laid down later can cover


def test_sizes_and_counts(scenes: list[Scene]) -> None:
    boxes = np.concatenate([s.boxes_xyxy_px for s in scenes])
    whole = np.concatenate([s.visible for s in scenes]) == 1
    side = (boxes[:, 2:] - boxes[:, :2]).max(1)[whole] / 224
    assert side.min() >= 0.1 - 1.5 / 224  # thin tips may fade below half a pixel's cover
    assert side.max() <= 0.5 + 1 / 224
    assert (side < 0.2).mean() > 0.12
    assert (side > 0.4).mean() > 0.1
    assert {len(s.class_ids) for s in scenes} == set(range(1, 9))


def test_classes_are_balanced(scenes: list[Scene]) -> None:
    share = np.bincount(np.concatenate([s.class_ids for s in scenes]), minlength=8) / sum(len(s.class_ids) for s in scenes)
    assert len(share) == len(WORLD.classes) == 8
    assert share.min() > 0.08
    assert share.max() < 0.17


def test_light_and_grounds_vary(scenes: list[Scene]) -> None:
    means = np.array([s.pixels.mean((0, 1)) for s in scenes])
    assert means.mean(1).std() > 25
    assert np.ptp(means, axis=1).max() > 80  # some are strongly colored
    assert 60 < means.mean() < 190


def test_variation_has_a_new_class_and_other_colors() -> None:
    assert set(VARIATION.classes) - set(WORLD.classes) == {"leaf"}
    assert set(VARIATION.grounds) - set(WORLD.grounds) == {"pebbles", "bokeh"}
    matrix = color_matrix(VARIATION.hue_shift, VARIATION.saturation)
    assert matrix is not None
    np.testing.assert_allclose(matrix @ [90, 90, 90], [90, 90, 90], rtol=1e-12)  # gray stays gray, up to rounding
    assert np.argmax(matrix @ [200, 20, 20]) == 1  # red turns green
    assert color_matrix(0, 1) is None
    np.testing.assert_allclose(color_matrix(360, 1.0001) @ [10, 20, 30], [10, 20, 30], atol=0.01)  # type: ignore[operator]


@pytest.mark.parametrize("name", [*THINGS, "clutter"])
@pytest.mark.parametrize("side_px", [22.4, 60, 112])
def test_every_thing_fills_its_side(name: str, side_px: float) -> None:
    """The longer side of a sprite is what was asked for, every instance differs, and things show several colors."""
    thing = {**THINGS, "clutter": CLUTTER}[name]
    rng = np.random.default_rng(0)
    sprites = [paint(thing.draw(rng), np.eye(3), side_px, None) for _ in range(8)]
    assert len({s.tobytes() for s in sprites}) == 8
    for sprite in sprites:
        assert abs(max(sprite.shape[:2]) - side_px) <= 1
        assert (sprite[..., 3] >= 128).any()
        if name != "clutter":
            assert len(np.unique(sprite[sprite[..., 3] == 255][:, :3], axis=0)) >= 3


def test_mugs_and_keys_have_holes() -> None:
    for name in ("mug", "key"):
        sprite = paint(THINGS[name].draw(np.random.default_rng(3)), np.eye(3), 112, None)
        solid = sprite[..., 3] >= 128
        outside = np.zeros_like(solid)
        outside[[0, -1]], outside[:, [0, -1]] = ~solid[[0, -1]], ~solid[:, [0, -1]]
        for _ in range(sum(solid.shape)):
            grown = outside.copy()
            grown[1:] |= outside[:-1]
            grown[:-1] |= outside[1:]
            grown[:, 1:] |= outside[:, :-1]
            grown[:, :-1] |= outside[:, 1:]
            outside = grown & ~solid
        assert (~solid & ~outside).sum() > 20


def test_paint_projects_and_cuts() -> None:
    drawing = Drawing()
    drawing.add((200.0, 100.0, 50.0), disc(0, 0, 1))
    drawing.add(None, disc(0, 0, 0.5))
    sprite = paint(drawing, np.diag([1.0, 0.5, 1.0]), 60, None)
    assert sprite.shape[1:] == (60, 4)
    assert abs(sprite.shape[0] - 30) <= 1
    assert sprite[15, 30, 3] == 0
    assert sprite[15, 3].tolist() == [200, 100, 50, 255]
    ring = np.pi * 30 * 15 * (1 - 0.25)
    assert abs((sprite[..., 3] / 255).sum() - ring) < 0.03 * ring  # 32 corners and a coarse grid


@pytest.mark.parametrize("name", GROUNDS)
def test_grounds(name: str) -> None:
    for seed in range(5):
        ground = GROUNDS[name](np.random.default_rng(seed), (97, 130))
        assert ground.shape == (3, 97, 130)
        assert ground.dtype == np.float32
        assert np.isfinite(ground).all()
        assert ground.std((1, 2)).max() > 1


def test_messages() -> None:
    with pytest.raises(ConfigError) as e:
        render_scene(0, size_hw=(95, 200))
    assert str(e.value) == "scene size is 95x200; expected at least 96 pixels a side, so that small things keep their shape"
    with pytest.raises(ConfigError) as e:
        Variation(("mug", "cat"), ("wood",))
    assert str(e.value) == "unknown class cat; this world has: die, coin, card, sign, mug, key, pencil, clock, leaf"
    with pytest.raises(ConfigError) as e:
        Variation(("mug",), ())
    assert str(e.value) == "unknown ground (none given); this world has: gradient, wood, grain, tiles, blotches, cloth, pebbles, bokeh"
