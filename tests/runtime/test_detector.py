"""The four-step predict: what goes in, what comes out, and what is refused."""

from __future__ import annotations

import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cases
import numpy as np
import pytest
import torch
from PIL import Image

import rapidetr
from rapidetr.checkpoints.file import Checkpoint
from rapidetr.core.clock import StageClock
from rapidetr.core.errors import ConfigError, ImageError, ImageMissing
from rapidetr.core.labels import LabelSpace
from rapidetr.core.outputs import Batch
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.pixels.overlap import overlap
from rapidetr.runtime import detector as detector_module
from rapidetr.runtime.detector import Detector
from rapidetr.runtime.torch_engine import TorchEngine

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox")


def detector(case: str = "tiny_det", **engine) -> Detector:
    network = cases.network(case)
    preprocessing = Preprocessing("bilinear", "bilinear-antialias")
    checkpoint = Checkpoint({}, network.config, LabelSpace.contiguous(NAMES), preprocessing, "Apache-2.0")
    return Detector(TorchEngine(network, **engine), checkpoint)


@pytest.fixture(scope="module")
def tiny() -> Detector:
    return detector()


def picture(seed: int = 0, h: int = 90, w: int = 120) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (h // 10, w // 10, 3), np.uint8)
    return coarse.repeat(10, 0).repeat(10, 1)


def same(a: rapidetr.Detections, b: rapidetr.Detections) -> bool:
    arrays = ("boxes_xyxy_px", "scores", "head_rows")
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in arrays) and a.masks == b.masks


def test_every_kind_of_source_gives_the_same(tiny: Detector, tmp_path: Path) -> None:
    pixels = picture()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    raw = (tmp_path / "a.png").read_bytes()
    one = tiny.predict(pixels, 0.0)
    assert len(one) == 1
    assert len(one[0]) > 5
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), raw, Image.fromarray(pixels)):
        (other,) = tiny.predict(source, 0.0)
        assert same(other, one[0])
    (floats,) = tiny.predict(torch.from_numpy(pixels).permute(2, 0, 1) / 255, 0.0)
    np.testing.assert_allclose(floats.scores, one[0].scores, atol=1e-5)  # 1/255 is not a float32
    assert tiny.predict([tmp_path / "a.png"], 0.0)[0].source == str(tmp_path / "a.png")
    assert one[0].resize_filter == "bilinear"
    assert one[0].image_hw == (90, 120)


def test_lists_iterables_and_batches_keep_their_order(tiny: Detector) -> None:
    pictures = [picture(i, 90 + 10 * i, 120 - 10 * i) for i in range(5)]
    alone = [tiny.predict(p, 0.0)[0] for p in pictures]
    for found in (tiny.predict(pictures, 0.0), tiny.predict(iter(pictures), 0.0), tiny.predict(tuple(pictures), 0.0)):
        assert [d.image_hw for d in found] == [p.shape[:2] for p in pictures]
        assert all(map(same, found, alone))
    assert tiny.predict([]) == []
    for size in (2, 5, 9):
        for batch, one in zip(tiny.predict(pictures, 0.0, batch_size=size), alone, strict=True):
            # a larger matrix product may round differently, no more
            np.testing.assert_allclose(batch.scores, one.scores, atol=1e-5)
            np.testing.assert_allclose(batch.boxes_xyxy_px, one.boxes_xyxy_px, atol=1e-2)
    sizes = [len(b) for b in tiny.predict_iter(pictures, batch_size=2)]
    assert sizes == [2, 2, 1]


def test_predict_iter_holds_no_more_than_it_needs(tiny: Detector) -> None:
    taken: list[int] = []

    def endless():
        for i in range(10_000):
            taken.append(i)
            yield picture(i % 3, 40, 40)

    for prefetch in (0, 3):
        taken.clear()
        batches = tiny.predict_iter(endless(), batch_size=2, prefetch=prefetch)
        next(batches), next(batches)
        assert len(taken) <= 4 + prefetch
        batches.close()


def test_prefetching_gives_the_same(tiny: Detector) -> None:
    pictures = [picture(i) for i in range(7)]
    plain = [d for b in tiny.predict_iter(pictures, 0.0, batch_size=2) for d in b]
    ahead = [d for b in tiny.predict_iter(pictures, 0.0, batch_size=2, prefetch=3) for d in b]
    assert all(map(same, plain, ahead))


