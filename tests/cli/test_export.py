"""`rapidetr export`."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import rapidetr
from rapidetr.cli.export import WRITERS, calibration
from rapidetr.deployment.export_onnx import Exported
from rapidetr.deployment.package import Package

GOOD = Exported(
    path="x.onnx",
    bytes=2_000_000,
    seconds=3.2,
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


@pytest.fixture
def calls(monkeypatch):
    """Arguments of every export; what it answers is `calls.answer`."""

    class Calls(list):
        answer = GOOD

    seen = Calls()

    def export_onnx(detector, path, **options):
        seen.append((detector, path, options))
        return replace(seen.answer, path=str(path))

    monkeypatch.setattr("rapidetr.deployment.export_onnx.export_onnx", export_onnx)
    return seen


def test_options_reach_the_export(run, model, calls, tmp_path):
    words = "--format onnx --out there --size 48x64 --decoder-layers 1 --queries 9 --inputs uint8 --outputs final --opset 18"
    status, out, err = run("export", model, *words.split())
    detector, path, options = calls[0]
    assert (status, err) == (0, "")
    assert (path.parts, detector.class_names) == (("there", "tiny_det.onnx"), ["cat", "dog", "7"])
    assert options == {"size_hw": (48, 64), "decoder_layers": 1, "queries": 9, "inputs": "uint8", "outputs": "final", "opset": 18}
    errors = "logits 1.0e-05, boxes 1.0e-06; same top-k in 6 of 6 answers"
    assert out == f"{path}: 2.0 MB, opset 20, 3 s; largest differences from the source: {errors}\n"


def test_names_and_folders_name_the_file(run, model, calls, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "best.safetensors").write_bytes(model.read_bytes())
    assert run("export", "mine")[0] == 0
    assert calls[0][1].parts == ("exported", "mine.onnx")
    status, out, _ = run("export", "mine/", "--json")
    assert status == 0
    assert json.loads(out)["close"] is True


def test_a_file_that_is_far_from_its_source_is_told(run, model, calls):
    calls.answer = replace(GOOD, max_logit_error=0.5)
    status, _, err = run("export", model)
    assert status == 1
    assert "tiny_det.onnx: differs from its source by more than rounding; judge it on data before you use it" in err


def test_nothing_is_replaced_by_accident(run, model, calls, tmp_path):
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "tiny_det.onnx").write_text("precious")
    status, _, err = run("export", model)
    assert (status, calls) == (2, [])
    assert "exists already; choose another --out, or replace it with --force" in err
    assert run("export", model, "--force")[0] == 0


def test_each_format_takes_its_own_options(run, model, monkeypatch, tmp_path):
    seen = []

    def writer(format):
        def export(detector, path, **options):
            seen.append((format, path.parts, options))
            return Package(str(path), format, {"a.txt": 3}, notes=("not run",))

        return export

    for format, place in WRITERS.items():
        module, _, name = place.partition(":")
        if format != "onnx":
            pytest.importorskip("openvino") if format == "openvino" else None
            monkeypatch.setattr(f"{module}.{name}", writer(format))
    cut = ["--size", "64", "--decoder-layers", "1", "--queries", "9"]
    assert run("export", model, "--format", "roboflow", "--backend", "torch", "--max-batch", 4, *cut)[0] == 0
    assert run("export", model, "--format", "triton", "--outputs", "final", *cut)[0] == 0
    assert run("export", model, "--format", "tensorrt", "--opset", 18, "--force")[0] == 0
    assert run("export", model, "--format", "openvino", "--precision", "bfloat16", "--out", "there", "--force")[0] == 0
    status, out, _ = run("export", model, "--format", "hf", "--json")
    told = {"size_hw": (64, 64), "decoder_layers": 1, "queries": 9}
    assert seen == [
        ("roboflow", ("exported", "tiny_det-roboflow"), {**told, "backend": "torch", "max_batch": 4, "force": False}),
        ("triton", ("exported", "tiny_det-triton"), {**told, "outputs": "final", "name": "tiny_det", "force": False}),
        ("tensorrt", ("exported", "tiny_det-tensorrt"), {"opset": 18, "force": True}),
        ("openvino", ("there", "tiny_det-openvino"), {"precision": "bfloat16", "checkpoint": str(model), "force": True}),
        ("hf", ("exported", "tiny_det-hf"), {"force": False}),
    ]
    record = json.loads(out)
    assert (status, record["format"], record["files"], record["notes"]) == (0, "hf", {"a.txt": 3}, ["not run"])


def test_options_of_other_formats_are_refused_by_name(run, model, calls):
    refused = {
        ("hf", "--opset", "18"): "--opset is for onnx, tensorrt, triton, not for hf; leave it out",
        ("onnx", "--backend", "torch"): "--backend is for roboflow, not for onnx; leave it out",
        ("triton", "--precision", "int8"): "--precision is for openvino, not for triton; leave it out",
        ("openvino", "--precision", "int8"): "--precision int8 and --calibrate FOLDER go together; give both or neither",
        ("openvino", "--calibrate", "photos"): "--precision int8 and --calibrate FOLDER go together; give both or neither",
    }
    for (format, *words), message in refused.items():
        assert run("export", model, "--format", format, *words) == (2, "", f"rapidetr: error: {message}\n")
    assert calls == []


def test_calibration_takes_pictures_from_the_whole_folder(pictures, monkeypatch):
    monkeypatch.setattr("rapidetr.cli.export.CALIBRATION_PICTURES", 2)
    assert [p.shape for p in calibration(str(pictures))] == [(40, 60, 3), (70, 50, 3)]
    monkeypatch.setattr("rapidetr.cli.export.CALIBRATION_PICTURES", 9)
    assert len(calibration(str(pictures))) == 3


@pytest.mark.slow
def test_a_file_that_takes_bytes_and_gives_pairs_predicts_as_its_source(run, model, pictures):
    status, out, err = run("export", model, "--inputs", "uint8", "--outputs", "final", "--opset", 18, "--json")
    record, detector = json.loads(out), rapidetr.load("exported/tiny_det.onnx")
    assert (status, record["same_topk"], record["opset"]) == (0, 6, 18)
    assert err.startswith("exported/tiny_det.onnx: ")
    assert detector.engine.outputs == ["boxes", "scores", "labels", "queries"]
    found = detector.predict([pictures / "one.png"], 0.0)[0]
    wanted = rapidetr.load(model, device="cpu").predict([pictures / "one.png"], 0.0)[0]
    assert len(found) == len(wanted) > 3
    assert found.scores == pytest.approx(wanted.scores, abs=1e-5)  # rounding of fp32 logits
    assert found.boxes_xyxy_px == pytest.approx(wanted.boxes_xyxy_px, abs=1e-3)  # 1e-5 of a picture of 60 pixels
    assert run("predict", pictures / "one.png", "--model", "exported/tiny_det.onnx", "--threads", 1)[0] == 0
