"""`export` and the Roboflow methods by their official names: the official files, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import cases
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import rapidetr
from rapidetr.checkpoints.file import Checkpoint, open_checkpoint
from rapidetr.compat import RFDETRNano, RFDETRSegNano
from rapidetr.core.errors import ConfigError, NotSupportedYet
from rapidetr.core.labels import LabelSpace
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.deployment.export_onnx import Exported
from rapidetr.model.build import build
from rapidetr.runtime.detector import Detector
from rapidetr.runtime.torch_engine import TorchEngine

LABELS = LabelSpace.contiguous(["ant", "bumble bee", "cat", "dog", "eel"], dataset_ids=[3, 5, 7, 9, 11], head_rows=7)
EXPORTED = Exported(
    path="", bytes=0, seconds=3.0, opset=18, ir_version=10, size_hw=(64, 64), decoder_layers=2, queries=20, inputs="normalized",
    outputs="raw", pictures=6, same_topk=6, topk_gap=0.0, max_logit_error=1e-5, max_box_error=1e-6, max_mask_error=None,
)  # fmt: skip


def model_of(kind: Any, network: Any, labels: LabelSpace = LABELS, **cut: Any) -> Any:
    checkpoint = Checkpoint({}, network.config, labels, Preprocessing.official(), "Apache-2.0")
    made = kind.__new__(kind)
    made._take(Detector(TorchEngine(network, **cut), checkpoint), {})
    return made


@pytest.fixture(scope="module")
def model() -> Any:
    return model_of(RFDETRNano, cases.network("tiny_det"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Options of every export, which writes a graph of any batch size."""
    seen: list[dict[str, Any]] = []

    def export_onnx(detector: Detector, path: Path, **options: Any) -> Exported:
        seen.append(options)
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, 8, 8]) for name in ("input", "between", "dets")]
        nodes = [helper.make_node("Neg", ["input"], ["between"]), helper.make_node("Neg", ["between"], ["dets"])]
        graph = helper.make_graph(nodes, "g", values[:1], values[2:], value_info=values[1:2])
        whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        helper.set_model_props(whole, {"rapidetr": "{}"})
        onnx.save(whole, path)
        return replace(EXPORTED, path=str(path), max_logit_error=0.0 if len(seen) == 1 else 0.5)

    monkeypatch.setattr("rapidetr.compat.exports.export_onnx", export_onnx)
    return seen


def batches(path: Path) -> set[Any]:
    graph = onnx.load(path).graph
    return {value.type.tensor_type.shape.dim[0].dim_value or "any" for value in (*graph.input, *graph.output)}


