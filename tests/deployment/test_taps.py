"""What can be looked into: the same names and values in the plain network, the folded graph and the exported file."""

from __future__ import annotations

from pathlib import Path

import cases
import numpy as np
import onnx
import pytest
import torch

import rapidetr
from rapidetr.checkpoints.file import Checkpoint
from rapidetr.core.labels import LabelSpace
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.deployment.diff import diff
from rapidetr.deployment.export_onnx import export_onnx
from rapidetr.deployment.taps import recorded
from rapidetr.model.fold import Folded
from rapidetr.runtime.detector import Detector
from rapidetr.runtime.torch_engine import TorchEngine

LABELS = LabelSpace.contiguous(["ant", "bee", "cat", "dog", "eel"], dataset_ids=[3, 5, 7, 9, 11], head_rows=7)
PICTURES = [np.random.default_rng(i).integers(0, 256, (50, 70 + i, 3), np.uint8) for i in range(2)]


def detector_of(case: str) -> Detector:
    network = cases.network(case)
    return Detector(TorchEngine(network), Checkpoint({}, network.config, LABELS, Preprocessing(), "Apache-2.0"))


@pytest.mark.parametrize("case", ["tiny_det", "tiny_multi", "tiny_logit", "tiny_seg", "tiny_few"])
def test_the_folded_graph_shows_what_the_network_shows(case: str) -> None:
    network, images = cases.network(case), cases.images(case)
    folded = Folded(network, size_hw=(images.shape[2], images.shape[3])).eval()
    with torch.no_grad(), recorded(network) as plain, recorded(folded) as cut:
        network(images)
        folded(images)
    assert list(plain) == list(cut)
    config = network.config
    blocks, levels = config.stages[-1], sum(level != "P6" for level in config.levels)
    assert len(plain) == blocks + levels + 3 + config.decoder_layers
    for name, value in plain.items():
        assert value.shape == cut[name].shape
        # fp32 sums in another order; values up to some tens
        torch.testing.assert_close(cut[name], value, atol=1e-4, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_scores_and_tokens_are_those_that_queries_start_from() -> None:
    network, images = cases.network("tiny_det"), cases.images("tiny_det")
    with torch.no_grad(), recorded(network) as seen:
        network(images)
    scores, tokens = seen["proposals.scores"], seen["proposals.tokens"]
    assert torch.equal(tokens, scores.topk(tokens.shape[1], dim=1).indices)


def test_queries_start_from_the_tokens_that_are_asked_for() -> None:
    network, images = cases.network("tiny_det"), cases.images("tiny_det")
    with torch.no_grad():
        with recorded(network) as free:
            usual = network(images)
        turned = free["proposals.tokens"].flip(1)
        with recorded(network, start_from=turned) as seen:
            other = network(images)
        with recorded(network, start_from=free["proposals.tokens"]):
            same = network(images)
    assert torch.equal(seen["proposals.tokens"], turned)
    assert torch.equal(seen["proposals.scores"], free["proposals.scores"])
    assert torch.equal(seen["proposals.boxes"], free["proposals.boxes"].flip(1))
    assert not torch.equal(other.boxes, usual.boxes)
    assert torch.equal(same.boxes, usual.boxes)
    assert torch.equal(same.logits, usual.logits)


def test_nothing_stays_in_the_network() -> None:
    network, images = cases.network("tiny_det"), cases.images("tiny_det")
    with pytest.raises(KeyError), recorded(network) as seen:
        raise KeyError
    with torch.no_grad():
        network(images)
    assert seen == {}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.mark.slow
@pytest.mark.parametrize(("case", "options"), [("tiny_seg", {}), ("tiny_det", {"inputs": "uint8", "outputs": "final"})])
def test_a_file_with_taps_shows_what_torch_shows(tmp_path: Path, case: str, options: dict[str, str]) -> None:
    source, path = detector_of(case), tmp_path / "tapped.onnx"
    exported = export_onnx(source, path, taps=True, **options)  # type: ignore[arg-type]
    assert exported.close
    official = ["boxes", "scores", "labels", "queries"] if options else ["dets", "labels", "masks"]
    names = [output.name for output in onnx.load(path).graph.output]
    assert names[: len(official)] == official
    loaded = rapidetr.load(path, threads=1)
    assert loaded.engine.outputs == official
    assert loaded.engine.taps == names[len(official) :]
    with torch.no_grad(), recorded(source.model) as seen:
        source.model(cases.images(case))
    assert loaded.engine.taps == [*(["raw_dets", "raw_logits"] if options else []), *seen]
    found = diff(source, loaded, PICTURES, threshold=0.01)
    stages = {stage.name: stage for stage in found.stages}
    assert list(stages) == ["pixels", *seen, "logits", "boxes", *([] if options else ["masks"])] or stages["masks"].max_rel is None
    for name, stage in stages.items():
        # fp32 sums in another order: 3e-5 was the largest seen; a tenth of the tolerance keeps the verdict far from rounding
        assert stage.max_rel is not None or name == "masks", name
        assert stage.max_rel is None or stage.max_rel < found.tolerance / 10, stage
    assert found.first_stage is None
    assert found.detections.matched == found.detections.first > 3
    assert found.notes == ()
    # the same with the file first, and a changed weight is found in the same place
    source.model.vit.blocks[1].down.weight.data[0] += 0.1
    assert diff(loaded, source, PICTURES, threshold=0.01).first_stage == "vit.blocks.1"
