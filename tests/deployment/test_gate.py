"""The gate: what must be refused is refused, with an injected clock and tiny networks; limits on figures that are given."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cases
import numpy as np
import pytest
from PIL import Image

from rapidetr.bench.compare import Difference
from rapidetr.bench.runner import Instruments, Plan
from rapidetr.bench.sensors import CpuTimes, Watch
from rapidetr.core.detections import Detections
from rapidetr.core.errors import ConfigError
from rapidetr.core.labels import LabelSpace
from rapidetr.core.masks import Masks
from rapidetr.core.outputs import RawOutput
from rapidetr.data.read import read_dataset
from rapidetr.data.records import Dataset
from rapidetr.data.write import write_coco
from rapidetr.deployment.gate import Look, compare_looks, look, match_masks, start_fresh, weigh
from rapidetr.deployment.verdict import Check, Evidence, Limits, Verdict, judge
from rapidetr.runtime.detector import Detector

LABELS = LabelSpace.contiguous("abcdef")
QUICK = Plan(rounds=20, seconds=1e9, forward_calls=0)


class Time:
    def __init__(self) -> None:
        self.seconds = 100.0

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


class Timed:
    """An engine that takes the time it is told on the injected clock; it computes each batch once and remembers the answer."""

    def __init__(self, engine: Any, sleep: Callable[[float], None], run_s: float, change: Callable[[RawOutput], RawOutput]) -> None:
        self.engine, self.sleep, self.change, self.memory = engine, sleep, change, {}
        self.rng, self.run_s = np.random.default_rng(0), run_s

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def run(self, pixels: np.ndarray, clock: Any = None) -> RawOutput:
        self.sleep(self.run_s * float(self.rng.lognormal(0, 0.05)))
        key = pixels.tobytes()
        if key not in self.memory:
            self.memory[key] = self.change(self.engine.run(pixels))
        return self.memory[key]


class Swapped(Timed):
    """Colors in the wrong order, as an export that forgot about them."""

    def prepare(self, pictures: Any, *rest: Any) -> Any:
        return self.engine.prepare([p[..., ::-1] for p in pictures], *rest)


@pytest.fixture(scope="module")
def plain() -> Detector:
    return Detector.from_module(cases.network("tiny_det"), LABELS)


@pytest.fixture
def time() -> Time:
    return Time()


def on(
    time: Time, detector: Detector, run_s: float, change: Callable[[RawOutput], RawOutput] = lambda raw: raw, kind: type = Timed
) -> Detector:
    timed = copy.copy(detector)
    timed.engine = kind(detector.engine, time.sleep, run_s, change)
    return timed


def instruments(time: Time, mhz: Callable[[], float] = lambda: 3000.0) -> Instruments:
    quiet = CpuTimes(0.0, 0.0, 0.0, 0.0)
    watch = partial(Watch, now=time.now, cpu_mhz=mhz, cpu_times=lambda: quiet, cpu_throttles=lambda: 0)
    return Instruments(time.now, time.sleep, watch)


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Smooth colors, so that the order of channels means something."""
    return [
        np.asarray(
            Image.fromarray(np.random.default_rng(i).integers(0, 256, (4, 5, 3), np.uint8)).resize((80, 64), Image.Resampling.BICUBIC)
        )
        for i in range(6)
    ]


