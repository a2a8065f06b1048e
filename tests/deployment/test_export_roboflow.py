"""Packages for Roboflow's client: files, names, gaps, and what the torch back end refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cases
import pytest
import torch

from rapidetr.checkpoints.file import open_checkpoint
from rapidetr.core.config import VARIANTS
from rapidetr.core.errors import ConfigError
from rapidetr.core.labels import COCO_NAMES, LabelSpace
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.deployment.export_roboflow import _check_torch, _feeding, export_roboflow
from rapidetr.deployment.package import refuse_existing, row_names, write_package
from rapidetr.model.build import build
from rapidetr.runtime.detector import Detector


def test_gaps_of_coco_are_91_lines() -> None:
    lines, gap = row_names(LabelSpace.coco())
    assert (len(lines), gap, lines.count("background")) == (91, "background", 11)
    assert {i: name for i, name in enumerate(lines) if name != "background"} == COCO_NAMES


def test_fine_tuned_heads_have_a_line_a_class() -> None:
    assert row_names(LabelSpace.contiguous(["ant", "big\n cat"])) == (["ant", "big cat"], None)
    assert row_names(LabelSpace.contiguous(["background", "ant"])) == (["background", "ant"], None)  # a class like any other
    assert row_names(LabelSpace(("background",), (7,), (1,), 3)) == (["background_", "background"], "background_")
    with pytest.raises(ConfigError, match="class 1 has no name; expected one, since other programs read one a line"):
        row_names(LabelSpace.contiguous(["ant", " \n"]))


def test_how_to_feed_it_is_told() -> None:
    detector = SimpleNamespace(config=VARIANTS["pico"], preprocessing=Preprocessing())
    told = _feeding(detector, (224, 352), "background", 4)
    assert told["network_input"]["training_input_size"] == {"height": 224, "width": 352}
    assert told["network_input"]["normalization"] == [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]
    assert (told["network_input"]["scaling_factor"], told["network_input"]["resize_mode"]) == (255, "stretch")
    assert told["forward_pass"] == {"static_batch_size": None, "max_dynamic_batch_size": 4}
    assert told["class_names_operations"] == [{"type": "class_name_removal", "class_name": "background"}]
    assert "class_names_operations" not in _feeding(detector, (288, 288), None, 4)


@pytest.mark.slow
def test_the_onnx_package(tmp_path: Path) -> None:
    network = cases.shallow("tiny_seg")
    rows = network.config.class_rows
    package = export_roboflow(Detector.from_module(network, LabelSpace.contiguous(["ant", "bee"], head_rows=rows)), tmp_path / "p")
    assert set(package.files) == {"class_names.txt", "inference_config.json", "model_config.json", "weights.onnx"}
    assert json.loads((tmp_path / "p" / "model_config.json").read_text()) == {
        "model_architecture": "rfdetr",
        "task_type": "instance-segmentation",
        "backend_type": "onnx",
    }
    assert (tmp_path / "p" / "class_names.txt").read_text() == "ant\nbee\n"
    assert package.graph is not None
    assert (package.graph.opset <= 22, package.graph.ir_version <= 10, package.graph.outputs, package.graph.close) == (
        True,
        True,
        "raw",
        True,
    )


@pytest.mark.slow
def test_the_torch_package_holds_official_names_and_reads_back(tmp_path: Path) -> None:
    network = build("nano", num_classes=2, seed=0)
    package = export_roboflow(Detector.from_module(network, LabelSpace.contiguous(["ant", "bee"])), tmp_path / "p", backend="torch")
    assert set(package.files) == {"class_names.txt", "inference_config.json", "model_config.json", "model_type.json", "weights.pth"}
    assert json.loads((tmp_path / "p" / "model_type.json").read_text()) == {"model_type": "rfdetr-nano"}
    raw = torch.load(tmp_path / "p" / "weights.pth", weights_only=True)
    assert list(raw) == ["model"]
    assert "_kp_active_mask" not in raw["model"]  # the client loads strictly
    after = open_checkpoint(tmp_path / "p" / "weights.pth")
    assert all(torch.equal(after.state[n], t) for n, t in network.state_dict().items())


def test_the_torch_backend_refuses_what_it_cannot_hold() -> None:
    def check(config, *cut) -> None:
        _check_torch(SimpleNamespace(config=config), *(cut or (config.size_hw, None, None)))

    check(VARIANTS["nano"].at(class_rows=4))
    with pytest.raises(ConfigError, match="the torch back end knows published variants only, not pico; use backend onnx"):
        check(VARIANTS["pico"])
    with pytest.raises(ConfigError, match=r"runs a nano as published: queries 100 \(expected 300\); use backend onnx"):
        check(replace(VARIANTS["nano"], queries=100))
    with pytest.raises(ConfigError, match=r"size 384x416 \(expected 384x384\), queries given; use backend onnx"):
        check(VARIANTS["nano"], (384, 416), None, 9)


def test_a_package_is_whole_or_not_there(tmp_path: Path) -> None:
    def good(part: Path):
        (part / "deep").mkdir()
        (part / "deep" / "new.txt").write_text("new")
        return None, ("a note",)

    def bad(part: Path):
        (part / "half.txt").write_text("half")
        raise OSError("disk full")

    folder = tmp_path / "p"
    with pytest.raises(OSError, match="disk full"):
        write_package(folder, "x", bad)
    assert list(tmp_path.iterdir()) == []
    package = write_package(folder, "x", good)
    assert (package.files, package.close) == ({"deep/new.txt": 3}, True)
    assert str(package) == f"{folder}: deep/new.txt; 0.0 MB\nnote: a note"
    with pytest.raises(ConfigError, match="exists already; choose another --out, or replace it with --force"):
        write_package(folder, "x", good)
    with pytest.raises(OSError, match="disk full"):
        write_package(folder, "x", bad, force=True)
    assert (folder / "deep" / "new.txt").read_text() == "new"
    (folder / "old.txt").write_text("old")
    write_package(folder, "x", good, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["p"]
    assert [p.name for p in folder.iterdir()] == ["deep"]
    refuse_existing(tmp_path / "q")
