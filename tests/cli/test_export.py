"""`rapidetr export`."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import rapidetr
from rapidetr.deployment.export_onnx import Exported

GOOD = Exported("x.onnx", 2_000_000, 3.2, 20, 10, (64, 64), 2, 20, "normalized", "raw", 6, 6, 0.0, 1e-5, 1e-6, None)


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
    errors = "logits 1.0e-05, boxes 1.0e-06; same top-k in 6 of 6 pictures"
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
    assert run("export", model, "--format", "openvino")[0] == 2  # only what works is offered


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
