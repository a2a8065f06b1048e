"""A detector over a dataset, end to end with a detector that knows the answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from rapidetr.core.detections import Detections
from rapidetr.core.errors import ConfigError, DatasetError
from rapidetr.core.labels import LabelSpace
from rapidetr.core.masks import Masks
from rapidetr.data.records import Annotation, Dataset, ImageRecord
from rapidetr.evaluation import evaluate, find, score_shares

LABELS = LabelSpace.contiguous(["cat", "dog", "owl"], dataset_ids=[3, 7, 9])
BOXES = {"a.jpg": [(10, 10, 50, 60), (60, 20, 90, 50)], "b.jpg": [], "c.jpg": [(5, 5, 45, 95)]}
CLASSES = {"a.jpg": [0, 2], "b.jpg": [], "c.jpg": [1]}
SIZE = (100, 120)


def dataset(outlines: bool) -> Dataset:
    records = []
    for number, (path, boxes) in enumerate(BOXES.items()):
        shapes = [(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float64),) if outlines else None for x0, y0, x1, y1 in boxes]
        rows = [Annotation(i, c, b, s) for i, (c, b, s) in enumerate(zip(CLASSES[path], boxes, shapes, strict=True))]
        fields = {"path": path, "image_id": number, "split": "test", "size_hw": None, "file": "x.json"}
        records.append(ImageRecord.build(rows, **fields))
    return Dataset(".", "test", "coco", tuple(records), LABELS)


class FakeDetector:
    """Says the truth, in its own order of classes, plus a zebra and one unsure mistake."""

    def __init__(self, labels: LabelSpace, segmentation: bool) -> None:
        self.labels, self.config = labels, SimpleNamespace(segmentation=segmentation)
        self.asked: dict[str, object] = {}

    def predict_iter(self, images: list[str], threshold: float, *, batch_size: int, **options: object) -> Iterator[list[Detections]]:
        self.asked = {"threshold": threshold, **options}
        for i in range(0, len(images), batch_size):
            yield [self.answer(path) for path in images[i : i + batch_size]]

    def answer(self, path: str) -> Detections:
        boxes = np.array([(0, 0, 9, 9), *BOXES[path], (100, 80, 110, 90)], np.float32)
        names = ["zebra", *(LABELS.names[c] for c in CLASSES[path]), "dog"]
        rows = np.array([self.labels.rows[self.labels.names.index(n)] if n in self.labels.names else -1 for n in names])
        masks = None
        if self.config.segmentation:
            dense = np.zeros((len(boxes), *SIZE), bool)
            for mask, (x0, y0, x1, y1) in zip(dense, boxes.astype(int), strict=True):
                mask[y0:y1, x0:x1] = True
            masks = Masks.from_dense(dense)
        scores = np.array([0.9] * (len(boxes) - 1) + [0.1], np.float32)
        return Detections(boxes, scores, rows, self.labels, SIZE, masks)[rows >= 0]


@pytest.mark.parametrize("segmentation", [False, True])
@pytest.mark.parametrize("outlines", [False, True])
def test_a_detector_that_knows_the_answers(segmentation: bool, outlines: bool) -> None:
    own = LabelSpace(("owl", "zebra", "cat", "dog"), (1, 2, 3, 4), (4, 3, 2, 1), 5)
    detector, seen = FakeDetector(own, segmentation), []
    result = evaluate(detector, dataset(outlines), batch_size=2, progress=lambda done, total: seen.append((done, total)))
    assert detector.asked == {"threshold": 0.0, "purpose": "evaluate", "prefetch": 2, "on_error": "raise"}
    assert seen == [(2, 3), (3, 3)]
    assert (result.masks is not None) == (segmentation and outlines)
    for measure in [m for m in (result.boxes, result.masks) if m is not None]:
        assert measure.ap.tolist() == [1, 1, 1]
        assert measure.f1.tolist() == [1, 1, 1, 1]
        # halfway from 0.9 to 0.1, or to 0 where the class has no mistake; 1e-6: scores are float32
        np.testing.assert_allclose(measure.threshold, [0.5, 0.45, 0.5, 0.45], rtol=0, atol=1e-6)
        assert measure.confusion.tolist() == np.diag([1, 1, 1, 0]).tolist()
    assert result.image_names == ("a.jpg", "b.jpg", "c.jpg")
    assert result.max_dets == 100
    assert result.notes == ("not in the dataset and left out: zebra",)


@pytest.mark.parametrize(("ranks", "batch_size"), [(2, 1), (2, 2), (3, 1), (5, 1), (2, 8)])
def test_shares_in_any_order_give_what_one_rank_gives(ranks: int, batch_size: int) -> None:
    """Also ranks without a picture; detections of a picture stay in their order, which decides between equal scores."""
    detector, data = FakeDetector(LabelSpace.contiguous(["owl", "dog", "zebra"]), True), dataset(True)
    expected = evaluate(detector, data, batch_size=batch_size)
    shares = [find(detector, data, rank=rank, ranks=ranks, batch_size=batch_size) for rank in range(ranks)]
    pictures = [sorted(share.truth_rles) for share in shares]
    assert pictures == [[i for i in range(3) if i // batch_size % ranks == rank] for rank in range(ranks)]
    assert [set(share.found.images.tolist()) for share in shares] == [set(part) for part in pictures]
    assert score_shares(data, shares[::-1]).to_dict() == expected.to_dict()
    assert expected.masks is not None


def test_the_same_classes_need_no_note() -> None:
    detector = FakeDetector(replace(LABELS), False)
    result = evaluate(detector, dataset(False), resize="predict", max_dets=500)
    assert result.notes == ()
    assert result.max_dets == 500
    assert detector.asked["purpose"] == "predict"


def test_classes_that_the_detector_does_not_know_count_as_missed() -> None:
    result = evaluate(FakeDetector(LabelSpace.contiguous(["owl", "dog"]), False), dataset(False))
    assert result.boxes.ap.tolist() == [0, 1, 1]
    assert result.boxes.metrics["AP"] == pytest.approx(2 / 3, abs=1e-15)  # sums of 101 * 10 ones, one division
    assert result.notes == ("the detector does not know cat; its objects count as missed",)


def test_messages() -> None:
    with pytest.raises(DatasetError) as caught:
        evaluate(FakeDetector(LabelSpace.contiguous(["bus"]), False), dataset(False))
    assert str(caught.value) == "the detector knows bus, the dataset cat, dog, owl; expected classes in common"
    with pytest.raises(ConfigError) as caught:
        evaluate(FakeDetector(LABELS, False), dataset(False), resize="bicubic")
    assert str(caught.value) == "resize is 'bicubic'; expected 'evaluate' or 'predict'"
    with pytest.raises(ConfigError) as caught:
        evaluate(FakeDetector(LABELS, False), dataset(False), batch_size=0)
    assert str(caught.value) == "batch_size is 0; expected at least 1"
    with pytest.raises(DatasetError) as caught:
        evaluate(FakeDetector(LABELS, False), replace(dataset(False), images=()))
    assert str(caught.value) == "the test split of . has no pictures to evaluate; add some, remove it, or name another split"
