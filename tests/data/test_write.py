"""What write_coco writes is read back by our reader and by pycocotools, masks exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from small_sets import paint

from rapidetr.core.labels import LabelSpace
from rapidetr.core.masks import Masks
from rapidetr.data import read_dataset, write_coco

# pycocotools 2 turns its buffers into arrays in a way that numpy 2 warns about
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize("compact", [False, True])
def test_written_datasets_come_back(tmp_path: Path, compact: bool, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    dense = rng.random((2, 48, 64)) < 0.3
    boxes = np.array([[1.5, 2, 10, 20], [0, 0, 64, 48]], np.float32)
    labels = LabelSpace.contiguous(["ant", "bee"], dataset_ids=[3, 7])
    none = np.zeros((0, 4), np.float32)
    masks = Masks.from_dense(dense) if compact else dense
    images = [
        ("a.png", paint(1), boxes, np.array([1, 0]), masks),
        ("b.png", Image.fromarray(paint(2)), none, np.zeros(0, np.int64), None),
        ("c.jpg", paint(3), boxes[:1], np.array([0]), None),
    ]
    file = write_coco(tmp_path, "train", images, labels)
    assert file == tmp_path / "train" / "_annotations.coco.json"
    dataset = read_dataset(tmp_path)
    assert dataset.problems == ()
    assert dataset.labels == labels
    assert [len(r) for r in dataset.images] == [2, 0, 1]
    assert dataset.images[0].boxes_xyxy_px.tolist() == boxes.tolist()
    assert dataset.images[0].masks() == Masks.from_dense(dense)
    assert dataset.images[0].areas.tolist() == dense.sum((1, 2)).tolist()
    assert dataset.images[2].areas.tolist() == [8.5 * 18]
    assert np.array_equal(np.asarray(Image.open(dataset.images[0].path)), paint(1))
    theirs = COCO(str(file))
    capsys.readouterr()  # it prints
    assert sorted(theirs.anns) == [1, 2, 3]
    assert [theirs.anns[i]["category_id"] for i in (1, 2, 3)] == [7, 3, 3]
    assert np.array_equal(np.stack([theirs.annToMask(theirs.anns[i]) for i in (1, 2)]).astype(bool), dense)
