"""From a detector to what is adopted: with an injected clock, and engines that are as fast as they are told."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cases
import numpy as np
import pytest
from PIL import Image

import rapidetr
from rapidetr.bench.runner import Instruments, Plan
from rapidetr.bench.sensors import CpuTimes, Watch
from rapidetr.checkpoints.file import Checkpoint, save_checkpoint
from rapidetr.core.errors import CheckpointError, ConfigError
from rapidetr.core.labels import LabelSpace
from rapidetr.core.outputs import RawOutput
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.data.write import write_coco
from rapidetr.demo import write_dataset
from rapidetr.deployment import optimize as story
from rapidetr.deployment import technique as registered
from rapidetr.deployment.optimize import optimize, rendered_scenes
from rapidetr.deployment.registry import Registry
from rapidetr.deployment.technique import Order, precision_of, technique
from rapidetr.deployment.trials import Optimization, Trial
from rapidetr.deployment.verdict import Verdict
from rapidetr.runtime import artifact as artifacts
from rapidetr.runtime.artifact import Artifact, Manifest, write_artifact
from rapidetr.runtime.detector import Detector
from rapidetr.runtime.load import open_torch

LABELS = LabelSpace.contiguous("abcdef")
QUICK = Plan(rounds=20, seconds=1e9, forward_calls=0)
BASELINE_S = 0.020


class Time:
    seconds = 100.0

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


TIME = Time()


class Toy:
    """A torch engine that takes the time it is told on the injected clock, and answers as it is told."""

    answers: dict[bytes, RawOutput] = {}  # of the plain network, for all toys of this file

    def __init__(self, engine: Any, run_s: float, fault: str) -> None:
        self.engine, self.run_s, self.fault, self.rng = engine, run_s, fault, np.random.default_rng(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def prepare(self, pictures: Any, *rest: Any) -> Any:
        return self.engine.prepare([p[..., ::-1] for p in pictures] if self.fault == "swapped colors" else pictures, *rest)

    def run(self, pixels: np.ndarray, clock: Any = None) -> RawOutput:
        TIME.sleep(self.run_s * float(self.rng.lognormal(0, 0.05)))
        key = pixels.tobytes()
        if key not in self.answers:
            self.answers[key] = self.engine.run(pixels)
        raw = self.answers[key]
        if self.fault == "zeroed head":
            return replace(raw, logits=np.zeros_like(raw.logits))
        return replace(raw, logits=raw.logits * np.nan) if self.fault == "not finite" else raw


def open_toy(artifact: Artifact, device: str, threads: int | None) -> tuple[Any, Any]:
    engine, checkpoint = open_torch(artifact, device, threads)
    told = artifact.manifest.parameters
    return Toy(engine, told.get("run_s", BASELINE_S), told.get("fault", "")), checkpoint


@dataclass
class Maker:
    """A technique of this file."""

    run_s: float = 0.010
    fault: str = ""
    why_not: str | None = None

    def fits(self, order: Order) -> str | None:
        return self.why_not

    def make(self, order: Order, folder: Path) -> Artifact:
        if self.fault == "fails":
            raise RuntimeError("the back end\nfell over")
        if self.fault == "looks at pictures":
            assert len(list(order.pictures)) == len(order.pictures)
        made = Manifest.of(order.detector, source=order.source, command="test", parameters={"run_s": self.run_s, "fault": self.fault})
        weights = order.detector.save(folder.with_name("best.safetensors"), deploy=True)
        return write_artifact(folder, {"best.safetensors": weights}, made, describe=lambda device: {"version": 1, "device": device})


def instruments() -> Instruments:
    quiet = CpuTimes(0.0, 0.0, 0.0, 0.0)
    watch = partial(Watch, now=TIME.now, cpu_mhz=lambda: 3000.0, cpu_times=lambda: quiet, cpu_throttles=lambda: 0)
    return Instruments(TIME.now, TIME.sleep, watch)


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """offer(name=Maker(...)): these techniques and no others."""
    monkeypatch.setitem(artifacts.LOADERS, "torch", f"{__name__}:open_toy")
    monkeypatch.setattr(registered, "TECHNIQUES", {})
    monkeypatch.setattr(story, "TECHNIQUES", registered.TECHNIQUES)

    def offer(**makers: Maker) -> None:
        for name, maker in makers.items():
            monkeypatch.setitem(globals(), name, maker)
            registered.TECHNIQUES[name] = f"{__name__}:{name}"

    yield offer
    Toy.answers.clear()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = cases.network("tiny_det")
    return save_checkpoint(
        Checkpoint(network.state_dict(), network.config, LABELS, Preprocessing(), "Apache-2.0"),
        tmp_path_factory.mktemp("source") / "tiny.safetensors",
    )


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Smooth colors, so that the order of channels means something."""
    noise = [np.random.default_rng(i).integers(0, 256, (4, 5, 3), np.uint8) for i in range(4)]
    return [np.asarray(Image.fromarray(n).resize((80, 64), Image.Resampling.BICUBIC)) for n in noise]


