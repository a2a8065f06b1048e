"""Masks held compactly: run lengths per mask, decoded one at a time, never N x H x W floats.

Runs follow COCO's convention: pixels column by column, counts alternate background and object, starting with background.
The string form of the counts is the one of the COCO annotation tools (signed 5-bit groups, differences to the count
before the last).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rapidetr.core.errors import ConfigError


class Masks:
    """N binary masks of one picture of `size_hw` pixels."""

    def __init__(self, size_hw: tuple[int, int], counts: Sequence[np.ndarray]) -> None:
        self.size_hw = (int(size_hw[0]), int(size_hw[1]))
        self.counts = [np.ascontiguousarray(c, np.uint32) for c in counts]

    @classmethod
    def from_dense(cls, masks: np.ndarray) -> Masks:
        """From bool [N, H, W]."""
        if masks.ndim != 3:
            raise ConfigError(f"masks have shape {masks.shape}; expected [N, H, W]")
        return cls(masks.shape[1:], [encode_runs(m) for m in masks.astype(bool)])

    @classmethod
    def from_rle(cls, records: Sequence[dict[str, Any]], size_hw: tuple[int, int]) -> Masks:
        """Inverse of `rle`; also takes uncompressed COCO counts (lists)."""
        return cls(size_hw, [counts_of_rle(r, size_hw) for r in records])

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, index: Any) -> Any:
        """An integer gives one bool [H, W]; a slice, an index array or a bool array gives Masks."""
        if isinstance(index, int | np.integer):
            return decode_runs(self.counts[index], self.size_hw)
        keep = np.arange(len(self))[index]
        return Masks(self.size_hw, [self.counts[i] for i in keep])

    def __iter__(self) -> Iterator[np.ndarray]:
        return (decode_runs(c, self.size_hw) for c in self.counts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Masks):
            return NotImplemented
        return self.size_hw == other.size_hw and len(self) == len(other) and all(map(np.array_equal, self.counts, other.counts))

    __hash__ = None  # type: ignore[assignment]

    @property
    def areas(self) -> np.ndarray:
        """int64 [N]: pixels of each mask."""
        return np.array([int(c[1::2].sum(dtype=np.int64)) for c in self.counts], np.int64)

    @property
    def nbytes(self) -> int:
        return sum(c.nbytes for c in self.counts)

    def crop(self, index: int) -> tuple[tuple[int, int], np.ndarray]:
        """((y, x), bool [h, w]): the smallest rectangle that holds mask `index`, and its upper left corner."""
        height = self.size_hw[0]
        counts = self.counts[index]
        ends = np.cumsum(counts, dtype=np.int64)
        starts, stops = ends[:-1:2], ends[1::2]
        if not len(stops):
            return (0, 0), np.zeros((0, 0), bool)
        left, right = int(starts[0] // height), int((stops[-1] - 1) // height) + 1
        columns = decode_runs(counts, self.size_hw, left, right)
        rows = np.flatnonzero(columns.any(axis=1))
        return (int(rows[0]), left), np.ascontiguousarray(columns[rows[0] : rows[-1] + 1])

    def dense(self) -> np.ndarray:
        """bool [N, H, W]; this is the form that needs N x H x W bytes."""
        out = np.zeros((len(self), *self.size_hw), bool)
        for row, mask in zip(out, self, strict=True):
            row[:] = mask
        return out

    def rle(self) -> list[dict[str, Any]]:
        """COCO run-length records, `counts` as string."""
        return [{"size": list(self.size_hw), "counts": compress_counts(c)} for c in self.counts]

    def polygons(self, tolerance: float = 1.0) -> list[list[np.ndarray]]:
        """For each mask its outer outlines, float32 [P, 2] as x, y in pixels, simplified by at most `tolerance` pixels.

        Outlines run along pixel edges (tolerance 0 gives the exact outline). Holes are not part of polygons; use `rle`
        where they matter.
        """
        outlines = []
        for i in range(len(self)):
            (y, x), crop = self.crop(i)
            outlines.append([simplify(ring, tolerance) + np.array([x, y], np.float32) for ring in trace_outlines(crop)])
        return outlines

    def moved(self, size_hw: tuple[int, int], offset_yx: tuple[int, int]) -> Masks:
        """The same masks placed at `offset_yx` in a picture of `size_hw`."""
        counts = []
        for i in range(len(self)):
            (y, x), crop = self.crop(i)
            counts.append(encode_runs(crop, size_hw, (y + offset_yx[0], x + offset_yx[1])))
        return Masks(size_hw, counts)


def encode_runs(mask: np.ndarray, size_hw: tuple[int, int] | None = None, offset_yx: tuple[int, int] = (0, 0)) -> np.ndarray:
    """uint32 counts of a bool [h, w] that lies at `offset_yx` in an otherwise empty picture of `size_hw`."""
    h, w = mask.shape
    height, width = size_hw or (h, w)
    if not (0 <= offset_yx[0] <= height - h and 0 <= offset_yx[1] <= width - w):
        raise ConfigError(f"a mask of {h}x{w} at {offset_yx} does not lie inside a picture of {height}x{width}")
    columns = np.zeros((w, h + 2), np.int8)  # one empty pixel before and after each column makes every run visible
    columns[:, 1:-1] = mask.T
    edges = np.flatnonzero(np.diff(columns.reshape(-1)))
    column, row = edges // (h + 2), edges % (h + 2)
    flat = (column + offset_yx[1]) * height + row + offset_yx[0]
    starts, stops = flat[::2], flat[1::2]
    joined = starts[1:] == stops[:-1]  # a run that goes on at the top of the next column
    starts, stops = starts[np.r_[True, ~joined]] if len(starts) else starts, stops[np.r_[~joined, True]] if len(stops) else stops
    bounds = np.empty(2 * len(starts) + 1, np.int64)
    bounds[:-1:2], bounds[1::2], bounds[-1] = starts, stops, height * width
    counts = np.diff(bounds, prepend=0)
    return (counts[:-1] if counts[-1] == 0 and len(counts) > 1 else counts).astype(np.uint32)


def decode_runs(counts: np.ndarray, size_hw: tuple[int, int], left: int = 0, right: int | None = None) -> np.ndarray:
    """bool [H, right - left]: the columns left..right-1 of a mask."""
    height, width = size_hw
    right = width if right is None else right
    ends = np.clip(np.cumsum(counts, dtype=np.int64), left * height, right * height) - left * height
    values = np.zeros(len(counts), bool)
    values[1::2] = True
    flat = np.repeat(values, np.diff(ends, prepend=0))
    if len(flat) != (right - left) * height:
        flat = np.concatenate([flat, np.zeros((right - left) * height - len(flat), bool)])
    return flat.reshape(right - left, height).T


def compress_counts(counts: np.ndarray) -> str:
    """COCO's string form of run counts."""
    values = counts.astype(np.int64)
    values[3:] -= counts[1:-2].astype(np.int64)
    groups, used = np.zeros((len(values), 8), np.uint8), np.zeros((len(values), 8), bool)
    active = np.ones(len(values), bool)
    for k in range(8):
        low = values & 31
        values = values >> 5
        more = active & ~(((values == 0) & (low & 16 == 0)) | ((values == -1) & (low & 16 != 0)))
        groups[:, k] = (low | (more << 5)) + 48
        used[:, k] = active
        active = more
    return groups[used].tobytes().decode("ascii")