def test_options_narrow_the_result(tiny: Detector) -> None:
    (all_found,) = tiny.predict(picture(), 0.0)
    (cats,) = tiny.predict(picture(), 0.0, classes=["cat", 5])
    assert set(cats.class_names) <= {"cat", "fox"}
    assert same(cats, all_found.filter(classes=["cat", "fox"]))
    middle = float(np.median(all_found.scores))
    (good,) = tiny.predict(picture(), middle)
    assert same(good, all_found.filter(threshold=middle))
    (few,) = tiny.predict(picture(), 0.0, max_detections=3, include_unnamed=True)
    assert len(few) == 3
    (named,) = tiny.predict(picture(), 0.0)
    (every,) = tiny.predict(picture(), 0.0, include_unnamed=True)
    assert len(every) == 20
    assert named.unnamed_dropped == 20 - len(named)
    assert same(named, every[every.class_ids >= 0])
    with pytest.raises(ConfigError, match="unknown class 'cow'; this model knows: ant, bee, cat, dog, eel, fox"):
        tiny.predict(picture(), classes=["cow"])
    with pytest.raises(TypeError, match=r"unknown options \['thresh'\]; there are classes, max_detections"):
        tiny.predict(picture(), thresh=0.5)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="threshold is 50; expected 0 to 1"):
        tiny.predict(picture(), 50)
    for options, message in (
        ({"threshold": "0.5"}, r"^threshold is '0\.5'; expected 0 to 1$"),
        ({"tile": "64"}, r"^tile is '64'; expected \(height, width\) in pixels, or one whole number for a square$"),
        ({"tile": (100,)}, r"^tile is \(100,\); expected \(height, width\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            tiny.predict(picture(), **options)


def test_evaluation_uses_the_other_filter(tiny: Detector) -> None:
    (found,) = tiny.predict(picture(), 0.0, purpose="evaluate")
    assert found.resize_filter == "bilinear-antialias"
    assert not same(found, tiny.predict(picture(), 0.0)[0])


def test_bad_pictures_are_reported_or_raised(tiny: Detector, tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "good.png")
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff nothing")
    paths = [tmp_path / "good.png", tmp_path / "bad.jpg", tmp_path / "none.png", tmp_path / "good.png"]
    found = [d for batch in tiny.predict_iter(paths, 0.0, batch_size=3) for d in batch]
    assert [d.error is None for d in found] == [True, False, False, True]
    assert [d.source for d in found] == [str(p) for p in paths]
    assert str(tmp_path / "bad.jpg") in str(found[1].error)
    assert (len(found[1]), found[1].image_hw) == (0, (0, 0))
    assert same(found[0], found[3])
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        tiny.predict(paths)
    with pytest.raises(FileNotFoundError):
        tiny.predict(tmp_path / "none.png")
    with pytest.raises(ImageMissing, match=r"none\.png"):
        list(tiny.predict_iter([tmp_path / "none.png"], on_error="raise"))


def test_tiles_find_what_one_view_finds_in_place(tiny: Detector) -> None:
    large = np.concatenate([picture(0), picture(1)], axis=1)
    (found,) = tiny.predict(large, 0.0, tile=(90, 120), overlap=0.0)
    assert found.image_hw == (90, 240)
    assert found.boxes_xyxy_px[:, 2].max() > 120
    left = tiny.predict(picture(0), 0.0)[0]
    # the best detection of the left tile stands unchanged in the merged result
    assert np.isclose(found.scores, left.scores[0], atol=1e-6).any()
    (one,) = tiny.predict(picture(0), 0.0, tile=500)
    assert np.isin(np.round(one.scores, 5), np.round(left.scores, 5)).all()


def test_rectangular_input_keeps_height_and_width_apart() -> None:
    tall = detector(size_hw=(96, 32))
    assert (tall.size_hw, tall.engine.size_hw) == ((96, 32), (96, 32))
    assert tall.engine.prepare([picture()], tall.preprocessing, "bilinear", None).pixels.shape == (1, 3, 96, 32)
    assert len(tall.predict(picture(), 0.0, include_unnamed=True)[0]) == 20
    with pytest.raises(ConfigError, match=r"^image width 40 is not a multiple of 16 \(patch 8 x 2 windows\); use 32 or 48$"):
        detector(size_hw=(96, 40))


def test_shorter_decoder_and_fewer_queries() -> None:
    """First rows of the first group, as many results as fit; one layer equals the first layer of the whole decoder."""
    image = cases.images("tiny_det")[:1]
    network = cases.network("tiny_det")
    with torch.no_grad():
        every = network(image, every_layer=True)
    short = detector(decoder_layers=1).engine.run(image.numpy())
    np.testing.assert_allclose(short.logits, every.layers[0].logits.numpy(), atol=1e-6)
    np.testing.assert_allclose(short.boxes, every.layers[0].boxes.numpy(), atol=1e-6)
    few = detector(queries=7)
    assert few.engine.run(image.numpy()).logits.shape == (1, 7, 7)
    assert len(few.predict(picture(), 0.0, include_unnamed=True)[0]) == 7
    for wrong in ({"decoder_layers": 3}, {"queries": 21}, {"queries": 0}):
        with pytest.raises(ConfigError, match=r"nano has 1 to (2|20)$"):
            detector(**wrong)


@pytest.mark.parametrize("case", ["tiny_seg", "tiny_logit"])
def test_fewer_queries_of_other_networks(case: str) -> None:
    image = cases.images(case)
    raw = detector(case, queries=5, decoder_layers=2, size_hw=tuple(image.shape[-2:])).engine.run(image.numpy())
    assert raw.boxes.shape == (2, 5, 4)
    assert (raw.masks is None) == (case != "tiny_seg")


def test_engine_checks_its_input(tiny: Detector) -> None:
    with pytest.raises(ConfigError, match=r"batch has shape \[1, 3, 64, 32\]; expected \[B, 3, 64, 64\]"):
        tiny.engine.run(np.zeros((1, 3, 64, 32), np.float32))
    with pytest.raises(ConfigError, match="batch has dtype uint8; expected float32, normalised"):
        tiny.engine.run(np.zeros((1, 3, 64, 64), np.uint8))


def test_half_precision_keeps_geometry_close(tiny: Detector) -> None:
    image = cases.images("tiny_det").numpy()
    exact, half = tiny.engine.run(image), detector(dtype="bfloat16").engine.run(image)
    assert half.logits.dtype == np.float32
    assert np.isfinite(half.boxes).all()
    assert detector(dtype=torch.bfloat16).engine.precision == "bfloat16"
    # bf16 keeps 8 bits: typical logits move by less than a tenth (the order of random queries may change, so medians)
    assert np.median(np.abs(exact.logits - half.logits)) < 0.1
    with pytest.raises(ConfigError, match="dtype is 'int3'; expected one of float32, bfloat16, float16, float64"):
        detector(dtype="int3")


def test_threads_share_one_detector(tiny: Detector) -> None:
    pictures = [picture(i) for i in range(12)]
    alone = [tiny.predict(p, 0.0)[0] for p in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda p: tiny.predict(p, 0.0)[0], pictures))
    assert all(map(same, alone, together))


def test_stage_clock_sees_every_stage() -> None:
    ticks = iter(range(1000))
    clock = StageClock(now=lambda: float(next(ticks)))
    (found,) = detector("tiny_seg").predict(picture(), 0.0, clock=clock)
    assert set(clock.seconds) == {"read", "decode", "prepare", "transfer", "run", "select", "masks"}
    assert found.times_ms == clock.milliseconds()


def test_what_was_prepared_ahead_is_counted(tiny: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every clock ticks once a second by itself, so a stage takes one; two pictures ahead, and joining them."""

    class Ticking(StageClock):
        def __init__(self) -> None:
            ticks = itertools.count()
            super().__init__(now=lambda: float(next(ticks)))

    monkeypatch.setattr(detector_module, "StageClock", Ticking)
    (batch,) = tiny.predict_iter([picture(0), picture(1)], 0.0, prefetch=2)
    assert [found.times_ms["prepare"] for found in batch] == [3000, 3000]
    assert batch[0].times_ms["decode"] == 2000


def test_the_twin_on_a_device_equals_prepare(tiny: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    """The branch that CUDA takes, run on the CPU."""
    engine = detector().engine
    plain = engine.prepare([picture()], tiny.preprocessing, "bilinear", None)
    from rapidetr.runtime import prepare_torch

    run = prepare_torch.prepare
    monkeypatch.setattr(prepare_torch, "prepare", lambda *a, **k: run(*a, **{**k, "device": "cpu"}))
    monkeypatch.setattr(engine, "device", "cuda:0")
    other = engine.prepare([picture()], tiny.preprocessing, "bilinear", None)
    assert isinstance(other, Batch)
    assert other.geometries == plain.geometries
    np.testing.assert_allclose(other.pixels.numpy(), plain.pixels, atol=1e-6)


def test_save_and_load_again(tiny: Detector, tmp_path: Path) -> None:
    (before,) = tiny.predict(picture(), 0.0)
    again = rapidetr.load(tiny.save(tmp_path / "mine.safetensors"), device="cpu")
    (after,) = again.predict(picture(), 0.0)
    # `load` puts kernels into another memory order than this live network has, so convolutions round differently
    np.testing.assert_allclose(after.scores, before.scores, atol=1e-5)
    np.testing.assert_allclose(after.boxes_xyxy_px, before.boxes_xyxy_px, atol=1e-2)
    assert (again.class_names, again.labels, again.config, again.license) == (list(NAMES), tiny.labels, tiny.config, "Apache-2.0")
    slim = rapidetr.load(tiny.save(tmp_path / "slim.safetensors", deploy=True), device="cpu")
    assert same(slim.predict(picture(), 0.0)[0], after)
    assert (tmp_path / "slim.safetensors").stat().st_size < (tmp_path / "mine.safetensors").stat().st_size


def test_detections_travel_between_processes(tiny: Detector) -> None:
    (found,) = tiny.predict(picture(), 0.0)
    assert same(pickle.loads(pickle.dumps(found)), found)


def test_from_module_scores_what_it_predicts() -> None:
    network = cases.network("tiny_det")
    live = Detector.from_module(network, LabelSpace.contiguous(NAMES))
    assert live.model is network
    assert live.preprocessing == Preprocessing()
    (a,) = live.predict(picture(), 0.0)
    with torch.no_grad():
        network.class_head.bias.add_(1.0)
    assert live.predict(picture(), 0.0)[0].scores[0] > a.scores[0]


def test_masks_come_with_segmentation() -> None:
    (found,) = detector("tiny_seg").predict(picture(), 0.0)
    assert found.masks is not None
    assert len(found.masks) == len(found)
    assert found.masks[0].shape == (90, 120)
    assert found.masks.dense().dtype == bool


def test_repr_names_what_matters(tiny: Detector) -> None:
    assert repr(tiny) == "Detector(nano, detect, 6 classes, 64x64, torch float32 on cpu)"
    named = Checkpoint({}, replace(tiny.config, name="mine"), tiny.labels, tiny.preprocessing, "")
    assert repr(Detector(tiny.engine, named)).startswith("Detector(mine, ")


def test_predict_iter_takes_one_picture_as_predict_does(tiny: Detector, tmp_path: Path) -> None:
    """An array of one picture must not be taken as a list of its rows, nor a path as one of its letters."""
    Image.fromarray(picture()).save(tmp_path / "a.png")
    raw = (tmp_path / "a.png").read_bytes()
    (one,) = tiny.predict(picture(), 0.0)
    for source in (picture(), str(tmp_path / "a.png"), tmp_path / "a.png", Image.fromarray(picture()), raw, bytearray(raw)):
        ((found,),) = tiny.predict_iter(source, 0.0)
        assert same(found, one)
        assert same(tiny.predict(source, 0.0)[0], one)
    with (tmp_path / "a.png").open("rb") as file, pytest.raises(ImageError, match=r"^got BufferedReader; expected a path"):
        tiny.predict(file)


def test_limits_hold_for_the_whole_of_a_tiled_picture(tiny: Detector) -> None:
    large = np.concatenate([picture(0), picture(1)], axis=1)
    (every,) = tiny.predict(large, 0.0, tile=(90, 120), overlap=0.3)
    (few,) = tiny.predict(large, 0.0, tile=(90, 120), overlap=0.3, max_detections=2)
    assert len(few) == 2 < len(every)
    (apart,) = tiny.predict(large, 0.0, tile=(90, 120), overlap=0.3, nms=0.1)
    shares = [overlap(apart.boxes_xyxy_px[i], apart.boxes_xyxy_px[apart.head_rows == apart.head_rows[i]])[0] for i in range(len(apart))]
    assert max(np.sort(share)[-2:-1].max(initial=0) for share in shares) <= 0.1  # the largest is the box itself
