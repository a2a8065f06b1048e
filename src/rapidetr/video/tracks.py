"""Which detection is which thing over time, by ByteTrack (Zhang et al. 2022, arXiv 2110.06864) of the library trackers."""

from __future__ import annotations

from collections import Counter

import numpy as np

from rapidetr.core.detections import Detections
from rapidetr.core.errors import BackendMissing
from rapidetr.video.records import NO_TRACK


class Tracks:
    """Numbers that stay with a thing from its second frame on, and for a second in which it is not seen.

    `rate` in frames a second. Every detection may begin a track: the threshold has been applied before. Memory grows with what
    is in sight, not with the length of the video.
    """

    def __init__(self, rate: float) -> None:
        try:
            import supervision
            from trackers import ByteTrackTracker
        except ImportError as problem:
            raise BackendMissing(f"tracks need the library trackers ({problem}); install it with: pip install 'rapidetr[video]'") from None
        self._supervision = supervision
        self._tracker = ByteTrackTracker(frame_rate=rate, track_activation_threshold=0.0, high_conf_det_threshold=0.0)
        self._newest = NO_TRACK
        self.seen: Counter[str] = Counter()  # tracks so far by class name

    def follow(self, detections: Detections, time_s: float) -> np.ndarray:
        """int64 [N]: the number of each detection's track, -1 where it is on none yet; times must grow from call to call."""
        given = self._supervision.Detections(
            xyxy=detections.boxes_xyxy_px.astype(np.float32),
            confidence=detections.scores.astype(np.float32),
            class_id=detections.class_ids,
            data={"place": np.arange(len(detections))},
        )
        tracked = self._tracker.update(given, timestamp=time_s)
        ids = np.full(len(detections), NO_TRACK, np.int64)
        if len(tracked):  # they come back in another order
            ids[tracked.data["place"]] = np.asarray(tracked.tracker_id)
        self._count(ids, detections.class_names)
        return ids

    def _count(self, ids: np.ndarray, names: list[str]) -> None:
        """Numbers are given in growing order, so a larger one than ever is a new track."""
        self.seen.update(name for i, name in zip(ids.tolist(), names, strict=True) if i > self._newest)
        self._newest = max([self._newest, *ids.tolist()])
