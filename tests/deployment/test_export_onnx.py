"""Export to ONNX: what is written, what it says of itself, and that it predicts as its source does."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import cases
import numpy as np
import onnx
import pytest
import torch

import rapidetr
from rapidetr.checkpoints.file import Checkpoint
from rapidetr.core.errors import BackendMissing, ConfigError
from rapidetr.core.labels import LabelSpace
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.deployment.distance import BOXES
from rapidetr.deployment.export_onnx import Exported, _measure, _noise, export_onnx
from rapidetr.model.fold import Folded
from rapidetr.runtime.detector import Detector
from rapidetr.runtime.graph_engine import RAW
from rapidetr.runtime.torch_engine import TorchEngine

FEED = Preprocessing(mean=(0.3, 0.4, 0.5), std=(0.2, 0.3, 0.4))
LABELS = LabelSpace.contiguous(["ant", "bee", "cat", "dog", "eel"], dataset_ids=[3, 5, 7, 9, 11], head_rows=7)
PICTURES = [np.random.default_rng(i).integers(0, 256, (50, 70 + i, 3), np.uint8) for i in range(3)]


def detector_of(case: str, **cut: object) -> Detector:
    network = cases.network(case)
    return Detector(TorchEngine(network, **cut), Checkpoint({}, network.config, LABELS, FEED, "Apache-2.0"))  # type: ignore[arg-type]


def check_same(found, wanted) -> None:
    """Detections that are the same to the rounding of fp32, whatever the order of equal scores."""
    for a, b in zip(found, wanted, strict=True):
        assert len(a) == len(b) > 3
        assert np.array_equal(a.head_rows, b.head_rows)
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)
        np.testing.assert_allclose(a.boxes_xyxy_px, b.boxes_xyxy_px, atol=1e-3)  # BOXES of the folded graph times 72 pixels
        if b.masks is not None:
            assert np.abs(a.masks.areas - b.masks.areas).max() <= 2  # logits within 1e-5 of 0 may change sides


def check_written(path: Path, exported: Exported, inputs: str) -> onnx.ModelProto:
    """Version, names and metadata; nothing of the machine that wrote it."""
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert exported.close, exported
    assert (exported.same_topk, exported.pictures, exported.inputs) == (6, 6, inputs)
    assert (model.ir_version, [o.version for o in model.opset_import]) == (10, [exported.opset])
    assert exported.bytes == path.stat().st_size
    assert {n.domain for n in model.graph.node} == {""}
    assert str(Path(torch.__file__).parent).encode() not in path.read_bytes()
    assert b".py" not in path.read_bytes()
    assert [p.key for p in model.metadata_props] == ["rapidetr"]
    assert model.graph.input[0].name == "input"
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    return model


@pytest.mark.slow
def test_raw_answers_of_a_rectangle(tmp_path: Path) -> None:
    source = detector_of("tiny_seg", size_hw=(48, 80), decoder_layers=2, queries=17)
    exported = export_onnx(source, tmp_path / "new" / "seg.onnx")
    model = check_written(tmp_path / "new" / "seg.onnx", exported, "normalized")
    shapes = {o.name: [d.dim_param or d.dim_value for d in o.type.tensor_type.shape.dim] for o in model.graph.output}
    assert shapes == {"dets": ["batch", 17, 4], "labels": ["batch", 17, 7], "masks": ["batch", 17, 12, 20]}
    assert (exported.size_hw, exported.decoder_layers, exported.queries) == ((48, 80), 2, 17)
    assert exported.max_box_error < BOXES / 10
    loaded = rapidetr.load(exported.path)
    assert (loaded.config, loaded.labels, loaded.preprocessing, loaded.license) == (
        source.config,
        LABELS,
        FEED,
        "Apache-2.0",
    )
    for batch_size in (1, 3):
        check_same(loaded.predict(PICTURES, 0.01, batch_size=batch_size), source.predict(PICTURES, 0.01))
    with pytest.raises(ConfigError, match=r"size_hw is \(64, 64\), but the file was exported with size_hw \(48, 80\), decoder_layers 2"):
        rapidetr.load(exported.path, size_hw=64)
    assert "same top-k in 6 of 6 answers" in str(exported)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["seg.onnx"]
    # a wrong file is found out: the same graph, measured against a network with one weight changed
    network = cases.network("tiny_seg")
    folded = Folded(network, size_hw=(48, 80), decoder_layers=2, queries=17)
    network.class_head.bias.data[2] += 0.01
    wrong = _measure(model, network, (*RAW, "masks"), folded, None)
    assert wrong["max_logit_error"] == pytest.approx(0.01, rel=0.01)
    assert not replace(exported, **wrong).close


def test_arguments_are_checked_before_anything_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, path = detector_of("tiny_det"), tmp_path / "x.onnx"
    with pytest.raises(ConfigError, match="inputs is 'float'; expected one of normalized, uint8"):
        export_onnx(source, path, inputs="float")
    with pytest.raises(ConfigError, match="outputs is 'boxes'; expected one of raw, final"):
        export_onnx(source, path, outputs="boxes")
    with pytest.raises(ConfigError, match="opset is 23; expected one of 18, 19, 20, 21, 22"):
        export_onnx(source, path, opset=23)
    with pytest.raises(ConfigError, match=r"x\.pt: expected a name that ends in \.onnx"):
        export_onnx(source, tmp_path / "x.pt")
    with pytest.raises(ConfigError, match="queries is 99; this network has 1 to 20"):
        export_onnx(source, path, queries=99)
    with pytest.raises(ConfigError, match="image height 60 is not a multiple of 16"):
        export_onnx(source, path, size_hw=(60, 64))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(BackendMissing, match=r"exporting needs onnxscript; install it with: pip install 'rapidetr\[onnx\]'"):
        export_onnx(source, path)
    assert not list(tmp_path.iterdir())


def test_noise_is_the_same_picture_both_ways() -> None:
    config = cases.config_of("tiny_det")
    pixels, plain = _noise(config, 2, FEED)
    assert (pixels.dtype, pixels.shape, plain.shape) == (torch.uint8, (2, 64, 64, 3), (2, 3, 64, 64))
    mean, std = (torch.tensor(v) for v in (FEED.mean, FEED.std))
    torch.testing.assert_close(((pixels / 255 - mean) / std).permute(0, 3, 1, 2), plain)
    assert torch.equal(*_noise(config, 2, None))


def test_what_counts_as_close() -> None:
    good = Exported(
        path="x.onnx",
        bytes=1,
        seconds=1.0,
        opset=20,
        ir_version=10,
        size_hw=(64, 64),
        decoder_layers=2,
        queries=20,
        inputs="normalized",
        outputs="raw",
        pictures=6,
        same_topk=6,
        topk_gap=0.0,
        max_logit_error=1e-5,
        max_box_error=1e-6,
        max_mask_error=None,
    )
    assert good.close
    assert replace(good, max_mask_error=1e-4, same_topk=5, topk_gap=1e-5).close
    nan = float("nan")
    for change in ({"max_logit_error": nan}, {"max_box_error": 0.01}, {"max_mask_error": nan}, {"topk_gap": 0.1}, {"same_topk": 0}):
        assert not replace(good, **change).close, change
    assert good.to_dict()["close"]
