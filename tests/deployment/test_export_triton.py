"""The Triton repository: what its config.pbtxt says is what the graph is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from rapidetr.core.errors import ConfigError
from rapidetr.core.labels import LabelSpace
from rapidetr.deployment.export_triton import export_triton
from rapidetr.runtime.detector import Detector

TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\w.]+|[\[\]{}:,]')
TYPES = {"TYPE_FP32": "tensor(float)", "TYPE_UINT8": "tensor(uint8)", "TYPE_INT64": "tensor(int64)"}


def parse(text: str) -> dict[str, Any]:
    """Protocol buffers' text format, as far as config.pbtxt needs it; fails on anything else."""
    tokens = TOKEN.findall(text)
    assert "".join(tokens) == re.sub(r"\s+", "", text)
    tokens.append("end")

    def message(end: str) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        while tokens[0] != end:
            name = tokens.pop(0)
            assert name.isidentifier()
            assert name not in fields
            if tokens[0] == ":":
                tokens.pop(0)
            fields[name] = value()
            if tokens[0] == ",":
                tokens.pop(0)
        tokens.pop(0)
        return fields

    def value() -> Any:
        token = tokens.pop(0)
        if token == "{":
            return message("}")
        if token == "[":
            items = [value()]
            while tokens[0] == ",":
                tokens.pop(0)
                items.append(value())
            assert tokens.pop(0) == "]"
            return items
        return token[1:-1] if token.startswith('"') else int(token) if token.isdigit() else token

    return message("end")


@pytest.mark.slow
@pytest.mark.parametrize(("case", "outputs"), [("tiny_det", "raw"), ("tiny_seg", "final")])
def test_the_repository_describes_its_graph(small: Any, tmp_path: Path, case: str, outputs: str) -> None:
    inputs = "uint8" if outputs == "final" else "normalized"
    package = export_triton(small(case), tmp_path / "repository", name="mine", inputs=inputs, outputs=outputs, max_batch=16)
    assert set(package.files) == {"mine/config.pbtxt", "mine/labels.txt", "mine/1/model.onnx"}
    assert package.close
    assert package.notes == ("not run in a Triton server here",)
    config = parse((tmp_path / "repository" / "mine" / "config.pbtxt").read_text())
    assert (config["name"], config["platform"], config["max_batch_size"]) == ("mine", "onnxruntime_onnx", 16)
    assert config["dynamic_batching"] == {"max_queue_delay_microseconds": 500}
    session = onnxruntime.InferenceSession(tmp_path / "repository" / "mine" / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    for kind, real in (("input", session.get_inputs()), ("output", session.get_outputs())):
        told = [(t["name"], t["dims"], TYPES[t["data_type"]]) for t in config[kind]]
        assert told == [(r.name, r.shape[1:], r.type) for r in real]
        assert not any(isinstance(r.shape[0], int) for r in real)  # max_batch_size needs a dynamic batch
    files = [t["label_filename"] for t in config["output"] if "label_filename" in t]
    assert files == (["labels.txt"] if outputs == "raw" else [])
    assert (tmp_path / "repository" / "mine" / "labels.txt").read_text() == "ant\nbee\nbig cat\n"


def test_names_that_are_no_folders_are_refused(small: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"name is '\.\./x'; expected a plain file name, such as nano"):
        export_triton(small("tiny_det"), tmp_path / "r", name="../x")
    assert not (tmp_path / "r").exists()


@pytest.fixture
def small() -> Any:
    import cases

    def make(case: str) -> Detector:
        network = cases.shallow(case)
        rows = network.config.class_rows
        return Detector.from_module(network, LabelSpace.contiguous(["ant", "bee", "big\tcat"], head_rows=rows))

    return make
