"""Measures a baseline and a candidate on the same pictures and machine, and has them judged."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from rapidetr.bench.compare import Comparison, compare_detectors
from rapidetr.bench.loads import LoadShape, spread_out
from rapidetr.bench.runner import Instruments, Plan
from rapidetr.core.clock import StageClock
from rapidetr.core.detections import Detections
from rapidetr.core.errors import ConfigError, NotFinite
from rapidetr.core.outputs import RawOutput
from rapidetr.data.records import Dataset
from rapidetr.deployment.verdict import Evidence, Limits, Verdict, judge
from rapidetr.evaluation.agreement import agreement
from rapidetr.evaluation.coco import overlaps
from rapidetr.evaluation.evaluate import evaluate
from rapidetr.evaluation.report import plain
from rapidetr.pixels.decode import load_picture
from rapidetr.runtime.detector import Detector

PLAN = Plan(rounds=100, seconds=60.0, forward_calls=0)  # 300 calls reach p99; no round begins after two minutes of both
PICTURES = 64  # of a dataset that agreement and times are measured with
THRESHOLD = 0.5  # of agreement
IOU = 0.75  # of agreement: boxes and masks that overlap less are others, as for COCO's AP75
STARTS = 3  # fresh processes of either side, in turn
TRIES = 2  # of timings that the sensors call unusable
Start = Callable[[str, Any], tuple[float, float]]  # (source, picture) -> (seconds to the first detections, peak MB)

FRESH = """\
import json, sys, time
import rapidetr
detector = rapidetr.load(sys.argv[1])
detector.predict(sys.argv[2])
ended = time.time()
from rapidetr.bench.memory import peak_device_mb, peak_process_mb
on_device = peak_device_mb(detector.engine.device)
print(json.dumps([ended, peak_process_mb() if on_device is None else on_device]))
"""


class Watched:
    """An engine that stops at the first output that is not finite: `select` would only drop it."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, pixels: Any, clock: StageClock | None = None) -> RawOutput:
        raw: RawOutput = self._engine.run(pixels, clock)
        if not all(np.isfinite(part).all() for part in (raw.logits, raw.boxes, raw.masks) if part is not None):
            raise NotFinite(f"{self._engine.name}: outputs are not finite; try float32, or check the weights")
        return raw


@dataclass(frozen=True, eq=False)
class Look:
    """What a detector says: COCO's numbers, and detections of each picture above `threshold`. Nothing where not `finite`."""

    finite: bool
    ap: dict[str, Any]
    found: tuple[Detections, ...]
    threshold: float


def look(detector: Detector, data: Dataset | Sequence[Any], threshold: float | None = None) -> Look:
    """What `weigh` wants to know of a baseline but its times; once is enough for many candidates.

    The threshold is THRESHOLD, or where nothing lies above it half the highest score, so that there is something to agree on.
    """
    watched = copy.copy(detector)
    watched.engine = Watched(detector.engine)
    try:
        ap = measure_ap(watched, data) if isinstance(data, Dataset) and data.class_counts.any() else {}
        level = THRESHOLD if threshold is None else threshold
        found = watched.predict(pictures_of(data), level)
        if threshold is None and not any(map(len, found)):
            best = [d.scores for d in watched.predict(pictures_of(data), 0.0, max_detections=1)]
            level = float(np.concatenate([*best, [0.0]]).max()) / 2
            found = watched.predict(pictures_of(data), level)
    except NotFinite:
        return Look(False, {}, (), THRESHOLD)
    return Look(True, ap, tuple(found), level)


def weigh(
    baseline: Detector,
    candidate: Detector,
    data: Dataset | Sequence[Any],
    limits: Limits,
    *,
    names: tuple[str, str] = ("baseline", "candidate"),
    sources: tuple[str, str] | None = None,
    known: Look | None = None,
    about: str | None = None,
    allow_noise: bool = False,
    plan: Plan = PLAN,
    instruments: Instruments | None = None,
    start: Start | None = None,
) -> Verdict:
    """The verdict on `candidate`: AP and agreement of both, their calls in turn, and fresh processes of both in turn.

    `data` is a dataset, or pictures without annotations that `about` describes. `sources` are what `rapidetr.load` takes for the
    two; without them memory and first detection are not measured. `known` is the `look` at the baseline. `allow_noise` judges
    times of a machine that was not quiet, and says so. ConfigError where there are no pictures, or the classes differ.
    """
    pictures = pictures_of(data)
    if not pictures:
        raise ConfigError("there are no pictures; expected at least one to judge with")
    if candidate.labels != baseline.labels:
        raise ConfigError("the candidate has other classes than the baseline; expected the same model")
    before = known or look(baseline, data)
    after = look(candidate, data, before.threshold)
    told = about or (f"{len(data)} pictures of {data.split}" if isinstance(data, Dataset) else f"{len(pictures)} pictures")
    old = Evidence(names[0], before.finite, before.ap, notes=(f"judged on {told}; agreement and times on {len(pictures)} of them",))
    new = Evidence(names[1], after.finite, after.ap)
    if before.finite and after.finite:
        new = replace(new, agreement=compare_looks(before, after))
        new = time_both(candidate, baseline, pictures, new, names[::-1], plan, instruments, allow_noise)
        if sources is not None:
            old, new = start_both((old, new), sources, pictures[0], start or start_fresh)
        else:
            old = replace(old, notes=(*old.notes, "memory and first detection were not measured"))
    return judge(old, new, limits)


