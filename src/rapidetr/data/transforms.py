"""Geometry that moves pixels, boxes and masks together: pure functions without chance. Pixel (0, 0) covers 0..1 x 0..1."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from rapidetr.data.samples import Sample
from rapidetr.pixels.prepare import resize_antialiased


def clip(sample: Sample, min_visible: float = 0.0) -> Sample:
    """Boxes cut at the border; objects without box or mask there, or of whose box less than `min_visible` is left, dropped."""
    height, width = sample.size_hw
    before = sample.boxes_xyxy_px
    boxes = np.clip(before, 0, np.array([width, height, width, height], np.float32))
    sides = boxes[:, 2:] - boxes[:, :2]
    chosen = (sides > 0).all(1) & (sides.prod(1) >= min_visible * (before[:, 2:] - before[:, :2]).prod(1))
    if sample.masks is not None:
        chosen &= sample.masks.any((1, 2))
    sample = replace(sample, boxes_xyxy_px=boxes)
    return sample if chosen.all() else sample.keep(chosen)


def tighten(sample: Sample) -> Sample:
    """Boxes drawn anew around the masks, where there are masks; none of them may be empty."""
    return sample if sample.masks is None else replace(sample, boxes_xyxy_px=enclose_masks(sample.masks))


def enclose_masks(masks: np.ndarray) -> np.ndarray:
    """float32 [n, 4]: the smallest boxes around bool [n, H, W]."""
    rows, columns = np.asarray(masks.any(2)), np.asarray(masks.any(1))
    first = [side.argmax(1) for side in (columns, rows)]
    last = [side.shape[1] - side[:, ::-1].argmax(1) for side in (columns, rows)]
    return np.stack([*first, *last], 1).astype(np.float32)


def resize(sample: Sample, size_hw: tuple[int, int]) -> Sample:
    """Stretched to `size_hw`: pixels with Pillow's antialiased filter, masks by the nearest pixel."""
    if sample.size_hw == tuple(size_hw):
        return sample
    (h, w), (height, width) = sample.size_hw, size_hw
    boxes = sample.boxes_xyxy_px * np.array([width / w, height / h] * 2, np.float32)
    masks = None if sample.masks is None else resize_masks(sample.masks, size_hw)
    return replace(sample, pixels=resize_antialiased(sample.pixels, size_hw), boxes_xyxy_px=boxes, masks=masks)


def resize_masks(masks: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """bool [n, H, W] at another size, by the nearest pixel."""
    rows, columns = (((np.arange(new) + 0.5) * (old / new)).astype(np.intp) for old, new in zip(masks.shape[1:], size_hw, strict=True))
    return masks.take(rows, 1).take(columns, 2)


def crop(sample: Sample, top: int, left: int, size_hw: tuple[int, int]) -> Sample:
    """The window of `size_hw` at (top, left); boxes move along and may leave it until `clip`."""
    rows, columns = slice(top, top + size_hw[0]), slice(left, left + size_hw[1])
    return replace(
        sample,
        pixels=sample.pixels[rows, columns],
        boxes_xyxy_px=sample.boxes_xyxy_px - np.array([left, top] * 2, np.float32),
        masks=None if sample.masks is None else sample.masks[:, rows, columns],
    )


def flip(sample: Sample) -> Sample:
    """Left and right exchanged."""
    x0, y0, x1, y1 = sample.boxes_xyxy_px.T
    width = np.float32(sample.size_hw[1])
    masks = None if sample.masks is None else sample.masks[:, :, ::-1]
    return replace(sample, pixels=sample.pixels[:, ::-1], boxes_xyxy_px=np.stack([width - x1, y0, width - x0, y1], 1), masks=masks)


def turn(sample: Sample) -> Sample:
    """A quarter counterclockwise: a picture of H x W becomes W x H."""
    x0, y0, x1, y1 = sample.boxes_xyxy_px.T
    width = np.float32(sample.size_hw[1])
    masks = None if sample.masks is None else np.rot90(sample.masks, axes=(1, 2))
    return replace(sample, pixels=np.rot90(sample.pixels), boxes_xyxy_px=np.stack([y0, width - x1, y1, width - x0], 1), masks=masks)


def flip_vertical(sample: Sample) -> Sample:
    """Top and bottom exchanged."""
    return flip(turn(turn(sample)))


def warp(sample: Sample, matrix: np.ndarray, fill: tuple[int, int, int]) -> Sample:
    """Moved by `matrix` [3, 3], which maps x, y, 1 to x, y, 1 in a picture of the same size; what comes from outside is `fill`.

    Boxes enclose the moved ellipse that fills the old box, not its moved corners, which would grow by 41 % at 45 degrees
    (Kalra et al., Towards Rotation Invariance in Object Detection, ICCV 2021). They may leave the picture until `clip`.
    """
    size_wh = sample.size_hw[::-1]
    back = tuple(np.linalg.inv(matrix)[:2].ravel().tolist())
    picture = Image.fromarray(sample.pixels).transform(size_wh, Image.Transform.AFFINE, back, Image.Resampling.BILINEAR, fillcolor=fill)
    masks = sample.masks
    if masks is not None:
        moved = [Image.fromarray(m.view(np.uint8)).transform(size_wh, Image.Transform.AFFINE, back) for m in np.ascontiguousarray(masks)]
        masks = np.stack([np.asarray(m) for m in moved]).view(bool) if moved else masks
    boxes = sample.boxes_xyxy_px.reshape(-1, 2, 2).astype(np.float64)
    center = boxes.mean(1) @ matrix[:2, :2].T + matrix[:2, 2]
    half = np.sqrt(((boxes[:, 1] - boxes[:, 0]) / 2) ** 2 @ (matrix[:2, :2] ** 2).T)
    return replace(
        sample, pixels=np.asarray(picture), boxes_xyxy_px=np.concatenate([center - half, center + half], 1).astype(np.float32), masks=masks
    )
