"""A frame with boxes, masks, labels, the numbers and trails of tracks, and counts by class."""

from __future__ import annotations

from collections import Counter, deque
from itertools import pairwise

from PIL import Image, ImageDraw, ImageFont

from rapidetr.draw.boxes import draw_detections
from rapidetr.draw.colors import Color, class_color, text_color
from rapidetr.video.records import NO_TRACK, TrackedFrame

TRAIL_S = 1.5  # seconds that a trail reaches back
LONGEST_TRAIL = 64  # points, however fast frames come
MOST_ROWS = 8  # classes that are counted on the picture

Point = tuple[float, float]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Painter:
    """Paints frames in their order; holds the trails of what was in sight a moment ago."""

    def __init__(self) -> None:
        self._trails: dict[int, deque[tuple[float, Point]]] = {}

    def paint(self, frame: TrackedFrame) -> Image.Image:
        """The frame in RGB, same size."""
        picture = draw_detections(frame.detections, frame.pixels)
        self._lengthen(frame)
        letters = max(10, round((picture.width * picture.height) ** 0.5 / 45))
        pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=letters)
        for i in reversed(range(len(frame.detections))):
            track = int(frame.track_ids[i])
            if track != NO_TRACK:
                color = class_color(int(frame.detections.class_ids[i]))
                self._draw_trail(pen, track, color, max(3, letters // 4))
                _write_number(pen, font, f"#{track}", self._trails[track][-1][1], color, letters)
        _write_counts(picture, frame, font, letters)
        return picture

    def _lengthen(self, frame: TrackedFrame) -> None:
        now = frame.time_s
        for track, (x0, y0, x1, y1) in zip(frame.track_ids.tolist(), frame.detections.boxes_xyxy_px.tolist(), strict=True):
            if track != NO_TRACK:
                self._trails.setdefault(track, deque(maxlen=LONGEST_TRAIL)).append((now, ((x0 + x1) / 2, (y0 + y1) / 2)))
        for track, trail in list(self._trails.items()):
            while trail and trail[0][0] < now - TRAIL_S:
                trail.popleft()
            if not trail:
                del self._trails[track]

    def _draw_trail(self, pen: ImageDraw.ImageDraw, track: int, color: Color, width: int) -> None:
        """From the oldest point on, thin to thick."""
        points = [point for _, point in self._trails[track]]
        for shade, more in ((text_color(color), 2), (color, 0)):  # edged, so that it shows on a thing of its own color
            for i, (begin, end) in enumerate(pairwise(points)):
                pen.line((*begin, *end), shade, more + max(1, round(width * (i + 1) / len(points))))


def _write_number(pen: ImageDraw.ImageDraw, font: Font, text: str, at: Point, color: Color, letters: int) -> None:
    """A badge around a point."""
    half_width, half_height = pen.textlength(text, font) / 2 + letters // 4, letters * 0.65
    pen.rounded_rectangle(
        (at[0] - half_width, at[1] - half_height, at[0] + half_width, at[1] + half_height), letters // 3, color, text_color(color)
    )
    pen.text(at, text, text_color(color), font, anchor="mm")


def _write_counts(picture: Image.Image, frame: TrackedFrame, font: Font, letters: int) -> None:
    """Bottom left, a row for each class: how many are in sight, and how many tracks there were."""
    now = Counter(frame.detections.class_names)
    names = [name for name, _ in (Counter(frame.tracks_seen) + now).most_common(MOST_ROWS)]
    rows = [f"{name or 'unnamed'}  {now[name]}" + (f" / {frame.tracks_seen.get(name, 0)}" if frame.tracks_seen else "") for name in names]
    if not rows:
        return
    text, pad = "\n".join(rows), letters // 2
    box = ImageDraw.Draw(picture).multiline_textbbox((0, 0), text, font)
    width, height = int(box[2]) + 2 * pad, int(box[3]) + 2 * pad
    top = max(0, picture.height - height)
    shade = Image.new("L", (width, height), 150)
    picture.paste((0, 0, 0), (0, top), shade)
    ImageDraw.Draw(picture).multiline_text((pad, top + pad), text, (255, 255, 255), font)