@pytest.fixture(scope="module")
def data(source: Path, pictures: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the baseline finds is the truth, so that its AP is known to be good."""
    folder, detector = tmp_path_factory.mktemp("data"), rapidetr.load(source, device="cpu")
    found = [detector.predict(picture, 0.0)[0][:4] for picture in pictures]
    scenes = [(f"{i}.png", p, f.boxes_xyxy_px, f.class_ids, None) for i, (p, f) in enumerate(zip(pictures, found, strict=True))]
    write_coco(folder, "valid", scenes, LABELS)
    return folder


def run(source: Any, data: Path | None, out: Path | None, **options: Any) -> Detector:
    start = lambda source, picture: (2.0, 300.0)  # noqa: E731
    return optimize(source, data, out=out, **{"plan": QUICK, "instruments": instruments(), "start": start, **options})


def trials_in(out: Path) -> dict[str, Trial]:
    return {trial.technique: trial for trial in Optimization.from_dict(json.loads((out / "optimize.json").read_text())).trials}


def home_in(folder: Path, homes: list[Path]) -> Path:
    homes[:] = [folder / "home"]
    homes[0].mkdir()
    return homes[0]


def test_the_fastest_that_is_proven_is_adopted(source: Path, data: Path, tmp_path: Path, offer: Callable[..., None]) -> None:
    offer(good=Maker(0.012), broken=Maker(fault="fails"), better=Maker(0.008), unfit=Maker(why_not="there is no such processor"))
    steps: list[tuple[str, str]] = []
    out = tmp_path / "registry"
    detector = run(source, data, out, progress=lambda *step: steps.append(step))
    trials, registry = trials_in(out), Registry(out)
    assert {name: trial.outcome for name, trial in trials.items()} == {
        "good": "accepted",
        "broken": "failed",
        "better": "adopted",
        "unfit": "not tried",
    }
    assert (trials["broken"].reason, trials["unfit"].reason) == ("RuntimeError: the back end fell over", "there is no such processor")
    assert trials["better"].reason.startswith("gain (at least 2% asked): batch 1, threads ")
    low, high = trials["better"].p50_interval
    assert low < 0.4 < high < 0.45
    assert (trials["better"].agreement, trials["better"].memory_mb) == (1, 300)
    assert trials["better"].ap > 0.5
    assert len(registry.ids()) == 3
    assert registry.current == trials["better"].id
    assert [entry.action for entry in registry.history()] == ["baseline", "add", "add", "promote"]
    assert registry.history()[-1].why == f"better: {trials['better'].reason}"
    assert detector.engine.run_s == 0.008
    assert detector.verdict == Verdict.read(out / "artifacts" / registry.current / "verdict.json")
    assert detector.verdict.accepted
    assert detector.notes[-1].startswith("better: judged on 4 pictures of valid; gain")
    assert rapidetr.load(out / "current").engine.run_s == 0.008
    assert rapidetr.load(out / "current").verdict is None
    manifest = registry.open(registry.baseline).manifest
    assert (manifest.source["name"], manifest.parameters) == ("tiny.safetensors", {"technique": "baseline"})
    assert steps[:3] == [("baseline", "look at 4 pictures of valid"), ("good", "make"), ("good", "weigh")]
    assert [name for name, step in steps if step.startswith("failed")] == ["broken"]

    # once more: the same baseline is used, and what is current stays current
    run(source, data, out, techniques=["better"])
    assert len([entry for entry in registry.history() if entry.action == "baseline"]) == 1


@pytest.mark.parametrize("annotated", [True, False])
def test_what_is_wrong_or_no_faster_is_refused_and_told(
    source: Path, data: Path, pictures: list[np.ndarray], tmp_path: Path, offer: Callable[..., None], annotated: bool
) -> None:
    offer(
        zeroed=Maker(fault="zeroed head"),
        swapped=Maker(fault="swapped colors"),
        infinite=Maker(fault="not finite"),
        asleep=Maker(0.040),
        equal=Maker(BASELINE_S),
    )
    old, out = rapidetr.load(source, device="cpu"), tmp_path / "registry"
    detector = run(old, data if annotated else None, out, images=None if annotated else pictures)
    trials = trials_in(out)
    assert {trial.outcome for trial in trials.values()} == {"refused"}
    wrong = "AP of boxes " if annotated else "0.00% of boxes agree"
    assert trials["zeroed"].reason.startswith(wrong if annotated else "")
    assert ("AP of boxes" if annotated else "of boxes agree (at least 95%)") in trials["swapped"].reason
    assert "outputs of infinite are NOT all finite" in trials["infinite"].reason
    assert trials["infinite"].p50_ratio is None
    assert trials["equal"].reason.startswith("no measurable gain (at least 2% asked)")
    assert "slower: batch 1" in trials["asleep"].reason
    # refused ones leave a verdict, and no weights
    assert sorted(path.stem for path in (out / "verdicts").iterdir()) == sorted(trials)
    assert Verdict.read(out / "verdicts" / "asleep.json").accepted is False
    assert [path.name for path in (out / "artifacts").iterdir()] == [Registry(out).baseline]
    assert Registry(out).current == Registry(out).baseline
    # the new detector runs as the old one does, and says why
    assert detector.engine is old.engine
    assert detector is not old
    assert detector.notes[len(old.notes)] == f"nothing was adopted, judged on 4 pictures{' of valid' if annotated else ''}"
    assert [note.split(":")[0] for note in detector.notes[len(old.notes) + 1 :]] == [f"{name} refused" for name in trials]
    assert detector.verdict.accepted is False
    assert (old.verdict, old.notes) == (None, detector.notes[: len(old.notes)])


def test_limits_decide(source: Path, data: Path, tmp_path: Path, offer: Callable[..., None]) -> None:
    @dataclass
    class Level:
        p95_ms: float | None = 5.0
        min_ap: float | None = None
        memory_mb: float | None = 299.0

    offer(good=Maker(0.010))
    refused = run(source, data, tmp_path / "a", service_level=Level())
    assert "p95 is 1" in refused.notes[-1]
    assert "memory is 300.0 MB (at most 299 MB)" in refused.notes[-1]
    assert run(source, data, tmp_path / "b", service_level=Level(50.0, 0.4, 301.0)).verdict.accepted
    limits = json.loads((tmp_path / "b" / "optimize.json").read_text())["limits"]
    assert (limits["p95_ms"], limits["min_ap"], limits["memory_mb"], limits["max_ap_drop"]) == (50, 0.4, 301, 0.003)


def test_without_a_registry_the_adopted_one_lives_as_long_as_it_is_used(
    source: Path, pictures: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offer: Callable[..., None]
) -> None:
    offer(good=Maker(0.010), asleep=Maker(0.030))
    homes: list[Path] = []
    monkeypatch.setattr(story, "mkdtemp", lambda prefix: str(home_in(tmp_path, homes)))
    detector = run(source, None, None, images=pictures, techniques=["good"])
    assert detector.verdict.accepted
    assert detector.verdict.accuracy == "agreement"
    found, wanted = (d.predict(pictures[0], 0.0)[0] for d in (detector, rapidetr.load(source, device="cpu")))
    assert np.array_equal(found.scores, wanted.scores)
    (home,) = homes
    assert (home / "current").is_file()
    del detector
    gc.collect()
    assert not home.exists()
    assert not run(source, None, None, images=pictures, techniques=["asleep"]).verdict.accepted
    assert not home.exists()  # nothing was adopted, nothing stays


def test_optimize_for_inference_says_what_it_was_judged_on(
    source: Path, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, offer: Callable[..., None]
) -> None:
    offer(good=Maker(0.010), asleep=Maker(0.030))
    tools = {"plan": QUICK, "instruments": instruments()}
    monkeypatch.setattr(story, "optimize_for_inference", partial(story.optimize_for_inference, **tools))
    monkeypatch.setattr(story, "rendered_scenes", lambda: pictures[:2])
    old = rapidetr.load(source, device="cpu", size_hw=(48, 64), queries=9)
    quick = old.optimize_for_inference()
    assert quick.notes[-1].startswith("good: judged on 32 rendered scenes; gain")
    assert (quick.verdict.accuracy, quick.size_hw, quick.engine.run_s) == ("agreement", (48, 64), 0.010)
    assert "judged on 32 rendered scenes" in quick.verdict.notes[1]
    assert quick.engine.queries == 9
    assert (old.verdict, old.engine.name) == (None, "torch")
    given = old.optimize_for_inference(pictures, techniques=["asleep"])
    assert given.engine is old.engine
    assert given.notes[-2:-1] == ("nothing was adopted, judged on 4 pictures of images=",)
    fresh = Detector.from_module(cases.network("tiny_det"), LABELS)  # never was in a file
    assert fresh.optimize_for_inference(pictures).engine.run_s == 0.010


def test_rendered_scenes_are_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert story.SCENES == 32
    monkeypatch.setattr(story, "SCENES", 2)
    first, again = rendered_scenes(), rendered_scenes()
    assert all(scene.shape == (480, 640, 3) and scene.dtype == np.uint8 for scene in first)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(*first)


def test_pictures_to_calibrate_with_come_from_the_training_split(
    source: Path, data: Path, pictures: list[np.ndarray], tmp_path: Path, offer: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[Order] = []

    def look(self: Maker, order: Order) -> str:
        orders.append(order)
        return "no"

    monkeypatch.setattr(Maker, "fits", look)
    offer(any=Maker())
    train = tmp_path / "both"
    write_coco(train, "valid", [("v.png", pictures[0], np.zeros((0, 4)), np.zeros(0, int), None)], LABELS)
    write_coco(train, "train", [("t.png", pictures[1], np.zeros((0, 4)), np.zeros(0, int), None)], LABELS)
    run(source, train, tmp_path / "a", threads=1)
    run(source, data, tmp_path / "b", threads=1)
    run(source, None, tmp_path / "c", images=pictures[2:3], threads=1)
    monkeypatch.setattr(story, "rendered_scenes", lambda: pictures[:1])
    rapidetr.load(source, device="cpu").optimize_for_inference()
    assert np.array_equal(orders[0].pictures[0], pictures[1])
    assert [len(order.pictures) for order in orders] == [1, 4, 1, 0]  # nobody's pictures are no pictures
    assert (orders[0].threads, orders[0].source) == (1, source)
    for given, count in ((Image.fromarray(pictures[0]), 1), (pictures[0], 1), (np.stack(pictures), 4), (iter(pictures), 4)):
        run(source, None, None, images=given)  # whatever `predict` takes
        assert [picture.shape for picture in orders[-1].pictures[:9]] == [(64, 80, 3)] * count


def test_a_picture_that_cannot_be_read_costs_only_those_who_read_it(
    source: Path, data: Path, pictures: list[np.ndarray], tmp_path: Path, offer: Callable[..., None]
) -> None:
    offer(blind=Maker(0.010), reader=Maker(fault="looks at pictures"))
    both = shutil.copytree(data, tmp_path / "both")
    write_coco(both, "train", [(f"t{i}.png", pictures[i], np.zeros((0, 4)), np.zeros(0, int), None) for i in range(2)], LABELS)
    (broken,) = both.rglob("t1.png")
    broken.write_bytes(broken.read_bytes()[:100])
    assert run(source, both, tmp_path / "registry").verdict.accepted
    trials = trials_in(tmp_path / "registry")
    assert {name: trial.outcome for name, trial in trials.items()} == {"blind": "adopted", "reader": "failed"}
    assert trials["reader"].reason.startswith("ImageError: ")
    assert "t1.png" in trials["reader"].reason


def test_wrong_use_is_told_before_anything_is_done(source: Path, data: Path, pictures: list[np.ndarray], tmp_path: Path) -> None:
    out = tmp_path / "registry"
    with pytest.raises(ConfigError, match="techniques are fast; expected some of torch-folded, torch-bfloat16"):
        run(source, data, out, techniques=["fast"])
    with pytest.raises(ConfigError, match="expected data=, a dataset to judge with, or images="):
        run(source, None, out)
    with pytest.raises(ConfigError, match="expected data=, a dataset to judge with, or images="):
        run(source, data, out, images=pictures)
    with pytest.raises(ConfigError, match="images= is empty"):
        run(source, None, out, images=[])
    with pytest.raises(ConfigError, match="max_ap_drop is 3; expected 0 to 1"):
        run(source, data, out, max_ap_drop=3)
    with pytest.raises(CheckpointError, match="no such file"):
        run(tmp_path / "nix.safetensors", data, out)
    assert not out.exists()


def test_techniques_are_one_line_each() -> None:
    for name in registered.TECHNIQUES:
        assert precision_of(name) in ("float32", "bfloat16", "float16", "int8")
    assert [precision_of(name) for name in ("torch-compile-bfloat16", "torch-float16", "onnxruntime")] == ["bfloat16", "float16", "float32"]
    assert technique("torch-folded").name == "torch-folded"
    with pytest.raises(ConfigError, match="technique is 'x'; expected one of torch-folded"):
        technique("x")


@pytest.mark.slow
def test_pico_on_this_machine(tmp_path: Path) -> None:
    """The real thing: what is found is this machine's business, that all of it is told is not."""
    write_dataset(tmp_path / "data", 6, 3, split="valid", size_hw=(192, 192))
    out, tried = tmp_path / "registry", ["torch-folded", "onnxruntime"]
    plan = Plan(rounds=20, seconds=20.0, forward_calls=0)
    detector = optimize("pico", tmp_path / "data", out=out, techniques=tried, threads=1, allow_noise=True, plan=plan)
    trials = trials_in(out)
    assert list(trials) == tried
    for trial in trials.values():
        assert trial.outcome in ("adopted", "accepted", "refused"), trial.reason
        assert trial.agreement == 1
        assert trial.ap > 0.05
        assert trial.cold_start_s > 0
    assert detector.verdict is not None
    assert rapidetr.load(out / "current").predict(tmp_path / "data" / "valid" / "scene_000000.jpg")
