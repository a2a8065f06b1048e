"""What is written for trtexec, and that nobody claims to have run it."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import cases
import pytest

from rapidetr.core.labels import LabelSpace
from rapidetr.deployment.export_onnx import Exported
from rapidetr.deployment.export_tensorrt import NOT_RUN, command, export_tensorrt
from rapidetr.runtime.detector import Detector

GRAPH = Exported(
    path="model.onnx",
    bytes=2_000_000,
    seconds=3.2,
    opset=20,
    ir_version=10,
    size_hw=(288, 384),
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


def test_the_line_has_every_shape() -> None:
    words = shlex.split(command(GRAPH, 3, 16))
    assert words[:4] == ["trtexec", "--onnx=model.onnx", "--saveEngine=model.engine", "--fp16"]
    assert words[4:] == ["--minShapes=input:1x3x288x384", "--optShapes=input:1x3x288x384", "--maxShapes=input:16x3x288x384"]
    assert "--maxShapes=input:8x288x384x3" in command(replace(GRAPH, inputs="uint8"), 3, 8)


@pytest.mark.slow
def test_the_folder_holds_graph_and_line(tmp_path: Path) -> None:
    network = cases.shallow("tiny_det")
    detector = Detector.from_module(network, LabelSpace.contiguous(["ant"], head_rows=network.config.class_rows))
    package = export_tensorrt(detector, tmp_path / "trt", max_batch=4)
    assert (set(package.files), package.close, package.notes) == ({"model.onnx", "trtexec.txt"}, True, (NOT_RUN,))
    text = (tmp_path / "trt" / "trtexec.txt").read_text()
    assert text.startswith("# trtexec was not run: ")
    assert re.findall(r"^trtexec .*$", text, re.M) == [command(package.graph, 3, 4)]  # type: ignore[arg-type]
    assert package.graph is not None
    assert package.graph.path == str(tmp_path / "trt" / "model.onnx")
