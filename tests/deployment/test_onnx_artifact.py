"""ONNX artifacts: the same detections as their source, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cases
import numpy as np
import pytest
from PIL import Image

import rapidetr
from rapidetr.core.labels import LabelSpace
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.deployment import onnx_artifact
from rapidetr.deployment.onnx_artifact import ONNX
from rapidetr.deployment.technique import Order
from rapidetr.runtime.detector import Detector
from rapidetr.runtime.torch_engine import TorchEngine

LABELS = LabelSpace.contiguous("abcde", head_rows=7)
PICTURES = [np.random.default_rng(i).integers(0, 256, (50, 70 + i, 3), np.uint8) for i in range(3)]
FRESH = """
import json, sys
import rapidetr
found = rapidetr.load(sys.argv[1]).predict(sys.argv[2], 0.0)[0]
print(json.dumps([found.scores.tolist(), "torch" in sys.modules]))
"""


def order_of(case: str, folder: Path, feed: Preprocessing, **cut: object) -> Order:
    detector = Detector.from_module(cases.network(case), LABELS, preprocessing=feed, license="Apache-2.0")
    detector.engine = TorchEngine(detector.model, **cut)
    return Order(detector, detector.save(folder / "tiny.safetensors"), command="made by a test")


def test_where_it_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = order_of("tiny_det", tmp_path, Preprocessing())
    assert ONNX.fits(order) is None
    order.detector.engine.device = "cuda"
    assert ONNX.fits(order) == "it is made for the CPU; the device is cuda"
    monkeypatch.setattr(onnx_artifact, "find_spec", lambda name: None if name == "onnxscript" else name)
    assert ONNX.fits(order) == "onnxscript is not installed; install it with: pip install 'rapidetr[onnx]'"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "cut", "feed", "inputs"),
    [
        ("tiny_seg", {"size_hw": (48, 80), "decoder_layers": 2, "queries": 17}, Preprocessing(), "uint8"),
        ("tiny_det", {}, Preprocessing.official(), "normalized"),
    ],
)
def test_same_detections_also_in_a_process_without_torch(case: str, cut: dict, feed: Preprocessing, inputs: str, tmp_path: Path) -> None:
    order = order_of(case, tmp_path, feed, **cut)
    artifact = ONNX.make(order, tmp_path / "artifact")
    m, report = artifact.manifest, json.loads(artifact.files["report.json"].read_text())
    assert (m.engine, m.precision, m.size_hw) == ("onnxruntime", "float32", order.detector.size_hw)
    assert m.parameters == {"technique": "onnxruntime", "inputs": inputs, "outputs": "raw", "opset": 20}
    assert (report["close"], report["path"], report["same_topk"]) == (True, "model.onnx", 6)
    assert report["max_logit_error"] < 1e-4
    loaded = rapidetr.load(artifact.path, threads=1)
    for options in ({}, {"classes": ["c"]}, {"max_detections": 5}, {"max_detections": 40}, {"include_unnamed": True}):
        for batch_size in (1, 2, 3):
            found = loaded.predict(PICTURES, 0.02, batch_size=batch_size, **options)
            for a, b in zip(found, order.detector.predict(PICTURES, 0.02, batch_size=batch_size, **options), strict=True):
                assert np.array_equal(a.head_rows, b.head_rows), options
                np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)
                np.testing.assert_allclose(a.boxes_xyxy_px, b.boxes_xyxy_px, atol=1e-3)  # 1e-5 of 72 pixels
                if b.masks is not None:
                    assert np.abs(a.masks.areas - b.masks.areas).max(initial=0) <= 2  # logits that close to 0 may change sides
    Image.fromarray(PICTURES[0]).save(tmp_path / "one.png")
    command = [sys.executable, "-c", FRESH, str(artifact.path), str(tmp_path / "one.png")]
    scores, torch_was_loaded = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    np.testing.assert_allclose(scores, order.detector.predict(PICTURES[0], 0.0)[0].scores, atol=1e-4)
    assert not torch_was_loaded
