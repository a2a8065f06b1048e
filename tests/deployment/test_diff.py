"""Where two models part: the stage whose weight was changed is named, and what cannot be compared is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cases
import numpy as np
import pytest
import torch

from rapidetr.checkpoints.file import Checkpoint
from rapidetr.core.errors import ConfigError
from rapidetr.core.labels import LabelSpace
from rapidetr.core.outputs import RawOutput
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.deployment.diff import TOLERANCE, Difference, diff
from rapidetr.deployment.taps import recorded
from rapidetr.model.rfdetr import RfDetr
from rapidetr.runtime.detector import Detector
from rapidetr.runtime.folded_engine import FoldedEngine
from rapidetr.runtime.torch_engine import TorchEngine

LABELS = LabelSpace.contiguous(["ant", "bee", "cat", "dog", "eel"], dataset_ids=[3, 5, 7, 9, 11], head_rows=7)
FEED = Preprocessing(mean=(0.3, 0.4, 0.5), std=(0.2, 0.3, 0.4))
PICTURES = [np.random.default_rng(i).integers(0, 256, (50, 70, 3), np.uint8) for i in range(2)]


def detector_of(
    case: str = "tiny_det", change: Callable[[Any], object] = lambda network: None, feed: Preprocessing = FEED, **cut: Any
) -> Detector:
    network = cases.network(case)
    with torch.no_grad():
        change(network)
    return Detector(TorchEngine(network, **cut), Checkpoint({}, network.config, LABELS, feed, ""))


def add(name: str, amount: float) -> Callable[[RfDetr], object]:
    """Adds to every number of one parameter."""
    return lambda network: network.get_parameter(name).add_(amount)


def shuffle_scores(network: Any) -> None:
    """Another order of the tokens, by the class head of the proposals alone."""
    weight = network.proposals.groups[0].classes.weight
    weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))


def stage(found: Difference, name: str) -> Any:
    return next(one for one in found.stages if one.name == name)


class Shown:
    """An engine like that of a file exported with taps: values without a torch module behind them."""

    name, device, precision = "shown", "cpu", "float32"

    def __init__(self, network: RfDetr) -> None:
        self._inside = TorchEngine(network)
        self.size_hw, self.prepare = self._inside.size_hw, self._inside.prepare
        self.taps = ["all"]

    def run(self, pixels: Any, clock: Any = None) -> RawOutput:
        return self._inside.run(pixels)

    def tapped(self, pixels: Any) -> dict[str, np.ndarray]:
        with recorded(self._inside.network) as seen:
            self.run(pixels)
        return {name: value.numpy() for name, value in seen.items()}


def shown(change: Callable[[Any], object] = lambda network: None) -> Detector:
    network = cases.network("tiny_det")
    with torch.no_grad():
        change(network)
    return Detector(Shown(network), Checkpoint({}, network.config, LABELS, FEED, ""))


@pytest.mark.parametrize("case", ["tiny_seg", "tiny_multi"])
def test_a_model_does_not_differ_from_itself(case: str) -> None:
    found = diff(detector_of(case), detector_of(case), PICTURES, threshold=0.01)
    assert found.first_stage is None
    assert {(s.max_abs, s.mean_abs, s.max_rel, s.mean_rel, s.differs, s.note) for s in found.stages} == {(0.0, 0.0, 0.0, 0.0, False, "")}
    kinds = list(dict.fromkeys(s.kind for s in found.stages))
    assert kinds == ["pixels", "features", "queries", "boxes", *(["masks"] if case == "tiny_seg" else [])]
    assert found.detections.matched == found.detections.first > 3
    assert all(view.heat_hw is not None and not view.heat_hw.any() for view in found.views)
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (record["first_stage"], record["stages"][0]["name"], record["detections"]["differ"]) == (None, "pixels", False)


BLOCKS = cases.config_of("tiny_seg").stages[-1]


@pytest.mark.parametrize(
    ("parameter", "wanted"),
    [
        *((f"vit.blocks.{k}.down.weight", f"vit.blocks.{k}") for k in range(BLOCKS)),
        ("vit.norm.bias", "projector.levels.0"),
        ("proposals.groups.0.classes.bias", "proposals.scores"),
        ("proposals.groups.0.boxes.layers.2.bias", "proposals.boxes"),
        ("query_content", "decoder.layers.0"),
        ("decoder.layers.1.norm3.bias", "decoder.layers.1"),
        ("class_head.bias", "logits"),
        ("box_head.layers.2.bias", "boxes"),
        ("mask_head.bias", "masks"),
    ],
)
def test_the_first_stage_that_differs_is_the_one_that_was_changed(parameter: str, wanted: str) -> None:
    found = diff(detector_of("tiny_seg"), detector_of("tiny_seg", add(parameter, 0.05)), PICTURES[:1])
    assert found.first_stage == wanted
    names = [s.name for s in found.stages]
    assert all(s.max_abs == 0 for s in found.stages[: names.index(wanted)])


def test_numbers_are_those_of_the_change() -> None:
    first = detector_of()
    found = diff(first, detector_of(change=add("class_head.bias", 0.25)), PICTURES[:1])
    logits = stage(found, "logits")
    raw = first.engine.run(first.engine.prepare(PICTURES[:1], FEED, "bilinear-antialias", None).pixels).logits
    scale = np.sqrt(np.mean(raw.astype(np.float64) ** 2))
    assert [logits.max_abs, logits.mean_abs] == pytest.approx([0.25, 0.25], abs=1e-6)  # rounding of fp32 logits of some units
    assert [logits.max_rel, logits.mean_rel] == pytest.approx([0.25 / scale] * 2, rel=1e-5)


def test_a_tolerance_can_be_chosen() -> None:
    first, second = detector_of(), detector_of(change=add("class_head.bias", 0.25))
    limit = stage(diff(first, second, PICTURES), "logits").max_rel
    assert not any(s.differs for s in diff(first, second, PICTURES, tolerance=limit).stages)
    assert stage(diff(first, second, PICTURES, tolerance=limit * 0.999), "logits").differs


def test_swapped_colors_are_seen_in_the_pixels() -> None:
    swapped = replace(FEED, mean=FEED.mean[::-1], std=FEED.std[::-1])
    assert diff(detector_of(), detector_of(feed=swapped), PICTURES).first_stage == "pixels"


def test_an_engine_that_normalizes_inside_is_compared_after_it() -> None:
    network = cases.network("tiny_det")
    folded = Detector(FoldedEngine(network, FEED), Checkpoint({}, network.config, LABELS, FEED, ""))
    found = diff(detector_of(), folded, PICTURES, threshold=0.3)
    assert found.first_stage is None
    assert found.detections.matched > 3
    assert stage(found, "vit.blocks.0").max_abs > 0  # it was another computation
    # fp32 sums in another order: 3e-5 was the largest seen; a tenth of the tolerance keeps the verdict far from rounding
    assert max(s.max_rel for s in found.stages) < TOLERANCE / 10


@pytest.mark.parametrize(
    ("first", "second", "which"), [(detector_of, detector_of, "second"), (detector_of, shown, "first"), (shown, detector_of, "second")]
)
def test_another_order_of_tokens_is_told_and_later_stages_compare_the_same_queries(first: Any, second: Any, which: str) -> None:
    found = diff(first(), second(change=shuffle_scores), PICTURES[:1])
    assert found.first_stage == "proposals.scores"
    tokens = stage(found, "proposals.tokens")
    assert tokens.differs
    assert "of 20 places hold another token" in tokens.note
    other = {"first": "second", "second": "first"}[which]
    for name in ("proposals.boxes", "decoder.layers.0", "decoder.layers.1", "logits", "boxes"):
        later = stage(found, name)  # the class head of the proposals touches nothing but the choice of tokens
        assert (later.max_abs, later.note) == (0.0, f"{which} model run from the tokens of the {other}")


def test_two_files_are_compared_where_token_and_place_are_the_same() -> None:
    def swap(network: Any) -> None:
        """The bias of one row moves a few tokens."""
        network.proposals.groups[0].classes.bias[0] += 0.3

    a, b = shown(), shown(swap)
    tokens = [d.engine.tapped(d.engine.prepare(PICTURES[:1], FEED, "bilinear-antialias", None).pixels)["proposals.tokens"] for d in (a, b)]
    same = tokens[0][0] == tokens[1][0]
    assert 0 < same.sum() < len(same)
    found = diff(a, b, PICTURES[:1])
    boxes = stage(found, "proposals.boxes")
    assert boxes.note == f"the {same.sum()} queries that start from the same token in the same place"
    assert boxes.max_abs == 0
    assert stage(found, "decoder.layers.0").max_abs > 0  # queries that changed reach the others


def test_two_sizes_can_be_compared_by_detections_alone() -> None:
    found = diff(detector_of(), detector_of(size_hw=(48, 80)), PICTURES, threshold=0.01)
    assert found.stages == ()
    assert found.notes == ("input sizes differ (64x64 and 48x80): only detections can be compared",)
    assert found.detections.first > 3
    assert found.first_stage == "detections"


def test_what_one_model_has_alone_is_said() -> None:
    found = diff(detector_of(), detector_of(decoder_layers=1), PICTURES[:1])
    layer = stage(found, "decoder.layers.1")
    assert (layer.max_abs, layer.differs, layer.note) == (None, False, "only the first model has it")
    assert found.first_stage == "logits"
    cut = diff(detector_of(), detector_of(queries=7), PICTURES[:1])
    assert stage(cut, "decoder.layers.0").note == "not comparable: [20, 64] and [7, 64]"
    assert stage(cut, "projector.levels.0").max_abs == 0


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("onnxruntime", "an ONNX file exported with taps"),
        ("openvino", "an OpenVINO artifact in float32 or bfloat16, exported with taps,"),
        ("torch-compile", "torch-folded"),
    ],
)
def test_an_engine_that_shows_its_answers_alone(name: str, better: str) -> None:
    plain = shown()
    plain.engine.taps, plain.engine.name = [], name  # type: ignore[attr-defined]
    found = diff(detector_of(), plain, PICTURES[:1])
    assert found.notes == (f"the second model ({name}) shows pixels and answers alone; {better} shows more",)
    assert [s.name for s in found.stages if s.max_abs is not None] == ["pixels", "logits", "boxes"]
    assert stage(found, "logits").note == "tokens unknown on one side: queries compared by place"
    assert found.first_stage is None
    assert found.views[0].heat_hw is None


def test_numbers_that_are_not_finite_are_beyond_every_tolerance() -> None:
    found = diff(detector_of(), detector_of(change=add("vit.blocks.1.norm1.bias", float("nan"))), PICTURES[:1], tolerance=1e9)
    assert found.first_stage == "vit.blocks.1"
    assert found.to_dict()["stages"][2]["max_abs"] is None
    assert "the second model gave values that are not finite: nothing is detected" in found.notes


def test_the_heat_map_is_hot_where_the_features_differ() -> None:
    change = add("projector.levels.0.norm.bias", 0.5)
    found = diff(detector_of(), detector_of(change=change), PICTURES[:1])
    level, heat = stage(found, "projector.levels.0"), found.views[0].heat_hw
    assert heat is not None
    assert heat == pytest.approx(np.full(heat.shape, level.max_rel), rel=1e-4)  # every channel of every cell moved by 0.5


def test_arguments_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"0 pictures, tolerance 0\.001; expected at least one picture, and 0 or more"):
        diff(detector_of(), detector_of(), [])
    with pytest.raises(ConfigError, match=r"1 pictures, tolerance nan; expected"):
        diff(detector_of(), detector_of(), PICTURES[:1], tolerance=float("nan"))