def test_the_official_names_and_one_picture(model: Any, asked: list[dict], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = model.export(tmp_path / "new" / "out")
    assert path == tmp_path / "new" / "out" / "rfdetr-nano.onnx"
    assert [file.name for file in path.parent.iterdir()] == ["rfdetr-nano.onnx"]
    assert asked == [{"size_hw": None, "opset": 18}]
    assert batches(path) == {1}
    err = capsys.readouterr().err
    assert err.startswith(f"RFDETRNano.export: {path}: 0.0 MB, opset 18, 3 s; largest differences from the source: logits 0.0e+00")
    assert err.count("\n") == 1
    picture = np.ones((1, 3, 8, 8), np.float32)
    assert np.array_equal(onnxruntime.InferenceSession(path).run(["dets"], {"input": picture})[0], picture)


def test_keywords_change_the_file(model: Any, asked: list[dict], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked.append({})  # so that the file is said to differ
    nothing = {"infer_dir": "photos", "calibration_data": "photos", "max_images": 3, "fp16": False, "patch_size": 8}
    changes = {"opset_version": 20, "shape": (64, 96), "dynamic_batch": True, "notes": {"by": 1}, "output_name": "../a/mine.x"}
    path = model.export(str(tmp_path), verbose=False, **changes, **nothing)
    assert path == tmp_path / "mine.onnx"
    assert asked[1] == {"size_hw": (64, 96), "opset": 20}
    assert batches(path) == {"any"}
    assert {p.key: p.value for p in onnx.load(path).metadata_props} == {"rapidetr": "{}", "rfdetr_notes": '{"by": 1}'}
    assert "this is more than rounding; judge the file on data before you use it" in capsys.readouterr().err
    model.export(str(tmp_path), batch_size=3, notes="as it is", output_name="mine")
    assert batches(path) == {3}
    assert {p.key: p.value for p in onnx.load(path).metadata_props}["rfdetr_notes"] == "as it is"


def test_nothing_is_printed_on_request(model: Any, asked: list[dict], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.export(tmp_path, verbose=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("keywords", "error", "text"),
    [
        ({"backbone_only": True}, NotSupportedYet, "backbone_only=True is not supported yet; leave it out"),
        ({"quantization": "int8"}, NotSupportedYet, "quantization='int8' is not supported yet; leave it out"),
        ({"max_batch_size": 4}, NotSupportedYet, "max_batch_size=4 is not supported yet; leave it out"),
        ({"openvino_precision": "float32"}, NotSupportedYet, "openvino_precision='float32' is not supported yet; leave it out"),
        ({"opset_version": 16}, NotSupportedYet, "opset_version=16 is not supported yet; expected 17 (written as 18) to 22"),
        ({"format": "trt"}, NotSupportedYet, "format='trt' is not supported yet by this name; use `rapidetr export --format tensorrt`"),
        ({"format": "openvino"}, NotSupportedYet, "by this name; use `rapidetr export --format openvino`"),
        ({"format": "tflite"}, NotSupportedYet, "by this name; convert the ONNX file"),
        ({"format": "ncnn"}, ConfigError, "RFDETRNano.export: format is 'ncnn'; expected onnx"),
        ({"batch_size": 0}, ConfigError, "RFDETRNano.export: batch_size is 0; expected a whole number from 1"),
        ({"patch_size": 14}, ConfigError, "patch_size is 14; this network has 8; leave it out"),
        ({"shape": 64}, ConfigError, "shape is 64; expected (height, width), two whole numbers"),
    ],
)
def test_what_cannot_be_honored_is_refused(model: Any, asked: list[dict], tmp_path: Path, keywords: dict, error: type, text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        model.export(tmp_path, **keywords)
    assert asked == []
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_real_file_of_two_pictures(tmp_path: Path) -> None:
    model = model_of(RFDETRSegNano, cases.shallow("tiny_seg"), queries=17)
    path = model.export(tmp_path, batch_size=2, verbose=False)
    session = onnxruntime.InferenceSession(path)
    assert path.name == "rfdetr-seg-nano.onnx"
    assert {i.name: i.shape for i in session.get_inputs()} == {"input": [2, 3, 64, 64]}
    assert {o.name: o.shape for o in session.get_outputs()} == {"dets": [2, 17, 4], "labels": [2, 17, 7], "masks": [2, 17, 16, 16]}
    pictures = [np.random.default_rng(i).integers(0, 256, (50, 70 + i, 3), np.uint8) for i in range(3)]
    for ours, wanted in zip(rapidetr.load(path).predict(pictures, 0.01), model.detector.predict(pictures, 0.01), strict=True):
        assert len(ours) == len(wanted) > 3
        np.testing.assert_allclose(ours.scores, wanted.scores, atol=1e-5)  # rounding of fp32
        np.testing.assert_allclose(ours.boxes_xyxy_px, wanted.boxes_xyxy_px, atol=1e-3)  # 1e-5 of a picture of 70 pixels


def test_the_upload_bundle_holds_weights_and_names(tmp_path: Path) -> None:
    network = build("nano", num_classes=5, size_hw=(96, 96), seed=0)
    names = LabelSpace.contiguous(["ant", "bumble\nbee", "cat", "dog", "eel"])
    model = model_of(RFDETRNano, network, labels=names)
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "class_names.txt").write_text("old")
    assert model.export_for_roboflow(tmp_path / "up") is None
    assert sorted(file.name for file in (tmp_path / "up").iterdir()) == ["class_names.txt", "weights.pt"]
    assert (tmp_path / "up" / "class_names.txt").read_text() == "ant\nbumble bee\ncat\ndog\neel"
    stored = open_checkpoint(tmp_path / "up" / "weights.pt")
    assert (stored.config.name, stored.config.size_hw, stored.labels.names) == ("nano", (96, 96), names.names)
    own = network.state_dict()
    assert set(stored.state) == set(own)
    assert all(bool((stored.state[name] == value).all()) for name, value in own.items())


def test_uploading_says_what_to_do_instead(model: Any) -> None:
    with pytest.raises(NotSupportedYet, match=re.escape("write the files with export_for_roboflow(folder) and upload that folder with")):
        model.deploy_to_roboflow("workspace", "project", version=3, api_key="k")
