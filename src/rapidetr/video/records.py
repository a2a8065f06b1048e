"""What goes from decoding to detecting, and from there to whoever draws, writes or counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from rapidetr.core.detections import Detections

NO_TRACK = -1


@dataclass(frozen=True, eq=False)
class Frame:
    """`pixels` RGB uint8 [H, W, 3], upright · `index` counts every frame of the source from 0, those that are left out too ·
    `time` in seconds since the first frame, exact, always growing.
    """

    index: int
    time: Fraction
    pixels: np.ndarray

    @property
    def time_s(self) -> float:
        return float(self.time)


@dataclass(frozen=True, eq=False)
class TrackedFrame(Frame):
    """A frame and what was found in it.

    `track_ids` int64 [N], one for each detection, -1 where it is on no track (yet) · `tracks_seen` counts the tracks so far by
    class name, each under the class that it had when it got its number · `dropped`: frames that were dropped so far.
    """

    detections: Detections
    track_ids: np.ndarray
    tracks_seen: Mapping[str, int] = field(default_factory=dict)
    dropped: int = 0

    def to_dict(self, masks: str = "rle") -> dict[str, Any]:
        """Plain JSON types; each detection as in `Detections.to_dict`, with `track_id`, None where it is on no track."""
        found = self.detections.to_dict(masks=masks)
        ids = [None if i == NO_TRACK else i for i in self.track_ids.tolist()]
        return {
            "frame": self.index,
            "time_s": round(self.time_s, 6),
            "size_hw": found["size_hw"],
            "detections": [{"track_id": i, **one} for i, one in zip(ids, found["detections"], strict=True)],
        }
