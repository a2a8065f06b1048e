"""The official names around an optimized detector; what is adopted is told by an injected optimization."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

from rapidetr.compat import RFDETRNano
from rapidetr.core.errors import ConfigError
from rapidetr.runtime.detector import Detector
from rapidetr.runtime.folded_engine import FoldedEngine

pytestmark = pytest.mark.filterwarnings("ignore:OpenCV:UserWarning")  # supervision says at import that it runs without it
PICTURE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


@pytest.fixture(scope="module")
def plain() -> Detector:
    return RFDETRNano(pretrain_weights=None, device="cpu", resolution=64).detector


@pytest.fixture
def model(plain: Detector) -> RFDETRNano:
    made = RFDETRNano.__new__(RFDETRNano)
    made._take(plain, {"pretrain_weights": None})
    return made


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The techniques of every optimization, which adopts the folded graph."""
    seen: list[list[str]] = []

    def optimize(self: Detector, images: object = None, *, techniques: list[str], threads: int | None = None) -> Detector:
        seen.append(techniques)
        engine = FoldedEngine(self.model, self.preprocessing, size_hw=self.size_hw)
        return Detector(engine, self._checkpoint).judged(None, "torch-folded: judged on 32 rendered scenes; gain")

    monkeypatch.setattr(Detector, "optimize_for_inference", optimize)
    return seen


def test_predict_uses_the_optimized_detector_until_it_is_removed(
    model: RFDETRNano, asked: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    before = model.predict(PICTURE, 0.0)
    assert model.optimized is None
    assert model.optimize_for_inference() is None
    assert capsys.readouterr().err == "RFDETRNano.optimize_for_inference: torch-folded: judged on 32 rendered scenes; gain\n"
    assert model.optimized.engine.name == "torch-folded"
    during = model.predict([PICTURE, PICTURE], 0.0)  # any number, whatever batch_size was
    np.testing.assert_allclose(np.sort(during[1].confidence), np.sort(before.confidence), atol=1e-5)  # rounding of fp32
    assert model.detector.engine.name == "torch"
    assert model.model.resolution == 64
    model.remove_optimized_model()
    assert model.optimized is None
    assert np.array_equal(model.predict(PICTURE, 0.0).confidence, before.confidence)


def test_another_size_runs_the_plain_network(model: RFDETRNano, asked: list[list[str]]) -> None:
    wide = model.predict(PICTURE, 0.0, (64, 96))
    model.inference()
    assert np.array_equal(model.predict(PICTURE, 0.0, (64, 96)).confidence, wide.confidence)
    model._take(model.detector, {})  # as after training: an engine with the old weights would be wrong
    assert model.optimized is None


@pytest.mark.parametrize(
    ("options", "some", "never"),
    [
        ({}, {"torch-folded", "torch-compile", "onnxruntime", "openvino-float32"}, {"torch-bfloat16", "openvino-int8"}),
        ({"compile": False}, {"torch-folded", "onnxruntime"}, {"torch-compile"}),
        ({"dtype": "bfloat16", "batch_size": 1}, {"torch-bfloat16", "torch-compile-bfloat16", "openvino-bfloat16"}, {"torch-folded"}),
        ({"dtype": torch.float16}, {"torch-float16"}, {"torch-folded", "torch-bfloat16"}),
    ],
)
def test_dtype_and_compile_say_what_is_tried(model: RFDETRNano, asked: list[list[str]], options: dict, some: set, never: set) -> None:
    model.optimize_for_inference(**options)
    model.inference(**options, inplace=False, compile_backend="inductor")
    assert asked[0] == asked[1]
    assert some <= set(asked[0])
    assert not never & set(asked[0])


def test_nothing_adopted_leaves_the_plain_network(
    model: RFDETRNano, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing: Callable[..., Detector] = lambda self, **options: self.judged(None, "nothing was adopted")  # noqa: E731
    monkeypatch.setattr(Detector, "optimize_for_inference", nothing)
    model.optimize_for_inference(dtype="bfloat16", batch_size=1)
    assert model.optimized is None
    assert capsys.readouterr().err == "RFDETRNano.optimize_for_inference: nothing was adopted\n"


def test_wrong_use(model: RFDETRNano, asked: list[list[str]]) -> None:
    with pytest.raises(ConfigError, match=re.escape("dtype is int8, batch_size 1; expected float32, bfloat16, float16, and at least 1")):
        model.optimize_for_inference(dtype="int8")
    with pytest.raises(ConfigError, match="batch_size 0"):
        model.optimize_for_inference(batch_size=0)
    assert asked == []
