"""`rapidetr info` of .onnx files and artifacts, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

import rapidetr
from rapidetr.runtime.artifact import Manifest, write_artifact
from rapidetr.runtime.places import MANIFEST


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """A graph with the inputs and outputs of an official Nano, which gives zeros."""
    shapes = {"input": ["batch", 3, 384, 384], "dets": ["batch", 300, 4], "labels": ["batch", 300, 91]}
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])
    nodes = []
    for name in ("dets", "labels"):
        size = helper.make_node(
            "Constant", [], [f"{name}_size"], value=helper.make_tensor("s", TensorProto.INT64, [3], [1, *shapes[name][1:]])
        )
        nodes += [size, helper.make_node("ConstantOfShape", [f"{name}_size"], [name], value=zero)]
    graph = helper.make_graph(nodes, "nano", [values["input"]], [values["dets"], values["labels"]])
    path = tmp_path / "inference_model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_info_of_an_official_onnx_file(run, official):
    status, out, err = run("info", official)
    facts = {line[:12].strip(): line[12:] for line in out.splitlines()}
    assert (status, err) == (0, "")
    assert facts["model"] == "nano, detect"
    assert facts["size"] == "384x384 (height x width), 2 decoder layers, 300 queries"
    assert (facts["input 0"], facts["output 1"]) == (
        "input, float32 [B, 3, 384, 384]",
        "labels, float32 [1, 300, 91]",
    )  # its zeros are of a batch of one
    assert facts["classes"].startswith("80 in a head of 91 rows: person (1), bicycle (2), ")
    assert facts["notes"] == "inference_model.onnx has no metadata: taken for a nano, classes of COCO"
    record = json.loads(run("info", official, "--json")[1])
    assert record["outputs"] == {"dets": "float32 [1, 300, 4]", "labels": "float32 [1, 300, 91]"}


def test_info_of_an_artifact(run, model, tmp_path):
    detector = rapidetr.load(model, device="cpu")
    manifest = Manifest.of(detector, source=model, command="made by a test", parameters={})
    write_artifact(tmp_path / "fast", {"best.safetensors": model}, manifest, describe=lambda *a, **k: {})
    status, out, err = run("info", "fast")
    facts = {line[:12].strip(): line[12:] for line in out.splitlines()}
    assert (status, err) == (0, "")
    assert facts["holds"] == "tiny-det 64x64, 2 decoder layers, 20 queries, torch float32"
    assert facts["classes"] == "3 in a head of 4 rows: cat (10), dog (20), 7 (30)"
    assert facts["made"].endswith(", by: made by a test")
    assert json.loads(run("info", "fast", "--json")[1])["source"]["name"] == model.name
    (tmp_path / "fast" / "best.safetensors").write_bytes(b"other")
    assert "fast: changed: best.safetensors; expected the files of its manifest.json" in run("info", "fast")[2]
    assert (tmp_path / "fast" / MANIFEST).exists()


def test_neither_imports_torch(official, tmp_path):
    code = f"import sys; from rapidetr.cli.main import main; main(['info', {str(official)!r}]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