def counts_of_rle(record: dict[str, Any], size_hw: tuple[int, int] | None = None) -> np.ndarray:
    """uint32 counts of a COCO record, of a picture of `size_hw` if given; `counts` is a string, bytes or a list.

    ConfigError on damage of any kind.
    """
    raw, size = (record.get("counts"), record.get("size", size_hw)) if isinstance(record, dict) else (None, None)
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(isinstance(side, int) and side >= 0 for side in size):
        raise ConfigError(f"run-length record has size {size!r}; expected height and width")
    if size_hw is not None and tuple(size) != tuple(size_hw):
        raise ConfigError(f"run-length record is of a picture of {size!r}; expected {list(size_hw)}")
    pixels = size[0] * size[1]
    if pixels >= 2**32:
        raise ConfigError(f"run-length record is of a picture of {size}; expected fewer than 2**32 pixels")
    if isinstance(raw, str | bytes):
        counts = expand_counts(raw)
    elif isinstance(raw, list) and all(isinstance(c, int) and 0 <= c <= pixels for c in raw):
        counts = np.array(raw, np.int64)
    else:
        raise ConfigError(
            f"run-length counts are damaged: {str(raw)[:60]}; expected a string or a list of whole numbers from 0 to {pixels}"
        )
    if counts.sum() != pixels or not ((counts >= 0) & (counts <= pixels)).all():
        raise ConfigError(f"run-length counts are damaged: they do not sum to the {pixels} pixels of a picture of {size}")
    if (counts[1:] == 0).any():  # other programs may write runs of nothing; here each mask has one form only
        return encode_runs(decode_runs(counts, (size[0], size[1])))
    return counts.astype(np.uint32)