def pictures_of(data: Dataset | Sequence[Any]) -> list[Any]:
    return spread_out([record.path for record in data.images], PICTURES) if isinstance(data, Dataset) else list(data)


def measure_ap(detector: Detector, dataset: Dataset) -> dict[str, Any]:
    """COCO's AP (0..1, None where undefined) of the very path that is timed: the filter of `predict`, batches of one."""
    found = evaluate(detector, dataset, batch_size=1, resize="predict")
    measures = {"boxes": found.boxes} | ({} if found.masks is None else {"masks": found.masks})
    return {
        kind: {"AP": plain(m.metrics["AP"]), "classes": dict(zip(found.class_names, plain(m.ap), strict=True))}
        for kind, m in measures.items()
    }


def compare_looks(before: Look, after: Look) -> dict[str, Any]:
    """What Evidence calls agreement."""
    masks = match_masks(before.found, after.found) if any(d.masks is not None for d in before.found) else None
    return {**agreement(before.found, after.found, IOU).to_dict(), "masks_matched_fraction": masks, "threshold": before.threshold}


def match_masks(first: Sequence[Detections], second: Sequence[Detections]) -> float:
    """Part of all detections, 0..1, with one of the same class on the other side whose mask overlaps by at least IOU; empty
    masks overlap with each other."""
    matched = 0
    for a, b in zip(first, second, strict=True):
        if len(a) and len(b) and a.masks is not None and b.masks is not None:
            iou = overlaps(a.masks.rle(), b.masks.rle(), np.zeros(len(b), bool))
            iou[(a.masks.areas[:, None] + b.masks.areas[None]) == 0] = 1
            same = (iou >= IOU) & (a.class_ids[:, None] == b.class_ids[None])
            matched += int(same.any(0).sum() + same.any(1).sum())
    total = sum(map(len, first)) + sum(map(len, second))
    return matched / total if total else 1.0


def time_both(
    candidate: Detector,
    baseline: Detector,
    pictures: Sequence[Any],
    evidence: Evidence,
    names: tuple[str, str],
    plan: Plan,
    instruments: Instruments | None,
    allow_noise: bool,
) -> Evidence:
    """`evidence` with the paired times of single pictures; timed again where the machine was not quiet."""

    def compare() -> Comparison:
        return compare_detectors((candidate, baseline), names, pictures, [LoadShape()], plan, instruments=instruments)

    found = compare()
    for _ in range(0 if allow_noise else TRIES - 1):
        found = compare() if found.problems else found
    noise = tuple(f"the machine was not quiet: {problem}" for problem in found.problems)
    seen = {"notes": (*found.notes, *noise)} if allow_noise else {"notes": found.notes, "problems": found.problems}
    return replace(evidence, latency=found.differences, **seen)  # type: ignore[arg-type]


def start_both(sides: tuple[Evidence, Evidence], sources: tuple[str, str], picture: Any, start: Start) -> tuple[Evidence, Evidence]:
    """Both with the medians of STARTS fresh processes."""
    found = [[start(source, picture) for source in sources] for _ in range(STARTS)]
    old, new = (
        replace(e, cold_start_s=median(r[i][0] for r in found), memory_mb=median(r[i][1] for r in found)) for i, e in enumerate(sides)
    )
    return old, new


def start_fresh(source: str, picture: Any, now: Callable[[], float] = time.time) -> tuple[float, float]:
    """(seconds from starting an interpreter to its first detections, peak resident MB of it); ConfigError where it fails."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "picture.png"
        pixels = load_picture(picture).pixels
        Image.fromarray(pixels if pixels.dtype == np.uint8 else np.rint(255 * pixels).astype(np.uint8)).save(file)
        began = now()
        command = [sys.executable, "-c", FRESH, str(source), str(file)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "RAPIDETR_OFFLINE": "1"}, check=False)
    if done.returncode:
        said = (done.stderr.strip() or "nothing").splitlines()[-1]
        raise ConfigError(f"a fresh process could not predict with {source}: {said}")
    ended, peak_mb = json.loads(done.stdout.splitlines()[-1])
    return ended - began, peak_mb
