"""Plain JSON, COCO results and supervision, with and without masks, empty and full."""

from __future__ import annotations

import json
import sys
import tracemalloc

import numpy as np
import pytest
from pycocotools import mask as coco

from rapidetr.core.detections import Detections
from rapidetr.core.errors import BackendMissing, ConfigError
from rapidetr.core.labels import LabelSpace
from rapidetr.core.masks import Masks

LABELS = LabelSpace.coco()
theirs_to_see = pytest.mark.filterwarnings(r"ignore:OpenCV \(`opencv-python`\) is not installed:UserWarning")


def random_detections(n: int = 6, size_hw: tuple[int, int] = (31, 17), masks: bool = True) -> Detections:
    """Noise masks, one of them empty and one full; the last row is unnamed."""
    rng = np.random.default_rng(n)
    low = rng.uniform(0, 8, (n, 2))
    boxes = np.concatenate([low, low + rng.uniform(0, 8, (n, 2))], axis=1).astype(np.float32)
    dense = rng.random((n, *size_hw)) < 0.3
    dense[n // 2 :][:1] = False
    dense[n // 3 :][:1] = True
    rows = np.array(([1, 90, 18, 44, 13, 0] * n)[:n], np.int64)
    scores = np.sort(rng.random(n, dtype=np.float32))[::-1].copy()
    held = Masks.from_dense(dense) if masks else None
    return Detections(
        boxes, scores, rows, LABELS, size_hw, held, source="a/ü.png", resize_filter="bilinear", times_ms={"run": 1.23456}, unnamed_dropped=2
    )


@pytest.mark.parametrize("kind", ["rle", "polygons", "none"])
@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("n", [0, 6])
def test_json_record(n: int, masks: bool, kind: str) -> None:
    found = random_detections(n, masks=masks)
    record = json.loads(json.dumps(found.to_dict(masks=kind), allow_nan=False))
    rows = record.pop("detections")
    assert record == {
        "source": "a/ü.png", "size_hw": [31, 17], "resize_filter": "bilinear", "unnamed_dropped": 2, "error": None,
        "times_ms": {"run": 1.235},
    }  # fmt: skip
    assert len(rows) == n
    for i, row in enumerate(rows):
        assert np.abs(np.array(row["box_xyxy_px"]) - found.boxes_xyxy_px[i]).max() <= 0.0005 + 1e-6  # rounding, and float32
        assert abs(row["score"] - found.scores[i]) <= 0.5e-6 + 1e-7
        assert (row["class_id"], row["class_name"]) == (found.class_ids[i], found.class_names[i])
        assert (row["dataset_id"], row["head_row"]) == (found.dataset_ids[i], found.head_rows[i])
        assert ("area_px" in row) == masks
        assert (row["mask"] is None) == (not masks or kind == "none")
    if masks and n:
        assert found.masks is not None
        assert [row["area_px"] for row in rows] == found.masks.areas.tolist()
        assert rows[5]["class_id"] == rows[5]["dataset_id"] == -1
        if kind == "rle":
            assert Masks.from_rle([row["mask"] for row in rows], (31, 17)) == found.masks
        if kind == "polygons":
            rings = [[ring.ravel().tolist() for ring in rings] for rings in found.masks.polygons()]
            assert [row["mask"] for row in rows] == rings
            assert rows[3]["mask"] == []


def test_rounding_is_by_decimals() -> None:
    one = Detections(np.float32([[0.12345, 1, 2, 3.00049]]), np.float32([0.12345678]), np.array([1]), LABELS, (9, 9))
    assert one.to_dict()["detections"][0]["box_xyxy_px"] == [0.123, 1.0, 2.0, 3.0]
    assert one.to_dict()["detections"][0]["score"] == 0.123457


def test_broken_pictures_say_why() -> None:
    assert Detections.empty(LABELS, source="x.jpg", error="x.jpg is cut off").to_dict()["error"] == "x.jpg is cut off"


def test_json_record_knows_three_forms_of_masks() -> None:
    with pytest.raises(ConfigError, match=r"^masks is 'dense'; expected 'rle', 'polygons' or 'none'$"):
        random_detections().to_dict(masks="dense")


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")  # pycocotools'
@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("n", [0, 6])
def test_coco_results(n: int, masks: bool) -> None:
    found = random_detections(n, masks=masks)
    results = json.loads(json.dumps(found.to_coco(image_id=7)))
    assert [r["category_id"] for r in results] == [1, 90, 18, 44, 13][:n]  # the unnamed row is left out
    for i, r in enumerate(results):
        assert r["image_id"] == 7
        assert np.float32(r["score"]) == found.scores[i]
        x, y, w, h = r["bbox"]
        assert (np.float32([x, y, x + w, y + h]) == found.boxes_xyxy_px[i]).all()
        assert ("segmentation" in r) == masks
        if found.masks is not None:
            assert (coco.decode(r["segmentation"]).astype(bool) == found.masks[i]).all()


@theirs_to_see
@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("n", [0, 6])
def test_supervision(n: int, masks: bool) -> None:
    found = random_detections(n, masks=masks)
    theirs = found.to_supervision()
    assert theirs.xyxy.dtype == np.float32
    assert (theirs.xyxy == found.boxes_xyxy_px).all()
    assert (theirs.confidence == found.scores).all()
    assert theirs.class_id.tolist() == found.class_ids.tolist()
    assert theirs.data["class_name"].dtype.kind == "U"
    assert theirs.data["class_name"].tolist() == found.class_names
    assert theirs.data["dataset_id"].tolist() == found.dataset_ids.tolist()
    assert theirs.metadata == {"source": "a/ü.png", "resize_filter": "bilinear"}
    if found.masks is None:
        assert theirs.mask is None
        return
    assert theirs.mask.shape == (n, 31, 17)
    assert (np.asarray(theirs.mask) == found.masks.dense()).all()
    assert theirs.mask.area.tolist() == found.masks.areas.tolist()
    assert (np.asarray(theirs.mask.repack()) == found.masks.dense()).all()
    if n:
        kept = theirs[theirs.confidence > 0.5]
        assert (np.asarray(kept.mask) == found[found.scores > 0.5].masks.dense()).all()  # type: ignore[union-attr]


@theirs_to_see
def test_supervision_joins_empty_and_full() -> None:
    from supervision import Detections as Theirs

    full, empty = random_detections(6).to_supervision(), random_detections(0).to_supervision()
    assert len(Theirs.merge([empty, empty])) == 0
    assert (np.asarray(Theirs.merge([empty, full]).mask) == np.asarray(full.mask)).all()


@theirs_to_see
def test_supervision_masks_stay_compact() -> None:
    """Forty masks in 4 megapixels: dense they are 160 MB. One decoded crop with its run search may take up to 12 bytes a pixel."""
    import supervision  # noqa: F401  (its import is not what is measured)

    counts = [np.array([2000 * 100 + i, 1500, 2000 * 1800, 3, 2000 * 100 - 1503 - i], np.uint32) for i in range(40)]
    boxes = np.tile(np.float32([[0, 0, 2000, 2000]]), (40, 1))
    found = Detections(boxes, np.ones(40, np.float32), np.ones(40, np.int64), LABELS, (2000, 2000), Masks((2000, 2000), counts))
    tracemalloc.start()
    theirs = found.to_supervision()
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert theirs.mask.area.tolist() == [1503] * 40
    assert held < 1e6
    assert peak < 12 * 4e6


def test_without_supervision_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(BackendMissing) as caught:
        random_detections().to_supervision()
    assert str(caught.value) == (
        "to_supervision() needs supervision 0.29 or newer (import of supervision halted; None in sys.modules); "
        "install it with: pip install 'rapidetr[supervision]'"
    )
