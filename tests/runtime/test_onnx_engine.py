"""ONNX files in ONNX Runtime: the official layout, our header, hostile files, no torch. The graphs are toys with known answers."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cases
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import rapidetr
from rapidetr.core.errors import BackendMissing, CheckpointError, ConfigError, LicenseRefused, NotSupportedYet, UnsafeFile
from rapidetr.core.labels import LabelSpace
from rapidetr.core.outputs import Geometry, RawOutput
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.pixels.prepare import prepare
from rapidetr.pixels.select import select
from rapidetr.runtime.artifact import Artifact, Manifest, write_artifact
from rapidetr.runtime.graph_engine import prepare_bytes
from rapidetr.runtime.onnx_engine import OnnxEngine, open_artifact_onnx, open_onnx

RNG = np.random.default_rng(3)


def tables(queries: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(queries)
    boxes = rng.uniform(0.2, 0.6, (1, queries, 4)).astype(np.float32)
    return boxes, rng.normal(-4, 1.5, (1, queries, rows)).astype(np.float32)


def toy(
    path: Path, *, size_hw=(384, 384), queries=300, rows=91, batch: int | str = "batch", mask_hw=None, bytes_in=False, header=None
) -> Path:
    """Boxes from a table; logits (and mask logits) from a table plus the mean of each picture."""
    boxes, logits = tables(queries, rows)
    shape = [batch, *size_hw, 3] if bytes_in else [batch, 3, *size_hw]
    kind = TensorProto.UINT8 if bytes_in else TensorProto.FLOAT
    known = {
        "axes": np.array([1, 2, 3]), "flat": np.array([-1, 1, 1]), "zero": np.zeros(1, np.float32), "boxes": boxes, "logits": logits,
    }  # fmt: skip
    nodes = [
        helper.make_node("Cast", ["input"], ["picture"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["picture", "axes"], ["mean4"]),
        helper.make_node("Reshape", ["mean4", "flat"], ["mean"]),
        helper.make_node("Add", ["mean", "logits"], ["labels"]),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "boxes"], ["dets"]),
    ]
    outputs = [("dets", [batch, queries, 4]), ("labels", [batch, queries, rows])]
    if mask_hw:
        known["masks_table"] = np.ones((1, queries, *mask_hw), np.float32)
        nodes.append(helper.make_node("Add", ["mean4", "masks_table"], ["masks"]))
        outputs.append(("masks", [batch, queries, *mask_hw]))
    graph = helper.make_graph(
        nodes, "toy",
        [helper.make_tensor_value_info("input", kind, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in outputs],
        [numpy_helper.from_array(array, name) for name, array in known.items()],
    )  # fmt: skip
    return save(graph, path, header)


def save(graph: onnx.GraphProto, path: Path, header: Any = None) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if header is not None:
        helper.set_model_props(model, {"other": "x", "rapidetr": header if isinstance(header, str) else json.dumps(header)})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def header_of(case: str = "tiny_det", **other: Any) -> dict[str, Any]:
    return {
        "format_version": 1,
        "config": cases.config_of(case).to_dict(),
        "labels": LabelSpace.contiguous("abcdef").to_dict(),
        "preprocessing": Preprocessing(mean=(0.25,), std=(0.5,)).to_dict(),
        "license": "Apache-2.0",
        "provenance": {"source": "a test"},
        "graph": {"decoder_layers": 1},
        **other,
    }


def ours(path: Path, **other: Any) -> Path:
    toy_of = {key: other.pop(key) for key in ("bytes_in", "batch") if key in other}
    return toy(path, size_hw=(64, 64), queries=20, rows=7, header=header_of(**other), **toy_of)


def pictures(count: int = 3) -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 256, (40 + i, 60, 3), np.uint8) // (i + 1) for i in range(count)]


def expected(path_size: tuple[int, int], queries: int, rows: int, labels: LabelSpace, feed: Preprocessing):
    """What a toy finds, by way of the definitions."""
    batch = prepare(pictures(), path_size, feed, filter=feed.predict_filter)
    boxes, logits = tables(queries, rows)
    raw = RawOutput(batch.pixels.mean((1, 2, 3))[:, None, None] + logits, boxes.repeat(3, 0))
    return select(raw, batch.geometries, labels, threshold=0.1)


def same(found, wanted) -> bool:
    return len(found) == len(wanted) and all(
        len(a) == len(b)
        and np.array_equal(a.class_ids, b.class_ids)
        and np.allclose(a.boxes_xyxy_px, b.boxes_xyxy_px, atol=1e-3)  # 1e-5 of a picture of 60 pixels
        and np.allclose(a.scores, b.scores, atol=1e-5)  # means of 400000 numbers in fp32
        for a, b in zip(found, wanted, strict=True)
    )


@pytest.mark.parametrize("batch", ["batch", 1, 2])
def test_a_file_of_the_official_package(tmp_path: Path, batch: int | str) -> None:
    detector = rapidetr.load(toy(tmp_path / "official.onnx", batch=batch))
    wanted = expected((384, 384), 300, 91, LabelSpace.coco(), Preprocessing.official())
    assert sum(len(d) for d in wanted) > 20
    for batch_size in (1, 3):
        assert same(detector.predict(pictures(), 0.1, batch_size=batch_size), wanted)
    assert (detector.config.name, detector.class_names[0], detector.license) == ("nano", "person", "")
    assert detector.notes == ("official.onnx has no metadata: taken for a nano, classes of COCO",)
    assert repr(detector) == "Detector(nano, detect, 80 classes, 384x384, onnxruntime float32 on cpu)"


def test_masks_and_numbered_classes(tmp_path: Path) -> None:
    detector = rapidetr.load(toy(tmp_path / "seg.onnx", size_hw=(312, 312), queries=100, rows=4, mask_hw=(78, 78)))
    assert (detector.config.name, detector.class_names, detector.config.class_rows) == ("seg-nano", ["class 0", "class 1", "class 2"], 4)
    found = detector.predict(pictures()[0], 0.1)[0]
    assert len(found)
    assert found.masks.areas.tolist() == [40 * 60] * len(found)


def test_an_unknown_size_needs_the_name(tmp_path: Path) -> None:
    path = toy(tmp_path / "mine.onnx", size_hw=(320, 448), rows=3)
    with pytest.raises(CheckpointError, match=r"mine\.onnx: does not tell which network it is, .* its size 320x448 with 300 queries"):
        rapidetr.load(path)
    with pytest.raises(CheckpointError, match="gives dets, labels, which is not what a seg-small gives"):
        rapidetr.load(path, model="seg-small")
    detector = rapidetr.load(path, model="small")
    assert (detector.config.name, detector.size_hw, len(detector.labels)) == ("small", (320, 448), 2)


def test_weights_under_another_licence_keep_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAPIDETR_ACCEPT_LICENSE", raising=False)
    path = toy(tmp_path / "big.onnx", size_hw=(700, 700), rows=3)
    with pytest.raises(LicenseRefused, match=r"big\.onnx is under PML-1\.0"):
        rapidetr.load(path)
    assert rapidetr.load(path, accept_license="PML-1.0").license == "PML-1.0"


def test_our_header_says_everything(tmp_path: Path) -> None:
    path = ours(tmp_path / "ours.onnx", license="MIT")
    detector = rapidetr.load(path, size_hw=64, decoder_layers=1, queries=20, dtype="float32", threads=1)
    wanted = expected((64, 64), 20, 7, LabelSpace.contiguous("abcdef"), Preprocessing(mean=(0.25,), std=(0.5,)))
    assert same(detector.predict(pictures(), 0.1), wanted)
    assert sum(len(d) for d in wanted) > 5
    assert (detector.class_names, detector.license, detector.config.decoder_layers) == (list("abcdef"), "MIT", 2)
    assert (detector.engine.decoder_layers, detector.engine.queries) == (1, 20)
    assert detector.engine.session.get_session_options().intra_op_num_threads == 1
    with pytest.raises(NotSupportedYet, match="the onnxruntime engine has no torch module"):
        detector.save(tmp_path / "again.safetensors")


@pytest.mark.parametrize(("name", "value"), [("size_hw", (64, 80)), ("decoder_layers", 2), ("queries", 10), ("dtype", "bfloat16")])
def test_what_is_fixed_in_the_file_cannot_be_changed(tmp_path: Path, name: str, value: Any) -> None:
    path = ours(tmp_path / "ours.onnx")
    with pytest.raises(
        ConfigError, match=f"{name} is .*, but the file was exported with size_hw \\(64, 64\\), decoder_layers 1, queries 20"
    ):
        rapidetr.load(path, **{name: value})


def test_an_artifact_whose_manifest_tells_another_file_is_refused(tmp_path: Path) -> None:
    for name, file in (("official", toy(tmp_path / "official.onnx", batch=1)), ("ours", ours(tmp_path / "ours.onnx"))):
        manifest = Manifest.of(rapidetr.load(file), source=file, command="made by a test", parameters={})
        made = write_artifact(tmp_path / name, {"model.onnx": file}, manifest)
        engine, facts = open_artifact_onnx(made, "cpu", 1)
        assert (engine.size_hw, facts.labels.to_dict()) == (manifest.size_hw, manifest.labels)
    labels = {**manifest.labels, "names": ["TAMPERED", *manifest.labels["names"][1:]]}
    for change in ({"size_hw": (96, 96)}, {"queries": 7}, {"decoder_layers": 2}, {"labels": labels}, {"queries": 7, "labels": labels}):
        told = f"ours: model.onnx has other {', '.join(change)} than its manifest says; make it again"
        with pytest.raises(CheckpointError, match=told):
            open_artifact_onnx(Artifact(made.path, replace(made.manifest, **change)), "cpu", 1)
    for count in (0, 2):
        files = {f"{i}.onnx": {"sha256": "", "bytes": 0} for i in range(count)}
        with pytest.raises(CheckpointError, match=f"has {count} .onnx files; expected one, make the artifact again"):
            open_artifact_onnx(Artifact(made.path, replace(made.manifest, files=files)), "cpu", 1)


def test_stages_are_timed_and_wrong_batches_named(tmp_path: Path) -> None:
    engine = OnnxEngine(ours(tmp_path / "ours.onnx"))
    with pytest.raises(ConfigError, match=r"batch is float32 \[1, 3, 64, 32\]; expected float32 \[B, 3, 64, 64\]"):
        engine.run(np.zeros((1, 3, 64, 32), np.float32))
    with pytest.raises(ConfigError, match="batch is float64"):
        engine.run(np.zeros((1, 3, 64, 64)))
    detector = rapidetr.load(ours(tmp_path / "ours.onnx"))
    assert set(detector.predict(pictures(1))[0].times_ms) >= {"prepare", "run", "select"}


def test_bytes(tmp_path: Path) -> None:
    engine = OnnxEngine(ours(tmp_path / "bytes.onnx", bytes_in=True))
    one = pictures()[0]
    batch = engine.prepare([one, pictures()[1]], Preprocessing(), "bilinear-antialias", None)
    assert np.array_equal(batch.pixels[0], np.asarray(Image.fromarray(one).resize((64, 64), Image.Resampling.BILINEAR)))
    assert [g.image_hw for g in batch.geometries] == [(40, 60), (41, 60)]
    logits = engine.run(batch.pixels).logits
    np.testing.assert_allclose(logits - tables(20, 7)[1], batch.pixels.mean((1, 2, 3))[:, None, None].repeat(20, 1).repeat(7, 2), atol=1e-3)
    exact = prepare([one], (64, 64), Preprocessing(mean=(0.0,), std=(1.0,)), filter="bilinear").pixels[0].transpose(1, 2, 0) * 255
    rounded = prepare_bytes([one], (64, 64), "bilinear").pixels[0]
    assert np.abs(rounded - exact).max() <= 0.5 + 1e-3  # half a level, and rounding of the comparison
    floats = prepare_bytes([one.astype(np.float32) / 255], (40, 60), "bilinear-antialias").pixels[0]
    assert np.array_equal(floats, one)
    with pytest.raises(ConfigError, match=r"expected uint8 \[B, 64, 64, 3\]"):
        engine.run(np.zeros((1, 3, 64, 64), np.float32))


def test_final_pairs_give_the_same_detections_as_raw_answers(tmp_path: Path) -> None:
    from rapidetr.model.fold import best_pairs

    torch = pytest.importorskip("torch")
    boxes, logits = tables(20, 7)
    logits = logits + 3  # many classes for each query
    logits[0, 3, 2] = 60  # a score of exactly 1
    names = ("boxes", "scores", "labels", "queries", "masks")
    answers = best_pairs(torch.from_numpy(boxes), torch.from_numpy(logits), torch.from_numpy(RNG.normal(size=(1, 20, 4, 4)).astype("f4")))
    arrays = dict(zip(names, (answer.numpy() for answer in answers), strict=True))
    graph = helper.make_graph(
        [helper.make_node("Identity", [f"table {name}"], [name]) for name in names],
        "final",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 64, 64])],
        [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for name, a in arrays.items()],
        [numpy_helper.from_array(a, f"table {name}") for name, a in arrays.items()],
    )
    engine, facts = open_onnx(save(graph, tmp_path / "final.onnx", header_of()))
    raw = engine.run(np.zeros((1, 3, 64, 64), np.float32))
    place = [Geometry((64, 64))]
    for options in ({}, {"one_label_per_query": True}, {"nms": 0.3}, {"include_unnamed": True}, {"classes": ["b"]}, {"max_detections": 5}):
        (found,) = select(raw, place, facts.labels, threshold=0.0, **options)
        (wanted,) = select(RawOutput(logits, boxes), place, facts.labels, threshold=0.0, **options)
        assert np.array_equal(found.head_rows, wanted.head_rows), options
        assert len(found) > 0
        np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-5)  # through a logit and back
        np.testing.assert_allclose(found.boxes_xyxy_px, wanted.boxes_xyxy_px, atol=1e-4)
    query = int(answers[3][0, 0])
    assert np.array_equal(raw.masks[0, query], answers[4][0, 0].numpy())


def test_other_graphs_are_refused(tmp_path: Path) -> None:
    odd = onnx.load(toy(tmp_path / "odd.onnx", size_hw=(64, 64), queries=20, rows=7))
    del odd.graph.output[0]
    (tmp_path / "odd.onnx").write_bytes(odd.SerializeToString())
    with pytest.raises(CheckpointError, match="expected one picture of a fixed size, giving dets and labels"):
        rapidetr.load(tmp_path / "odd.onnx")
    with pytest.raises(CheckpointError, match="expected one picture of a fixed size"):
        rapidetr.load(toy(tmp_path / "dynamic.onnx", size_hw=("height", "width")))
    with pytest.raises(CheckpointError, match="expected one picture of a fixed size"):
        rapidetr.load(toy(tmp_path / "huge.onnx", size_hw=(1 << 20, 1 << 20)))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{", "damaged header"),
        ("[]", "this release reads JSON objects of version 1"),
        ({"format_version": 2}, "this release reads JSON objects of version 1"),
        ({"format_version": 1}, "damaged header: 'config'"),
        (header_of(labels=LabelSpace.contiguous("ab").to_dict()), "a class head of 7 rows, labels for 3"),
    ],
)
def test_damaged_headers(tmp_path: Path, header: Any, message: str) -> None:
    path = toy(tmp_path / "bad.onnx", size_hw=(64, 64), queries=20, rows=7, header=header)
    with pytest.raises(CheckpointError, match=message):
        rapidetr.load(path)


def test_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"ours\.onnx: holds a nano, not a small; leave model= out"):
        rapidetr.load(ours(tmp_path / "ours.onnx"), model="small")


def test_damaged_files_never_crash(tmp_path: Path) -> None:
    whole = ours(tmp_path / "whole.onnx").read_bytes()
    damaged = tmp_path / "damaged.onnx"
    for length in (0, 1, 7, 100, len(whole) // 2, len(whole) - 1):
        damaged.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"damaged\.onnx"):
            rapidetr.load(damaged)
    for junk in (b"\xff" * 200, b"\x0f" * 10, b"not an onnx file"):
        damaged.write_bytes(junk)
        with pytest.raises(CheckpointError, match=r"damaged\.onnx"):
            rapidetr.load(damaged)
    with pytest.raises(FileNotFoundError, match=r"none\.onnx: no such file; expected an \.onnx file"):
        rapidetr.load(tmp_path / "none.onnx")


def with_external(path: Path, location: str, nested: bool = False) -> Path:
    model = onnx.load(ours(path))
    tensor = next(t for t in model.graph.initializer if t.name == "logits")
    (path.parent / "weights.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    if nested:  # the same tensor as an attribute of a node instead
        model.graph.node.insert(0, helper.make_node("Constant", [], ["logits"], value=tensor))
        model.graph.initializer.remove(tensor)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname", "sub/../../weights.bin", "C:\\weights.bin", "*/_ORT_MEM_ADDR_/*"])
def test_weights_outside_the_folder_are_refused(tmp_path: Path, location: str, nested: bool) -> None:
    (tmp_path / "sub").mkdir()
    path = with_external(tmp_path / "sub" / "m.onnx", location, nested)
    (tmp_path / "weights.bin").write_bytes(b"0" * 560)
    with pytest.raises(UnsafeFile, match=r"m\.onnx: wants weights from .*; expected files in its own folder, it was not loaded"):
        rapidetr.load(path)


def test_weights_beside_the_file_are_fine(tmp_path: Path) -> None:
    found = rapidetr.load(with_external(tmp_path / "m.onnx", "weights.bin")).predict(pictures(), 0.1)
    assert same(found, expected((64, 64), 20, 7, LabelSpace.contiguous("abcdef"), Preprocessing(mean=(0.25,), std=(0.5,))))


def test_without_onnxruntime_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ours(tmp_path / "ours.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendMissing) as caught:
        rapidetr.load(path)
    assert str(caught.value) == "this artifact needs onnxruntime; install it with: pip install 'rapidetr[onnx]'"


def test_devices_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    for device in ("cuda:1", "tpu"):
        with pytest.raises(BackendMissing, match=f"device is '{device}'; this onnxruntime runs on cpu"):
            rapidetr.load(ours(tmp_path / "ours.onnx"), device=device)


def test_a_device_that_onnxruntime_gives_up_on_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what it was built with; without cuDNN it runs on the CPU and only logs that."""
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    real = onnxruntime.InferenceSession
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda path, options, providers: real(path, options, ["CPUExecutionProvider"]))
    with pytest.raises(BackendMissing, match=r"^device is 'cuda', but ONNX Runtime could not start CUDAExecutionProvider; look for cuDNN"):
        rapidetr.load(ours(tmp_path / "ours.onnx"), device="cuda")


def test_predicting_imports_no_torch(tmp_path: Path) -> None:
    path = ours(tmp_path / "ours.onnx")
    Image.fromarray(pictures()[0]).save(tmp_path / "one.png")
    code = (
        "import sys, rapidetr\n"
        f"found = rapidetr.load({str(path)!r}).predict({str(tmp_path / 'one.png')!r}, 0.1)\n"
        "print(len(found), sorted({'torch', 'onnx', 'torchvision'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("1 []", 0), done.stderr