@pytest.fixture(scope="module")
def data(plain: Detector, pictures: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """What the baseline finds is the truth, so that its AP is known to be good."""
    folder = tmp_path_factory.mktemp("data")
    scenes = []
    for i, picture in enumerate(pictures):
        best = plain.predict(picture, 0.0)[0][:4]
        scenes.append((f"{i}.png", picture, best.boxes_xyxy_px, best.class_ids, None))
    write_coco(folder, "valid", scenes, LABELS)
    return read_dataset(folder, "valid")


def run(time: Time, baseline: Detector, candidate: Detector, data: Any, limits: Limits = Limits(), **options: Any) -> Verdict:  # noqa: B008
    return weigh(baseline, candidate, data, limits, plan=QUICK, **{"instruments": instruments(time), **options})


def kept(verdict: Verdict) -> dict[str, bool]:
    return {check.name: check.kept for check in verdict.checks}


def test_an_equal_and_faster_candidate_is_accepted(time: Time, plain: Detector, data: Dataset) -> None:
    verdict = run(time, on(time, plain, 0.020), on(time, plain, 0.010), data)
    assert verdict.accepted, verdict.to_text()
    assert verdict.accuracy == "AP"
    assert kept(verdict) == {"finite": True, "ap boxes": True, "gain": True, "p95": True}
    evidence = Evidence.from_dict(verdict.candidate)
    assert evidence.ap_of("boxes") == Evidence.from_dict(verdict.baseline).ap_of("boxes") > 0.5
    assert evidence.agreement["matched_fraction"] == 1
    low, high = evidence.latency[0].interval
    assert low < 0.5 < high < 0.55
    assert verdict.notes == (
        "judged on 6 pictures of valid; agreement and times on 6 of them",
        "memory and first detection were not measured",
    )
    assert verdict.to_text().splitlines()[0] == "accepted: candidate against baseline"
    assert verdict.reasons == tuple(check.told for check in verdict.checks)


def test_the_baseline_against_itself_is_no_gain(time: Time, plain: Detector, data: Dataset) -> None:
    verdict = run(time, on(time, plain, 0.020), on(time, plain, 0.020), data)
    assert not verdict.accepted
    assert [name for name, ok in kept(verdict).items() if not ok] == ["gain"]
    assert verdict.reasons[0].startswith("no measurable gain (at least 2% asked): batch 1, threads ")
    assert verdict.reasons[0].endswith("): no difference")


def test_a_sleep_is_refused(time: Time, plain: Detector, data: Dataset) -> None:
    verdict = run(time, on(time, plain, 0.020), on(time, plain, 0.040), data)
    assert [name for name, ok in kept(verdict).items() if not ok] == ["gain", "p95"]


def zeroed(raw: RawOutput) -> RawOutput:
    return replace(raw, logits=np.zeros_like(raw.logits))


def infinite(raw: RawOutput) -> RawOutput:
    logits = raw.logits.copy()
    logits[0, 3, 1] = np.nan
    return replace(raw, logits=logits)


@pytest.mark.parametrize("annotated", [True, False])
@pytest.mark.parametrize("fault", ["zeroed head", "swapped colors"])
def test_a_faster_but_wrong_candidate_is_refused(
    time: Time, plain: Detector, data: Dataset, pictures: list[np.ndarray], fault: str, annotated: bool
) -> None:
    wrong = on(time, plain, 0.010, zeroed) if fault == "zeroed head" else on(time, plain, 0.010, kind=Swapped)
    verdict = run(time, on(time, plain, 0.020), wrong, data if annotated else pictures)
    assert not verdict.accepted
    failed = {name for name, ok in kept(verdict).items() if not ok}
    assert failed == ({"ap boxes"} if annotated else {"agreement boxes"}), verdict.to_text()
    assert verdict.accuracy == ("AP" if annotated else "agreement")


@pytest.mark.parametrize("annotated", [True, False])
def test_numbers_that_are_not_finite_are_refused_before_they_are_timed(
    time: Time, plain: Detector, data: Dataset, pictures: list[np.ndarray], annotated: bool
) -> None:
    limits = Limits(min_agreement=0.0)
    verdict = run(time, on(time, plain, 0.020), on(time, plain, 0.001, infinite), data if annotated else pictures, limits)
    assert not verdict.accepted
    assert "outputs of candidate are NOT all finite" in verdict.reasons
    assert "it was not timed" in verdict.reasons


def test_without_annotations_agreement_decides_and_can_be_waived(time: Time, plain: Detector, pictures: list[np.ndarray]) -> None:
    baseline, wrong = on(time, plain, 0.020), on(time, plain, 0.010, zeroed)
    verdict = run(time, baseline, on(time, plain, 0.010), pictures, about="6 rendered scenes")
    assert (verdict.accepted, verdict.accuracy) == (True, "agreement"), verdict.to_text()
    why = "there are no annotations of boxes, so AP cannot show accuracy: "
    assert verdict.notes[:2] == (f"{why}agreement decides", "judged on 6 rendered scenes; agreement and times on 6 of them")
    waived = run(time, baseline, wrong, pictures, Limits(min_agreement=0.0))
    assert (waived.accepted, waived.accuracy) == (True, "waived")
    assert waived.notes[0] == f"{why}accuracy was waived (minimum agreement 0)"


def test_a_baseline_that_finds_nothing_right_cannot_show_accuracy(time: Time, plain: Detector, data: Dataset) -> None:
    moved = [replace(r, boxes_xyxy_px=np.tile(np.float32([0, 0, 3, 2]), (len(r), 1))) for r in data.images]
    verdict = run(time, on(time, plain, 0.020), on(time, plain, 0.010), replace(data, images=tuple(moved)))
    assert (verdict.accepted, verdict.accuracy) == (True, "agreement")
    assert verdict.notes[0] == "the baseline's AP of boxes is 0.000, under 0.05, so AP cannot show accuracy: agreement decides"


def test_a_machine_that_was_not_quiet_is_tried_again_then_refused(time: Time, plain: Detector, pictures: list[np.ndarray]) -> None:
    looks = iter([3000.0] * 3 + [2000.0] * 10_000)
    tools = instruments(time, lambda: next(looks))
    once = run(time, on(time, plain, 0.020), on(time, plain, 0.010), pictures, instruments=tools)
    assert once.accepted  # the second try saw 2000 MHz all the time
    falling = iter(np.linspace(4000, 1000, 10_000).tolist())
    tools = instruments(time, lambda: next(falling) if time.seconds % 2 < 1 else 1000.0)
    verdict = run(time, on(time, plain, 0.020), on(time, plain, 0.010), pictures, instruments=tools)
    assert not verdict.accepted
    assert kept(verdict)["quiet machine"] is False
    allowed = run(time, on(time, plain, 0.020), on(time, plain, 0.010), pictures, instruments=tools, allow_noise=True)
    assert allowed.accepted
    assert any(note.startswith("the machine was not quiet: ") for note in allowed.notes)


def test_fresh_processes_of_both_take_turns(time: Time, plain: Detector, pictures: list[np.ndarray]) -> None:
    asked: list[str] = []

    def start(source: str, picture: Any) -> tuple[float, float]:
        asked.append(source)
        return {"old": 4.0, "new": 2.0}[source] + len(asked), {"old": 500.0, "new": 300.0}[source]

    options = {"sources": ("old", "new"), "start": start, "names": ("plain", "quick")}
    verdict = run(time, on(time, plain, 0.020), on(time, plain, 0.010), pictures, Limits(memory_mb=299.0), **options)
    assert asked == ["old", "new"] * 3
    assert (verdict.baseline["cold_start_s"], verdict.candidate["cold_start_s"]) == (7.0, 6.0)
    assert verdict.reasons == ("memory is 300.0 MB (at most 299 MB)",)
    assert verdict.to_text().splitlines()[0] == "REFUSED: quick against plain"


def test_what_is_known_of_the_baseline_is_not_measured_again(time: Time, plain: Detector, data: Dataset) -> None:
    known = look(plain, data)
    blind = on(time, plain, 0.020, zeroed)  # could show no accuracy if anybody looked
    verdict = run(time, blind, on(time, plain, 0.010), data, known=known)
    assert (verdict.accepted, verdict.accuracy) == (True, "AP")


def test_wrong_use_is_told(time: Time, plain: Detector, pictures: list[np.ndarray]) -> None:
    other = Detector.from_module(plain.model, LabelSpace.contiguous("abcdeg"))
    with pytest.raises(ConfigError, match="the candidate has other classes than the baseline; expected the same model"):
        run(time, plain, other, pictures)
    with pytest.raises(ConfigError, match="there are no pictures; expected at least one to judge with"):
        run(time, plain, plain, [])
    with pytest.raises(ConfigError, match="max_ap_drop is 3; expected 0 to 1"):
        Limits(max_ap_drop=3)


# judging figures


def faster(ratio: float = 0.5, percentile: int = 50, width: float = 0.01) -> Difference:
    return Difference("batch 1", percentile, 100 * ratio, 100.0, ratio, (ratio - width, ratio + width), "faster")


AGREE = {
    "images": 8, "first": 20, "second": 20, "matched": 20, "matched_fraction": 1.0, "score_shift_p50": 0.0, "score_shift_p95": 0.01,
    "score_shift_max": 0.02, "box_shift_px_p50": 0.1, "box_shift_px_p95": 0.5, "box_shift_px_max": 1.0, "masks_matched_fraction": None,
    "threshold": 0.5,
}  # fmt: skip


def sides(was: float = 0.5, now: float = 0.5, classes: tuple[dict, dict] = ({}, {}), **other: Any) -> tuple[Evidence, Evidence]:
    old = Evidence("old", True, {"boxes": {"AP": was, "classes": classes[0]}})
    new = Evidence("new", True, {"boxes": {"AP": now, "classes": classes[1]}}, AGREE, (faster(), faster(0.6, 95), faster(0.7, 99)))
    return old, replace(new, **other)


def failed(limits: Limits, *evidence: Evidence) -> list[Check]:
    verdict = judge(*evidence, limits)
    assert verdict.accepted == all(check.kept for check in verdict.checks)
    return [check for check in verdict.checks if not check.kept]


@pytest.mark.parametrize(("now", "ok"), [(0.497, True), (0.4969, False), (0.6, True)])
def test_the_drop_of_ap_has_a_limit(now: float, ok: bool) -> None:
    assert [check.name for check in failed(Limits(max_ap_drop=0.003), *sides(0.5, now))] == ([] if ok else ["ap boxes"])


def test_the_worst_class_has_ten_times_the_limit_or_its_own() -> None:
    evidence = sides(classes=({"cat": 0.4, "dog": 0.6, "emu": None}, {"cat": 0.375, "dog": 0.565, "emu": None}))
    (check,) = failed(Limits(max_ap_drop=0.003), *evidence)
    assert check.told == "AP of boxes of the worst class, 'dog', 0.5650 against 0.6000, 0.0350 less (at most 0.03 less)"
    assert not failed(Limits(max_ap_drop=0.003, max_class_drop=0.04), *evidence)
    lost = sides(classes=({"cat": 0.4}, {"cat": None}))
    assert failed(Limits(), *lost)[0].told.startswith("AP of boxes of the worst class, 'cat', 0.0000 against 0.4000")


def test_masks_are_judged_as_boxes_are() -> None:
    both = {**AGREE, "masks_matched_fraction": 0.5}
    old, new = sides(agreement=both)
    masked = (
        replace(old, ap={**old.ap, "masks": {"AP": 0.4, "classes": {}}}),
        replace(new, ap={**new.ap, "masks": {"AP": 0.39, "classes": {}}}),
    )
    assert [c.name for c in failed(Limits(), *masked)] == ["ap masks"]
    verdict = judge(old, new, Limits())  # boxes have AP, masks nobody annotated
    assert verdict.reasons[0].startswith("50.00% of masks agree (at least 95%) in 8 pictures")
    assert verdict.accuracy == "agreement"
    gone = replace(new, ap={"boxes": new.ap["boxes"]})
    assert [c.name for c in failed(Limits(), masked[0], gone)] == ["ap masks"]


def test_an_agreement_that_is_asked_for_holds_beside_ap() -> None:
    evidence = sides(agreement={**AGREE, "matched_fraction": 0.9})
    assert not failed(Limits(), *evidence)
    assert [c.name for c in failed(Limits(min_agreement=0.95), *evidence)] == ["agreement boxes"]
    assert failed(Limits(min_agreement=0.0), *sides(0.5, 0.4))  # waives nothing where AP can show it


@pytest.mark.parametrize(("was", "accuracy"), [(0.049, "agreement"), (0.05, "AP")])
def test_from_which_ap_on_accuracy_can_be_shown(was: float, accuracy: str) -> None:
    assert judge(*sides(was, was), Limits()).accuracy == accuracy


def test_agreement_about_nothing_shows_nothing() -> None:
    for nothing in (None, {**AGREE, "first": 0}):
        (check,) = failed(Limits(), *sides(0.0, 0.0, agreement=nothing))
        assert check.told == "agreement is unknown: the baseline found nothing, or there were no pictures"


def test_gain_and_tail() -> None:
    assert [c.name for c in failed(Limits(least_gain=0.02), *sides(latency=(faster(0.97, width=0.02),)))] == ["gain"]
    assert not failed(Limits(least_gain=0.02), *sides(latency=(faster(0.95, width=0.02),)))
    tail = (faster(), faster(1.2, 95), faster(1.005, 99, 0.001))
    assert [c.name for c in failed(Limits(), *sides(latency=tail))] == ["p95"]
    assert [c.name for c in failed(Limits(), *sides(latency=(faster(), faster(1.5, 99))))] == ["p99"]
    assert [c.told for c in failed(Limits(), *sides(latency=()))] == ["it was not timed"]
    assert [c.told for c in failed(Limits(), *sides(problems=("hot",)))] == ["times cannot be judged: hot"]


def test_the_service_level() -> None:
    limits = Limits(p95_ms=60.0, min_ap=0.5, memory_mb=400.0)
    assert not failed(limits, *sides(memory_mb=400.0))
    assert [c.told for c in failed(replace(limits, p95_ms=59.9), *sides(memory_mb=400.0))] == ["p95 is 60.0 ms (at most 59.9 ms)"]
    assert [c.told for c in failed(limits, *sides(0.5, 0.499))] == [
        "memory is unknown (at most 400 MB)",
        "AP of boxes is 0.4990 (at least 0.5)",
    ]


def test_a_verdict_goes_to_a_file_and_back(tmp_path: Path) -> None:
    for evidence in (sides(), sides(0.5, 0.2)):
        verdict = judge(*evidence, Limits())
        file = verdict.write(tmp_path / "verdict.json")
        assert Verdict.read(file) == verdict
        again = judge(Evidence.from_dict(verdict.baseline), Evidence.from_dict(verdict.candidate), Limits.from_dict(verdict.limits))
        assert again == verdict
        assert json.loads(file.read_text())["accepted"] is verdict.accepted
    file.write_text("{}")
    with pytest.raises(ConfigError, match=r"verdict\.json: expected a verdict of the gate \(Verdict: missing"):
        Verdict.read(file)
    assert list(tmp_path.iterdir()) == [file]


# agreement


def squares(*sides_px: int, class_id: int = 0) -> Detections:
    n = len(sides_px)
    boxes = np.tile(np.float32([0, 0, 10, 10]), (n, 1))
    dense = np.zeros((n, 20, 20), bool)
    for mask, side in zip(dense, sides_px, strict=True):
        mask[:side, :side] = True
    return Detections(boxes, np.full(n, 0.9, np.float32), np.full(n, class_id), LABELS, (20, 20), Masks.from_dense(dense))


def test_masks_agree_by_class_and_overlap() -> None:
    assert match_masks([squares(10, 0)], [squares(10, 0)]) == 1  # an empty mask agrees with an empty one
    assert match_masks([squares(10)], [squares(9)]) == 1  # 81 of 100
    assert match_masks([squares(10)], [squares(8)]) == 0  # 64 of 100
    assert match_masks([squares(10)], [squares(10, class_id=1)]) == 0
    assert match_masks([squares(10, 4)], [squares(10)]) == 2 / 3
    assert match_masks([squares(10)], [replace(squares(10), masks=None)]) == 0
    looks = [Look(True, {}, (squares(side),), 0.5) for side in (10, 8)]
    assert compare_looks(*looks)["matched_fraction"] == 1  # zeroed masks would not be seen in boxes
    assert compare_looks(*looks)["masks_matched_fraction"] == 0


def test_there_is_always_something_to_agree_on(plain: Detector, pictures: list[np.ndarray]) -> None:
    quiet = copy.copy(plain)
    quiet.engine = Timed(plain.engine, lambda s: None, 0.0, lambda raw: replace(raw, logits=raw.logits - 20))
    seen = look(quiet, pictures)
    assert 0 < seen.threshold < 1e-3
    assert sum(map(len, seen.found)) > 0
    assert look(quiet, pictures, 0.5).threshold == 0.5


@pytest.mark.slow
def test_a_fresh_process_is_timed(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    with pytest.raises(ConfigError, match=r"a fresh process could not predict with nix\.pth: .*no such file"):
        start_fresh("nix.pth", pictures[0])
    seconds, peak_mb = start_fresh("pico", pictures[0])
    assert 0.1 < seconds < 300
    assert 50 < peak_mb < 5000
    assert start_fresh("pico", pictures[0].astype(np.float32) / 255)[1] > 50  # pictures may be floats, 0 to 1