def expand_counts(text: str | bytes) -> np.ndarray:
    """Inverse of `compress_counts`, int64 and unchecked in value; ConfigError where the text is not such a string."""
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    code = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
    last = code & 32 == 0
    if not len(code) or (code < 0).any() or (code > 63).any() or not last[-1]:
        raise ConfigError("run-length counts are damaged: characters outside 0..63 or cut off")
    group = np.concatenate([[0], np.cumsum(last)[:-1]])
    begin = np.flatnonzero(np.r_[True, last[:-1]])
    place = np.arange(len(code)) - begin[group]
    if place.max() > 7:
        raise ConfigError("run-length counts are damaged: a number is too long")
    counts = np.bincount(group, weights=((code & 31) << (5 * place)).astype(np.float64)).astype(np.int64)
    counts -= np.where(code[last] & 16 != 0, np.int64(1) << (5 * (place[last] + 1)), 0)
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return counts


def trace_outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Outer outlines of a bool [h, w] along pixel edges, clockwise, float32 [P, 2] as x, y; 4-connected regions."""
    if mask.size == 0:
        return []
    padded = np.pad(mask, 1)
    inner = padded[1:-1, 1:-1]
    step: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for shifted, begin, end in (
        (padded[:-2, 1:-1], (0, 0), (1, 0)),  # nothing above: go right along the upper edge
        (padded[1:-1, 2:], (1, 0), (1, 1)),  # nothing to the right: go down
        (padded[2:, 1:-1], (1, 1), (0, 1)),  # nothing below: go left
        (padded[1:-1, :-2], (0, 1), (0, 0)),  # nothing to the left: go up
    ):
        ys, xs = np.nonzero(inner & ~shifted)
        for x, y in zip(xs.tolist(), ys.tolist(), strict=True):
            step.setdefault((x + begin[0], y + begin[1]), []).append((x + end[0], y + end[1]))
    rings = []
    while step:
        start = next(iter(step))
        here, heading, second = start, (0, 0), step[start][0]
        ring: list[tuple[int, int]] = []
        while here in step:
            choices = step[here]
            # where two pixels touch at a corner, turn right: that stays with the same pixel
            right = (here[0] - heading[1], here[1] + heading[0])
            if ring and here == start and right == second:
                break  # closed; what is left at this corner belongs to another outline
            there = choices.pop(choices.index(right) if right in choices else 0)
            if not choices:
                del step[here]
            turn = (there[0] - here[0], there[1] - here[1])
            if turn != heading:
                ring.append(here)
            here, heading = there, turn
        if len(ring) > 1 and (ring[1][0] == ring[0][0]) == (ring[-1][0] == ring[0][0]):
            ring = ring[1:]  # the start lay in the middle of a straight edge
        points = np.array(ring, np.float32)
        x, y = points.T.astype(np.float64)  # float32 loses the sign of a small ring far from the corner
        if float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) > 0:  # clockwise on screen: an outer outline
            rings.append(points)
    return rings


def simplify(ring: np.ndarray, tolerance: float) -> np.ndarray:
    """Douglas and Peucker's line simplification of a closed ring, float32 [P, 2]; keeps at least three points."""
    if tolerance <= 0 or len(ring) <= 4:
        return ring
    far = int(np.argmax(((ring - ring[0]) ** 2).sum(1)))
    closed = np.concatenate([ring, ring[:1]])
    keep = np.zeros(len(closed), bool)
    keep[[0, far, -1]] = True
    stack = [(0, far), (far, len(closed) - 1)]
    while stack:
        a, b = stack.pop()
        if b - a < 2:
            continue
        chord, inside = closed[b] - closed[a], closed[a + 1 : b] - closed[a]
        length = float(np.hypot(*chord))
        distance = np.abs(chord[0] * inside[:, 1] - chord[1] * inside[:, 0]) / length if length else np.hypot(inside[:, 0], inside[:, 1])
        worst = int(np.argmax(distance))
        if distance[worst] > tolerance:
            keep[a + 1 + worst] = True
            stack += [(a, a + 1 + worst), (a + 1 + worst, b)]
    slim = closed[:-1][keep[:-1]]
    return slim if len(slim) >= 3 else ring
