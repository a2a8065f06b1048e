"""OpenVINO artifacts: the numbers of the plain network, geometry marked, int8 calibrated or not tried."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import cases
import numpy as np
import openvino
import pytest
import torch

import rapidetr
from rapidetr.checkpoints.file import Checkpoint
from rapidetr.core.errors import BackendMissing, ConfigError
from rapidetr.core.labels import LabelSpace
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.demo import render_scene
from rapidetr.deployment.openvino import BFLOAT16, FLOAT32, Converted, OpenvinoFloat, export_openvino
from rapidetr.deployment.openvino_int8 import INT8, fingerprint
from rapidetr.deployment.technique import Order, technique
from rapidetr.evaluation.agreement import agreement
from rapidetr.runtime.artifact import open_artifact
from rapidetr.runtime.detector import Detector
from rapidetr.runtime.lock import sha256_of, weights_file
from rapidetr.runtime.openvino_engine import XML
from rapidetr.runtime.torch_engine import TorchEngine

LABELS = LabelSpace.contiguous(["ant", "bee", "cat", "dog", "eel"], dataset_ids=[3, 5, 7, 9, 11], head_rows=7)
LOGITS = 1e-4  # of a network of this size in fp32; a wrong weight or place is off by 1e-2 and more


def detector_of(case: str, feed: Preprocessing | None = None, **cut: object) -> Detector:
    network = cases.network(case)
    feed = feed or Preprocessing(mean=(0.3, 0.4, 0.5), std=(0.2, 0.3, 0.4))
    return Detector(TorchEngine(network, **cut), Checkpoint({}, network.config, LABELS, feed, "Apache-2.0"))  # type: ignore[arg-type]


def scenes(count: int, first: int = 0) -> list[np.ndarray]:
    return [render_scene(first + i, size_hw=(200, 260)).pixels for i in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "filter", "cut"),
    [
        ("tiny_det", "bilinear", {}),
        ("tiny_seg", "bilinear-antialias", {"size_hw": (48, 80), "decoder_layers": 2, "queries": 17}),
        ("tiny_multi", "bilinear-antialias", {}),
        ("tiny_logit", "bilinear-antialias", {"decoder_layers": 1}),
        ("tiny_few", "bilinear", {}),
    ],
)
def test_answers_are_those_of_the_plain_network(tmp_path: Path, case: str, filter: str, cut: dict) -> None:
    feed = Preprocessing(filter, filter, mean=(0.3, 0.4, 0.5), std=(0.2, 0.3, 0.4))
    source = detector_of(case, feed)
    exported = export_openvino(source, tmp_path / "made", **cut)
    assert exported.close, exported
    assert (exported.same_topk, exported.pictures) == (6, 6)
    assert exported.max_logit_error < LOGITS
    assert exported.inputs == ("uint8" if filter == "bilinear-antialias" else "normalized")
    engine, plain = rapidetr.load(tmp_path / "made").engine, detector_of(case, feed, **cut).engine
    assert (engine.size_hw, engine.queries) == (cut.get("size_hw", source.size_hw), cut.get("queries", source.config.queries))
    for count in (1, 2, 3):
        pictures = scenes(count)
        ours = engine.run(engine.prepare(pictures, feed, filter, None).pixels)
        theirs = plain.run(plain.prepare(pictures, feed, filter, None).pixels)
        np.testing.assert_allclose(ours.logits, theirs.logits, atol=LOGITS)
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=LOGITS)
        if source.config.segmentation:
            np.testing.assert_allclose(ours.masks, theirs.masks, atol=10 * LOGITS)  # sums of many features
    assert source.size_hw == source.config.size_hw  # the source runs as it did


@pytest.mark.slow
def test_pico_finds_the_same(tmp_path: Path) -> None:
    made = technique("openvino-float32").make(Order(rapidetr.load("pico", device="cpu"), weights_file("pico")), tmp_path / "made")
    assert (made.manifest.engine, made.manifest.precision, made.manifest.device) == ("openvino", "float32", "cpu")
    assert made.manifest.parameters == {"technique": "openvino-float32", "inputs": "uint8", "floats": "float32", "taps": False}
    assert {"model.xml", "model.bin", "report.json", "lock.json"} == set(made.manifest.files)
    pictures = scenes(4)
    found = agreement(rapidetr.load("pico", device="cpu").predict(pictures, 0.3), rapidetr.load(tmp_path / "made").predict(pictures, 0.3))
    assert found.matched_fraction == 1
    assert found.matched > 5
    assert found.score_shift_max < 1e-4
    assert found.box_shift_px_max < 0.01  # LOGITS of 260 pixels, refined twice
    code = (
        "import sys\nsys.modules.update(torch=None)\nimport numpy, rapidetr\n"
        f"print(len(rapidetr.load({str(tmp_path / 'made')!r}).predict(numpy.zeros((200, 260, 3), numpy.uint8))))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("1", 0), done.stderr


@pytest.mark.slow
def test_geometry_is_marked_and_nothing_tells_of_the_machine(tmp_path: Path) -> None:
    export_openvino(detector_of("tiny_det"), tmp_path / "made", precision="bfloat16", taps=True)
    assert open_artifact(tmp_path / "made").manifest.precision == "bfloat16"
    text = (tmp_path / "made" / XML).read_text()
    assert str(Path(torch.__file__).parent) not in text
    assert ".py" not in text
    layers = list(ElementTree.fromstring(text).iterfind("layers/layer"))
    marked = {layer.get("id"): layer.get("type") for layer in layers if layer.find("rt_info/attribute[@name='precise']") is not None}
    assert {"Gather", "Exp", "Sin", "Cos", "GridSample"} <= set(marked.values())
    assert not {"MatMul", "Convolution", "ScaledDotProductAttention", "TopK"} & set(marked.values())
    everywhere = ("Sin", "Cos", "GridSample")
    assert sum(kind in everywhere for kind in marked.values()) == sum(layer.get("type") in everywhere for layer in layers)
    # OpenVINO reads the mark as its own
    model = openvino.Core().read_model(tmp_path / "made" / XML)
    kept = [node for node in model.get_ordered_ops() if node.get_rt_info()]
    assert {"Sin", "GridSample"} <= {node.get_type_name() for node in kept}
    engine = rapidetr.load(tmp_path / "made").engine
    taps = engine.tapped(np.zeros((1, *engine.size_hw, 3), np.uint8))  # type: ignore[attr-defined]
    assert {"proposals.tokens", "decoder.layers.0"} <= set(taps)


def test_what_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = Order(detector_of("tiny_det"), tmp_path / "x.safetensors")
    assert INT8.fits(order) == "int8 is calibrated on your pictures, and there are none"
    with pytest.raises(ConfigError, match="int8 is calibrated on your pictures, and there are none; give some, 100 are enough"):
        INT8.make(order, tmp_path / "made")
    assert FLOAT32.fits(order) is None
    assert INT8.fits(replace(order, pictures=scenes(1))) is None
    (tmp_path / "proc").mkdir()
    for flags, why in (("avx2 avx512f", "this processor has neither avx512_bf16 nor amx_bf16"), ("avx2 avx512_bf16", None)):
        (tmp_path / "proc" / "cpuinfo").write_text(f"flags : {flags}\n")
        assert OpenvinoFloat("openvino-bfloat16", "bfloat16", tmp_path).fits(order) == why
    monkeypatch.setattr("rapidetr.deployment.openvino.find_spec", lambda name: None)
    assert FLOAT32.fits(order) == "openvino is not installed; install it with: pip install 'rapidetr[openvino]'"
    with pytest.raises(BackendMissing, match=r"converting needs openvino; install it with: pip install 'rapidetr\[openvino\]'"):
        BFLOAT16.make(order, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_arguments_are_checked_before_anything_is_built(tmp_path: Path) -> None:
    source = detector_of("tiny_det")
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="there: exists already; choose another --out, or replace it with --force"):
        export_openvino(source, tmp_path / "there")
    with pytest.raises(ConfigError, match="precision is 'float16', taps False; expected one of bfloat16, float32, int8, int8 without taps"):
        export_openvino(source, tmp_path / "x", precision="float16")
    with pytest.raises(ConfigError, match="queries is 99; nano has 1 to 20"):
        export_openvino(source, tmp_path / "x", queries=99)
    with pytest.raises(ConfigError, match="image height 60 is not a multiple of 16"):
        export_openvino(source, tmp_path / "x", size_hw=(60, 64))
    assert not (tmp_path / "x").exists()


def old_folder(path: Path) -> Path:
    path.mkdir()
    (path / "old.txt").write_text("old")
    return path


def test_an_error_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails:
        def make(self, order: Order, folder: Path) -> None:
            (folder / "half").mkdir(parents=True)
            raise OSError("disk full")

    monkeypatch.setattr("rapidetr.deployment.openvino.technique", lambda name: Fails())
    with pytest.raises(OSError, match="disk full"):
        export_openvino(detector_of("tiny_det"), old_folder(tmp_path / "made"), force=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "old.txt"]
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file: is no folder; expected one to replace, or the name of a new one"):
        export_openvino(detector_of("tiny_det"), tmp_path / "file", force=True)


@pytest.mark.slow
def test_force_replaces_the_old_folder(tmp_path: Path) -> None:
    exported = export_openvino(detector_of("tiny_det"), old_folder(tmp_path / "made"), force=True)
    assert exported.path == str(tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert set(open_artifact(tmp_path / "made").files) == {"model.xml", "model.bin", "report.json", "lock.json"}
    assert len(rapidetr.load(tmp_path / "made").predict(scenes(1), 0.0)[0]) > 3


def test_what_counts_as_close() -> None:
    good = Converted(
        path="x",
        bytes=1,
        seconds=1.0,
        precision="float32",
        size_hw=(64, 64),
        decoder_layers=2,
        queries=20,
        inputs="uint8",
        pictures=6,
        same_topk=6,
        topk_gap=0.0,
        max_logit_error=1e-5,
        max_box_error=1e-6,
        max_mask_error=None,
    )
    assert good.close
    assert str(good).endswith("same top-k in 6 of 6 answers")
    assert replace(good, max_mask_error=1e-4, same_topk=5, topk_gap=1e-5).close
    nan = float("nan")
    for change in ({"max_logit_error": nan}, {"max_box_error": 0.01}, {"max_mask_error": nan}, {"topk_gap": 0.1}):
        assert not replace(good, **change).close, change
    # lower precisions round by far more, which is for data to judge; but nothing may be infinite or no number
    for precision in ("bfloat16", "int8"):
        low = replace(good, precision=precision, max_logit_error=0.7, max_box_error=0.2, topk_gap=0.3, same_topk=0)
        assert low.close
        assert str(low).endswith("note: this precision rounds more than fp32; judge on data what that costs")
        for name in ("max_logit_error", "max_box_error", "max_mask_error", "topk_gap"):
            assert not replace(low, **{name: nan}).close, name
            assert not replace(low, **{name: float("inf")}).close, name


def test_calibration_pictures_are_told_apart() -> None:
    one, two = scenes(2)
    assert len({fingerprint(pictures) for pictures in ([one], [two], [one, two], [two, one], [one.reshape(260, 200, 3)])}) == 5
    assert fingerprint([one[:, ::-1]]) == fingerprint([one[:, ::-1].copy()])


@pytest.mark.slow
def test_the_source_is_the_file_that_was_given(tmp_path: Path) -> None:
    file = detector_of("tiny_det").save(tmp_path / "mine.safetensors", deploy=True)
    export_openvino(rapidetr.load(file, device="cpu"), tmp_path / "made", checkpoint=file)
    assert open_artifact(tmp_path / "made").manifest.source == {"name": "mine.safetensors", "sha256": sha256_of(file)}


@pytest.mark.slow
def test_int8_of_pico_agrees(tmp_path: Path) -> None:
    calibration, pictures = scenes(16, first=1000), scenes(16)
    plain = rapidetr.load("pico", device="cpu")
    made = INT8.make(Order(plain, weights_file("pico"), pictures=calibration), tmp_path / "made")
    assert made.manifest.precision == "int8"
    assert made.manifest.parameters["calibration"] == {"pictures": 16, "sha256": fingerprint(calibration)}
    network = ElementTree.parse(tmp_path / "made" / XML).getroot()
    names = [str(layer.get("name")) for layer in network.iterfind("layers/layer") if layer.get("type") == "FakeQuantize"]
    assert len(names) > 20
    # the conversion of the bytes, which enter the encoder, has no module in its name
    assert not [name for name in names if not name.startswith(("__module.encoder", "__module.levels", "Convert_"))]
    found = agreement(plain.predict(pictures, 0.3), rapidetr.load(tmp_path / "made").predict(pictures, 0.3))
    assert found.matched_fraction > 0.85, found
    assert found.box_shift_px_p50 < 2, found
