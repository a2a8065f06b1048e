"""OpenVINO artifacts: contract, hostile files, no torch. The graphs are toys with known answers."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import cases
import numpy as np
import openvino
import pytest
from openvino import opset13 as ops
from PIL import Image

import rapidetr
from rapidetr.core.errors import BackendMissing, CheckpointError, ConfigError, NotSupportedYet, UnsafeFile
from rapidetr.core.labels import LabelSpace
from rapidetr.core.outputs import RawOutput
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.pixels.prepare import prepare
from rapidetr.pixels.select import select
from rapidetr.runtime.artifact import Facts, Manifest, write_artifact
from rapidetr.runtime.detector import Detector
from rapidetr.runtime.graph_engine import prepare_bytes
from rapidetr.runtime.openvino_engine import BIN, XML, OpenvinoEngine, our_name

QUERIES, ROWS, SIZE = 20, 7, (64, 64)
LABELS, FEED = LabelSpace.contiguous("abcdef"), Preprocessing(mean=(0.25,), std=(0.5,))
RNG = np.random.default_rng(3)
BOXES = RNG.uniform(0.2, 0.6, (1, QUERIES, 4)).astype(np.float32)
LOGITS = RNG.normal(-2, 1.5, (1, QUERIES, ROWS)).astype(np.float32)
PICTURES = [np.random.default_rng(i).integers(0, 256, (40 + i, 60, 3), np.uint8) // (i + 1) for i in range(3)]


def toy(folder: Path, *, bytes_in: bool = False, size_hw: tuple[int, int] = SIZE, names: tuple[str, ...] = ("dets", "labels")) -> Path:
    """Boxes from a table; logits from a table plus the mean of each picture."""
    shape = [-1, *size_hw, 3] if bytes_in else [-1, 3, *size_hw]
    entry = ops.parameter(shape, np.uint8 if bytes_in else np.float32, name="input")
    mean = ops.reduce_mean(ops.convert(entry, "f32"), np.array([1, 2, 3]), keep_dims=True)
    mean = ops.reshape(mean, np.array([-1, 1, 1]), special_zero=False)
    answers = [ops.add(ops.multiply(mean, np.float32(0)), BOXES), ops.add(mean, LOGITS)]
    model = openvino.Model(answers, [entry])
    for output, name in zip(model.outputs, names, strict=True):
        output.get_tensor().set_names({name})
    folder.mkdir(exist_ok=True)
    openvino.save_model(model, folder / XML, compress_to_fp16=False)
    return folder / XML


def artifact(folder: Path, *, precision: str = "float32", **changes: object) -> Path:
    """An artifact around a toy."""
    path = toy(folder / "raw", bytes_in=bool(changes.pop("bytes_in", False)))
    config = cases.config_of("tiny_det")
    engine = OpenvinoEngine(path, config)
    engine.decoder_layers = 1
    detector = Detector(engine, Facts(config, LABELS, FEED, "MIT"))
    manifest = replace(Manifest.of(detector, source=path, parameters={}), precision=precision, **changes)  # type: ignore[arg-type]
    write_artifact(folder / "made", {XML: path, BIN: path.with_name(BIN)}, manifest)
    return folder / "made"


def expected() -> list:
    """What a toy finds, by way of the definitions."""
    batch = prepare(PICTURES, SIZE, FEED, filter=FEED.predict_filter)
    raw = RawOutput(batch.pixels.mean((1, 2, 3))[:, None, None] + LOGITS, BOXES.repeat(3, 0))
    return select(raw, batch.geometries, LABELS, threshold=0.1)


def check_same(found, wanted) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert len(a) == len(b) > 3
        assert np.array_equal(a.class_ids, b.class_ids)
        np.testing.assert_allclose(a.boxes_xyxy_px, b.boxes_xyxy_px, atol=1e-3)  # 1e-5 of a picture of 60 pixels
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)  # means of 12288 numbers in fp32


def test_an_artifact_predicts(tmp_path: Path) -> None:
    folder = artifact(tmp_path)
    detector = rapidetr.load(folder, threads=1, size_hw=64, decoder_layers=1, queries=20, dtype="float32")
    for batch_size in (1, 2, 3):
        check_same(detector.predict(PICTURES, 0.1, batch_size=batch_size), expected())
    assert repr(detector) == "Detector(nano, detect, 6 classes, 64x64, openvino float32 on cpu)"
    assert (detector.license, detector.engine.decoder_layers, detector.engine.queries) == ("MIT", 1, 20)
    compiled = detector.engine.compiled
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert not compiled.get_property("ENABLE_CPU_PINNING")
    assert str(compiled.get_property("PERFORMANCE_HINT")) == "LATENCY"
    assert set(detector.predict(PICTURES[0])[0].times_ms) >= {"prepare", "run", "select"}
    with pytest.raises(NotSupportedYet, match="the openvino engine has no torch module"):
        detector.save(tmp_path / "again.safetensors")


@pytest.mark.parametrize(("name", "value"), [("size_hw", (64, 80)), ("decoder_layers", 2), ("queries", 10), ("dtype", "bfloat16")])
def test_other_values_are_refused_by_naming_the_stored_ones(tmp_path: Path, name: str, value: object) -> None:
    told = "but stored is nano 64x64, 1 decoder layer, 20 queries, openvino float32; leave it out, or make another artifact"
    with pytest.raises(ConfigError, match=told):
        rapidetr.load(artifact(tmp_path), **{name: value})  # type: ignore[arg-type]


def test_bytes_and_wrong_batches(tmp_path: Path) -> None:
    engine = OpenvinoEngine(toy(tmp_path / "x", bytes_in=True))
    batch = engine.prepare(PICTURES[:1], Preprocessing(), "bilinear-antialias", None)
    assert np.array_equal(batch.pixels, prepare_bytes(PICTURES[:1], SIZE, "bilinear-antialias").pixels)
    np.testing.assert_allclose(engine.run(batch.pixels).logits - LOGITS, batch.pixels.mean(), atol=1e-3)  # means of up to 255
    turned = np.asfortranarray(np.repeat(batch.pixels, 2, axis=0))
    assert np.array_equal(engine.run(turned).logits[1], engine.run(batch.pixels).logits[0])
    with pytest.raises(ConfigError, match=r"batch is float32 \[1, 3, 64, 64\]; expected uint8 \[B, 64, 64, 3\]"):
        engine.run(np.zeros((1, 3, 64, 64), np.float32))


def test_threads_share_an_engine(tmp_path: Path) -> None:
    engine = OpenvinoEngine(toy(tmp_path / "x"), threads=1)
    wrong: list[float] = []

    def work(value: float) -> None:
        for _ in range(30):
            logits = engine.run(np.full((1, 3, *SIZE), value, np.float32)).logits
            if np.abs(logits - LOGITS - value).max() > 1e-3:  # rounding of sums of 12288
                wrong.append(value)

    workers = [threading.Thread(target=work, args=(float(i),)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_answers_outlive_the_next_call(tmp_path: Path) -> None:
    engine = OpenvinoEngine(toy(tmp_path / "x"))
    first = engine.run(np.zeros((1, 3, *SIZE), np.float32))
    before = first.logits.copy()
    engine.run(np.ones((1, 3, *SIZE), np.float32))
    assert np.array_equal(first.logits, before)


def test_a_precision_that_the_processor_lacks_is_told(tmp_path: Path) -> None:
    detector = rapidetr.load(artifact(tmp_path, precision="bfloat16"))
    lacks = detector.engine.floats == "float32"
    note = "this processor has no bfloat16: OpenVINO computes in float32, slower than where the artifact was made"
    assert detector.engine.floats in ("float32", "bfloat16")
    assert [note] * lacks == [told for told in detector.notes if "this processor" in told]
    assert detector.engine.precision == "bfloat16"


def test_other_graphs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="gives boxes, labels; expected one picture of a fixed size, giving dets and labels"):
        OpenvinoEngine(toy(tmp_path / "a", names=("boxes", "labels")))
    with pytest.raises(CheckpointError, match="expected one picture of a fixed size"):
        OpenvinoEngine(toy(tmp_path / "b", size_hw=(-1, 64)))
    with pytest.raises(CheckpointError, match=r"model\.xml is for 64x64 and 20 queries, its manifest says nano 96x64"):
        rapidetr.load(artifact(tmp_path, size_hw=(96, 64)))


def test_damaged_artifacts_are_refused(tmp_path: Path) -> None:
    folder = artifact(tmp_path)
    with pytest.raises(ConfigError, match="device is 'cuda'; OpenVINO artifacts run on cpu"):
        rapidetr.load(folder, device="cuda")
    (folder / BIN).write_bytes((folder / BIN).read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"changed: model\.bin"):
        rapidetr.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "not xml",
        lambda text: "",
        lambda text: text.replace('type="ReduceMean" version="opset1"', 'type="Shell" version="extension"'),
        lambda text: text.replace('offset="', 'offset="9'),
    ],
    ids=["half", "junk", "empty", "extension", "outside the weights"],
)
def test_damaged_networks_never_crash(tmp_path: Path, change) -> None:
    path = toy(tmp_path / "x")
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))
    with pytest.raises(CheckpointError, match=r"model\.xml: OpenVINO cannot load it \(.+\); export it again"):
        OpenvinoEngine(path)


def test_weights_that_end_early_are_refused(tmp_path: Path) -> None:
    path = toy(tmp_path / "x")
    weights = path.with_name(BIN)
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="OpenVINO cannot load it"):
        OpenvinoEngine(path)


def test_a_description_that_is_too_long_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = toy(tmp_path / "x")
    monkeypatch.setattr("rapidetr.runtime.openvino_engine._XML_LIMIT", 100)
    with pytest.raises(UnsafeFile, match=r"model\.xml: has \d+ bytes; expected up to 100, it was not loaded"):
        OpenvinoEngine(path)


def test_without_openvino_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = artifact(tmp_path)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendMissing) as caught:
        rapidetr.load(folder)
    assert str(caught.value) == "this artifact needs openvino; install it with: pip install 'rapidetr[openvino]'"


@pytest.mark.parametrize("blocked", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_predicting_imports_no_torch(tmp_path: Path, blocked: bool) -> None:
    folder = artifact(tmp_path, bytes_in=True)
    Image.fromarray(PICTURES[0] // 255).save(tmp_path / "one.png")
    code = (
        f"import sys\n{'sys.modules.update(torch=None, torchvision=None)' if blocked else ''}\nimport rapidetr\n"
        f"found = rapidetr.load({str(folder)!r}).predict({str(tmp_path / 'one.png')!r}, 0.1)\n"
        "print(len(found), len(found[0]) > 3, [name for name in ('torch', 'onnx') if sys.modules.get(name)])"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("1 True []", 0), done.stderr


@pytest.mark.parametrize(("theirs", "ours"), [("bf16", "bfloat16"), ("f32", "float32"), ("f16", "f16")])
def test_what_openvino_computes_in_has_our_name(theirs: str, ours: str) -> None:
    assert our_name(getattr(openvino.Type, theirs)) == ours
