"""Three hundred masks on a 12-megapixel photo, from network output to supervision, stay under 1 GB."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from rapidetr.core.labels import LabelSpace
from rapidetr.core.outputs import Geometry, RawOutput
from rapidetr.pixels.select import select


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:OpenCV:UserWarning")
@pytest.mark.filterwarnings("ignore:.*opencv-python.*:UserWarning")
def test_300_masks_on_12_megapixels() -> None:
    import supervision

    Q, side = 300, 192
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    masks = np.empty((1, Q, side, side), np.float32)
    for q in range(Q):  # wavy blobs that cover up to half of the photo
        cx, cy, radius, phase = rng.random(4)
        angle = np.arctan2(y - cy, x - cx)
        masks[0, q] = 0.1 + 0.35 * radius + 0.05 * np.sin(7 * angle + phase) - np.hypot(x - cx, y - cy)
    raw = RawOutput(rng.normal(4, 1, (1, Q, 5)).astype(np.float32), np.full((1, Q, 4), 0.5, np.float32), masks)
    labels = LabelSpace.contiguous("abcd")
    tracemalloc.start()
    (found,) = select(raw, [Geometry((3000, 4000))], labels, threshold=0.0, include_unnamed=True)
    theirs = found.to_supervision()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == len(theirs) == Q
    assert isinstance(theirs.mask, supervision.CompactMask)
    assert np.array_equal(theirs.mask[5], found.masks[5])
    assert peak < 1e9
