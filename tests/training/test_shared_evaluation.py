"""Every process predicts its share of the pictures; what the first one scores is what one process alone scores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cases
import pytest
import torch
from small_runs import SEGMENT, write_scenes
from test_steps import start_two

import rapidetr.training.loop as loop
from rapidetr.checkpoints.file import Checkpoint
from rapidetr.core.labels import LabelSpace
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.data.read import read_dataset
from rapidetr.data.records import Annotation, ImageRecord
from rapidetr.evaluation import evaluate, find, score_shares
from rapidetr.runtime.detector import Detector
from rapidetr.training.distributed import World
from rapidetr.training.recipe import Recipe

CHILD = """
import sys
sys.path[:0] = sys.argv[3:]
from pathlib import Path
import torch
torch.set_num_threads(1)
import test_shared_evaluation
from rapidetr.training.distributed import join
with join("cpu") as (world, device):
    test_shared_evaluation.write_figures(Path(sys.argv[1]), Path(sys.argv[2]), world)
"""


def with_found_objects(detector: Detector, record: ImageRecord) -> ImageRecord:
    """The picture, annotated with every fifth thing that the untrained network sees in it, so that the figures say something."""
    found = detector.predict(record.path, 0.0, purpose="evaluate")[0][::5]
    rows = zip(found.class_ids.tolist(), found.boxes_xyxy_px.tolist(), found.masks.rle(), strict=True)
    fields = {name: getattr(record, name) for name in ("path", "image_id", "split", "size_hw", "file")}
    return ImageRecord.build([Annotation(i, c, tuple(box), rle) for i, (c, box, rle) in enumerate(rows)], **fields)


def write_figures(scenes: Path, out: Path, world: World) -> None:
    """<out>/<rank>.json: what training is told, and on the first process all figures, of one picture and of nine."""
    told, whole = [], []
    every = read_dataset(scenes, "valid")
    labels = LabelSpace.contiguous(every.labels.names[: SEGMENT.class_rows - 1])
    start, network = Checkpoint({}, SEGMENT, labels, Preprocessing(), ""), cases.network("tiny_seg")
    detector = Detector.from_module(network, labels)
    every = replace(every, images=tuple(with_found_objects(detector, record) for record in every.images))
    for count in (1, 9):
        valid = replace(every, images=every.images[:count])
        told.append(loop.score(SimpleNamespace(valid=valid, start=start, world=world, device="cpu", recipe=Recipe()), network, ""))
        shares = world.to_first(find(detector, valid, rank=world.rank, ranks=world.size, batch_size=2))
        if world.first:
            assert len(shares) == world.size
            whole.append(score_shares(valid, shares).to_dict())
            if world.size == 1:
                assert whole[-1] == evaluate(detector, valid, batch_size=2).to_dict()
        else:
            assert shares == []
    (out / f"{world.rank}.json").write_text(json.dumps([told, whole]))


@pytest.mark.slow
def test_two_processes_score_like_one(tmp_path: Path) -> None:
    """Equal to the bit, boxes and masks: both make the same batches. One picture leaves the second process without any."""
    scenes = write_scenes(tmp_path / "data", train=1, valid=9)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the two have; sums over threads are rounded otherwise
    try:
        write_figures(scenes, tmp_path / "one", World())
    finally:
        torch.set_num_threads(threads)
    start_two(CHILD, [str(scenes), str(tmp_path / "two")])
    expected = json.loads((tmp_path / "one" / "0.json").read_text())
    assert json.loads((tmp_path / "two" / "0.json").read_text()) == expected
    assert json.loads((tmp_path / "two" / "1.json").read_text()) == [expected[0], []]
    figures = expected[1][1]
    assert 0 < figures["masks"]["metrics"]["AP"] < 1
    assert 0 < figures["boxes"]["metrics"]["AP"] < 1
