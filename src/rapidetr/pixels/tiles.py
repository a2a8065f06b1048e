"""Large pictures in pieces: cut them into overlapping tiles, and merge what was found in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rapidetr.core.detections import Detections
from rapidetr.core.errors import ConfigError
from rapidetr.core.masks import Masks, encode_runs
from rapidetr.core.outputs import Geometry
from rapidetr.pixels.overlap import overlap as overlap_of


def cut(picture: np.ndarray, tile_hw: tuple[int, int], overlap: float, *, include_whole: bool = False) -> list[tuple[np.ndarray, Geometry]]:
    """Views of a picture [H, W, C] that cover it, row by row, with where they lie; the last of a row or column is moved inside.

    `overlap` is the least share (0..1, 1 excluded) of a tile that its neighbor sees too: choose it so that the largest
    object fits. `include_whole` adds the whole picture as the last view, which finds what is larger than a tile.
    """
    if min(tile_hw) < 1 or not 0 <= overlap < 1:
        raise ConfigError(f"tiles of {tile_hw[0]}x{tile_hw[1]} with overlap {overlap}; expected at least one pixel and 0 <= overlap < 1")
    whole: tuple[int, int] = picture.shape[:2]
    size = (min(tile_hw[0], whole[0]), min(tile_hw[1], whole[1]))
    views = [
        (picture[y : y + size[0], x : x + size[1]], Geometry(size, (y, x), whole))
        for y in starts(whole[0], size[0], overlap)
        for x in starts(whole[1], size[1], overlap)
    ]
    if include_whole and len(views) > 1:
        views.append((picture, Geometry(whole)))
    return views


def starts(length: int, tile: int, overlap: float) -> list[int]:
    """First pixels of tiles along one side."""
    step = max(1, int(tile * (1 - overlap)))
    return [*range(0, length - tile, step), length - tile]


def merge(parts: Sequence[Detections], tiles: Sequence[Geometry], *, iou: float = 0.5) -> Detections:
    """Detections of the whole picture from those of its tiles, as `select` returns them, best first.

    Of two boxes of one class from different tiles the worse is dropped if they overlap by more than `iou`; a box cut off
    at the border of its tile counts as worse than a complete one, and is dropped if that share of the smaller box is
    common. What is left of cut boxes on both sides of a border is joined if they lie beside each other by that share.
    """
    if not parts or len(parts) != len(tiles):
        raise ConfigError(f"{len(parts)} parts for {len(tiles)} tiles; expected one for each, at least one")
    order = np.argsort(-np.concatenate([p.scores for p in parts]), kind="stable")  # as Detections.concatenate orders
    tile = np.repeat(np.arange(len(parts)), [len(p) for p in parts])[order]
    found, borders = Detections.concatenate(parts), np.array([border(t) for t in tiles])[tile]
    cuts = np.concatenate([cut_sides(p, t) for p, t in zip(parts, tiles, strict=True)])[order]
    keep = unique(found, tile, cuts, iou, by_cut=False)  # first, so that no piece of a complete object is joined
    found, tile, cuts = join(found[keep], tile[keep], borders[keep], cuts[keep], iou)
    return found[unique(found, tile, cuts, iou, by_cut=True)]


def border(tile: Geometry) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a tile in the whole picture."""
    (height, width), (y, x) = tile.image_hw, tile.offset_yx
    return x, y, x + width, y + height


def cut_sides(part: Detections, tile: Geometry) -> np.ndarray:
    """bool [N, 4]: left, top, right or bottom of a box lies at a border of its tile that is not one of the picture."""
    left, top, right, bottom = border(tile)
    inner = np.array([left > 0, top > 0, right < tile.full_hw[1], bottom < tile.full_hw[0]])
    near = 1 + 0.01 * np.array([right - left, bottom - top] * 2)  # predicted sides scatter by about a hundredth of the view
    return np.asarray(inner & (np.abs(part.boxes_xyxy_px - np.array([left, top, right, bottom])) <= near))


def unique(found: Detections, tile: np.ndarray, cuts: np.ndarray, iou: float, *, by_cut: bool) -> np.ndarray:
    """bool [N]: False for what another tile shows better, complete boxes before cut ones; `by_cut` lets cut ones outdo cut ones."""
    keep = np.ones(len(found), bool)
    cut = np.asarray(cuts.any(axis=1))
    ranking = np.argsort(cut, kind="stable")
    for place, i in enumerate(ranking):
        if keep[i] and (by_cut or not cut[i]):
            rest = ranking[place + 1 :]
            over_union, over_smaller = overlap_of(found.boxes_xyxy_px[i], found.boxes_xyxy_px[rest])
            rival = (found.head_rows[rest] == found.head_rows[i]) & (tile[rest] != tile[i])
            keep[rest] &= ~(rival & ((over_union > iou) | (cut[rest] & (over_smaller > iou))))
    return keep


def join(
    found: Detections, tile: np.ndarray, borders: np.ndarray, cuts: np.ndarray, share: float
) -> tuple[Detections, np.ndarray, np.ndarray]:
    """(detections, tile, cuts) with the pieces of one object replaced by their union, which gets a tile number of its own."""
    group = np.arange(len(found))
    for i in np.flatnonzero(cuts.any(axis=1)):
        for j in np.flatnonzero(continues(found, borders, cuts, int(i), share)):
            group[group == group[j]] = group[i]
    boxes, tile, cuts = found.boxes_xyxy_px.copy(), tile.copy(), cuts.copy()
    counts = None if found.masks is None else list(found.masks.counts)
    leads = np.sort(np.unique(group, return_index=True)[1])  # the best of each group, as the order is by score
    for lead in leads:
        members = np.flatnonzero(group == group[lead])
        if len(members) > 1:
            union = np.concatenate([found.boxes_xyxy_px[members, :2].min(axis=0), found.boxes_xyxy_px[members, 2:].max(axis=0)])
            cuts[lead] = (cuts[members] & (found.boxes_xyxy_px[members] == union)).any(axis=0)  # inner sides are cut no more
            boxes[lead], tile[lead] = union, -1 - lead
            if found.masks is not None and counts is not None:
                counts[lead] = encode_runs(np.logical_or.reduce([found.masks[m] for m in members]))
    masks = None if counts is None else Masks(found.image_hw, counts)
    return replace(found, boxes_xyxy_px=boxes, masks=masks)[leads], tile[leads], cuts[leads]


def continues(found: Detections, borders: np.ndarray, cuts: np.ndarray, i: int, share: float) -> np.ndarray:
    """bool [N]: boxes that go on to the right of (below) box `i` where its tile ends, and lie beside it by `share` of the shorter side."""
    boxes, result = found.boxes_xyxy_px, np.zeros(len(found), bool)
    for axis in (0, 1):  # x: right side of `i` to left sides; y: bottom to tops
        low, high, across = axis, axis + 2, 1 - axis
        next_tile = (borders[:, low] > borders[i, low]) & (borders[:, low] <= borders[i, high])
        through = (boxes[i, low] <= boxes[:, low]) & (boxes[i, high] <= boxes[:, high])  # both cover all that the two tiles share
        beside = np.minimum(boxes[:, across + 2], boxes[i, across + 2]) - np.maximum(boxes[:, across], boxes[i, across])
        shorter = np.minimum(boxes[:, across + 2] - boxes[:, across], boxes[i, across + 2] - boxes[i, across])
        result |= cuts[i, high] & cuts[:, low] & next_tile & through & (beside > share * shorter)
    return np.asarray(result & (found.head_rows == found.head_rows[i]))
